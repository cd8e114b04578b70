"""NVIDIA's multi-process service as the runner uses it, over a small fake of its daemon."""

from __future__ import annotations

import os

import pytest

from ptolemy.mps import CONTROL, Mps
from test_replica import DEADLINE, node, run  # noqa: F401  fixtures

# What the real one leaves in its directory; it runs until it is ended.
DAEMON = """#!/bin/sh
echo "$CUDA_VISIBLE_DEVICES $CUDA_MPS_PIPE_DIRECTORY" >> {node}/daemons
touch "$CUDA_MPS_PIPE_DIRECTORY/control"
exec sleep 600
"""


@pytest.fixture
def daemon(node):  # noqa: F811
    program = node / "bin" / CONTROL
    program.write_text(DAEMON.format(node=node))
    program.chmod(0o755)
    return node


def lines(path):
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_servers_of_a_gpu_share_a_daemon_that_ends_with_them(run, daemon):  # noqa: F811
    runner = run(mps="")
    ports = runner.until_state("ready").ports
    daemons = lines(daemon / "daemons")
    assert [device for device, _ in daemons] == ["0", "1"]
    directories = dict(lines(daemon / "mps"))
    assert [directories[str(port)] for port in ports] == [daemons[0][1]] * 2 + [daemons[1][1]] * 2
    # Behind a daemon that has one GPU it is number 0.
    assert {line.split()[1] for line in runner.started()} == {"0"}
    assert os.stat(daemons[0][1]).st_mode & 0o777 == 0o700
    runner.process.terminate()
    assert runner.process.wait(DEADLINE) == 0
    assert not any(os.path.exists(directory) for _, directory in daemons)


def test_a_daemon_through_which_no_gpu_is_seen_is_left_out(run, daemon):  # noqa: F811
    (daemon / "no-gpu").touch()
    runner = run(mps="")
    runner.until_state("ready")
    assert {directory for _, directory in lines(daemon / "mps")} == {"none"}
    assert {line.split()[1] for line in runner.started()} == {"0", "1"}
    assert len(lines(daemon / "daemons")) == 1
    assert "without MPS" in runner.log()


def test_a_server_that_dies_of_it_at_its_start_is_started_without(run, daemon):  # noqa: F811
    (daemon / "mps-breaks").touch()
    runner = run(mps="", servers_per_gpu=2)
    runner.until_state("ready")
    assert {directory for _, directory in lines(daemon / "mps")} == {"none"}


@pytest.mark.parametrize(("servers", "wish"), [(1, ""), (4, "no")])
def test_one_server_needs_none_and_a_site_may_do_without(daemon, servers, wish):
    mps = Mps({"PATH": f"{daemon}/bin:/usr/bin:/bin", "PTOLEMY_MPS": wish}, str(daemon / "llama-server"), servers)
    assert mps.variables("GPU-1") == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert not mps.leave("no reason")
    assert not (daemon / "daemons").exists()


def test_a_daemon_that_ended_is_started_again(daemon):
    mps = Mps({"PATH": f"{daemon}/bin:/usr/bin:/bin"}, str(daemon / "llama-server"), 2)
    first = mps.variables("GPU-1")
    assert mps.variables("GPU-1") == first
    process, _ = mps._daemons["GPU-1"]
    process.kill()
    process.wait()
    again = mps.variables("GPU-1")
    assert again["CUDA_VISIBLE_DEVICES"] == "GPU-1" and again["CUDA_MPS_PIPE_DIRECTORY"] != first["CUDA_MPS_PIPE_DIRECTORY"]
    mps.stop()
    assert not os.path.exists(again["CUDA_MPS_PIPE_DIRECTORY"])

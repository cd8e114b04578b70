"""The replica runner over a small fake llama-server and scontrol: what it starts, publishes, survives and ends."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptolemy import replica
from ptolemy.record import decode

DEADLINE = 60.0  # seconds; other tests may run beside this one
FIRST = 21000
# The real runner, with shorter pauses.
RUN = """
import sys
from ptolemy import engines, replica
replica.FIRST_PAUSE, replica.LEAVE_TIME, replica.PROBE_EVERY, engines.PROBE_TIMEOUT, replica.STUCK_AFTER = 0.05, 0.6, 0.2, 0.5, 3
sys.exit(replica.main())
"""


@pytest.fixture
def node(tmp_path):
    """A directory with everything that a compute node has."""
    for name in ("model.gguf", "backend.key"):
        (tmp_path / name).write_text("key\n")
    program = tmp_path / "llama-server"
    shutil.copy(Path(__file__).with_name("fake_llama_server.py"), program)
    program.write_text(program.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1))
    program.chmod(0o755)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\n[ -e {tmp_path}/slurm-away ] && exit 1\nprintf "%s\\n" "$3" >> {tmp_path}/comments\n')
    scontrol.chmod(0o755)
    return tmp_path


def spec(node, **fields):
    given = {
        "service": "chat",
        "revision": "0123456789ab",
        "opportunistic": True,
        "llama_server": str(node / "llama-server"),
        "model_path": str(node / "model.gguf"),
        "key_file": str(node / "backend.key"),
        "servers_per_gpu": 2,
        "slots": 4,
        "context": 512,
        "flags": ["--cache-ram", "0"],
        "port_first": FIRST,
        "port_last": 24000,
        "start_timeout": 50,
        "stop_grace": 3,
    }
    return {**given, **fields}


class Runner:
    """A running replica, and what it has published so far."""

    def __init__(self, node, mps="no", **fields):
        self.node = node
        environment = {
            **os.environ,
            "PATH": f"{node}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(replica.__file__).parents[1]),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_GPUS": "0,2",
            "CUDA_VISIBLE_DEVICES": "0,1",
            "PTOLEMY_MPS": mps,
        }
        with (node / "job.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, text=True
            )
        self.process.stdin.write(json.dumps(spec(node, **fields)))
        self.process.stdin.close()

    def record(self):
        path = self.node / "comments"
        comments = path.read_text().splitlines() if path.exists() else []
        return decode(comments[-1].removeprefix("Comment=")) if comments else None

    def until(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"never {what}: {self.log()}"
            time.sleep(0.05)

    def until_state(self, state):
        self.until(lambda: self.record() is not None and self.record().state == state, state)
        return self.record()

    def started(self):
        path = self.node / "started"
        return path.read_text().splitlines() if path.exists() else []

    def log(self):
        return (self.node / "job.log").read_text()


@pytest.fixture
def run(node):
    runners = []

    def start(**fields):
        runners.append(Runner(node, **fields))
        return runners[-1]

    yield start
    for runner in runners:
        if runner.process.poll() is None:
            runner.process.send_signal(signal.SIGTERM)
            runner.process.wait(DEADLINE)


def test_each_server_has_its_gpu_its_port_and_the_services_flags(run):
    runner = run()
    record = runner.until_state("ready")
    assert record.ports == (FIRST, FIRST + 1, FIRST + 32, FIRST + 33)
    assert (record.slots, record.opportunistic) == (4, True)
    assert 1 <= record.took <= DEADLINE
    by_port = {int(line.split()[0]): line for line in runner.started()}
    assert [by_port[port].split()[1] for port in record.ports] == ["0", "0", "1", "1"]
    assert "--ctx-size 2048" in by_port[FIRST]
    assert by_port[FIRST].endswith("--cache-ram 0")


def test_one_cache_for_all_slots_keeps_each_slots_limit(run):
    runner = run(servers_per_gpu=1, flags=["--kv-unified"])
    runner.until_state("ready")
    assert all(line.endswith("--kv-unified-per-slot 512 --kv-unified") for line in runner.started())


def test_a_model_is_served_from_the_nodes_cache_and_a_wrong_one_not_at_all(run, node):
    (node / "cache").mkdir()
    digest = hashlib.sha256((node / "model.gguf").read_bytes()).hexdigest()
    cache = {"cache_dir": str(node / "cache"), "cache_size": "1M"}
    runner = run(**cache, model_files=[f"{digest}  model.gguf"])
    runner.until_state("ready")
    assert all(f"--model {node}/cache/" in line for line in runner.started())
    wrong = run(**cache, model_files=[f"{'0' * 64}  model.gguf"])
    assert wrong.process.wait(DEADLINE) == 1
    assert "the catalogue wants" in wrong.record().reason


def test_a_server_has_its_services_own_key_and_not_in_its_arguments(run):
    runner = run()
    runner.until_state("ready")
    own = hmac.new((runner.node / "backend.key").read_text().strip().encode(), b"chat", "sha256").hexdigest()
    assert (runner.node / "own-key").read_text() == own
    assert not [line for line in runner.started() if own in line or "backend.key" in line]


def test_a_port_that_somebody_holds_is_passed_over(run):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", FIRST))
        other.listen()
        record = run(servers_per_gpu=1).until_state("ready")
    assert record.ports == (FIRST + 32, FIRST + 1024)


def test_a_server_that_dies_comes_back_on_its_port(run, node):
    runner = run(servers_per_gpu=1)
    ports = runner.until_state("ready").ports
    (node / "die").touch()
    with socket.create_connection(("127.0.0.1", ports[0])) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        connection.recv(1)
    runner.until(lambda: len(runner.started()) == 3, "started again")
    assert runner.started()[2].split()[0] == str(ports[0])
    assert runner.process.poll() is None


def test_a_server_that_keeps_dying_ends_the_job_with_a_reason(run, node):
    (node / "broken").touch()
    runner = run(servers_per_gpu=1)
    assert runner.process.wait(DEADLINE) == 1
    assert runner.record().state == "failed"
    assert "ended 2 times, the last time with status 1" in runner.record().reason


def test_a_replica_that_never_gets_healthy_ends_with_a_reason(run, node):
    (node / "llama-server").write_text("#!/bin/sh\nexec sleep 60\n")
    runner = run(start_timeout=1)
    assert runner.process.wait(DEADLINE) == 1
    assert "not all servers were healthy within 1 s" in runner.record().reason


def test_usr1_asks_to_be_drained_and_serves_on(run):
    runner = run()
    ports = runner.until_state("ready").ports
    runner.process.send_signal(signal.SIGUSR1)
    assert runner.until_state("draining").ports == ports
    assert runner.process.poll() is None


def test_usr2_ends_it_once_no_request_runs(run, node):
    runner = run()
    runner.until_state("ready")
    (node / "busy").touch()
    runner.process.send_signal(signal.SIGUSR2)
    runner.until_state("draining")
    with pytest.raises(subprocess.TimeoutExpired):
        runner.process.wait(1.5)
    (node / "busy").unlink()
    assert runner.process.wait(DEADLINE) == 0
    assert "stopped 4 servers" in runner.log()


def test_a_frozen_server_is_killed_and_started_again(run):
    runner = run(servers_per_gpu=1)
    runner.until_state("ready")
    (frozen,) = [int(made) for made in listeners(FIRST)]
    os.kill(frozen, signal.SIGSTOP)
    runner.until(lambda: len(runner.started()) == 3, "started again")
    runner.until(lambda: listeners(FIRST) not in ([], [frozen]), "listening again")
    assert runner.record().state == "ready"


def test_a_server_that_is_stuck_though_it_says_that_it_is_well_is_killed_and_started_again(run, node):
    runner = run(servers_per_gpu=1)
    runner.until_state("ready")
    (node / "stuck").touch()
    runner.until(lambda: len(runner.started()) >= 3, "started again")
    (node / "stuck").unlink()


def listeners(port):
    """Ids of the processes that were started with a port."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--port" in arguments and str(port).encode() in arguments:
            found.append(int(entry.parent.name))
    return found


def test_a_failed_replica_publishes_the_last_lines_of_its_log(run, node):
    (node / "llama-server").write_text("#!/bin/sh\necho 'CUDA error: out of memory'\nexit 1\n")
    runner = run(servers_per_gpu=1)
    assert runner.process.wait(DEADLINE) == 1
    assert "ended 2 times" in runner.record().reason
    assert "CUDA error: out of memory" in runner.record().reason


def test_term_waits_for_running_requests_then_stops_everything(run, node):
    runner = run()
    runner.until_state("ready")
    (node / "busy").touch()
    runner.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        runner.process.wait(1.2)
    (node / "busy").unlink()
    assert runner.process.wait(DEADLINE) == 0
    assert "stopped 4 servers" in runner.log()


# One that is too busy to tell what it has is not taken for idle.
@pytest.mark.parametrize("state", ["busy", "stuck"])
def test_term_waits_for_a_server_as_long_as_the_grace_and_no_longer(run, node, state):
    runner = run(stop_grace=1)
    runner.until_state("ready")
    (node / state).touch()
    runner.process.send_signal(signal.SIGTERM)
    assert runner.process.wait(DEADLINE) == 0
    assert "with 4 requests unfinished" in runner.log()


def test_while_slurm_is_away_it_serves_and_publishes_later(run, node):
    (node / "slurm-away").touch()
    runner = run()
    runner.until(lambda: len(runner.started()) == 4, "started")
    (node / "slurm-away").unlink()
    runner.until_state("ready")


@pytest.mark.parametrize("lacking", ["model.gguf", "backend.key", "llama-server"])
def test_what_a_node_lacks_is_named(run, node, lacking):
    (node / lacking).unlink()
    runner = run()
    assert runner.process.wait(DEADLINE) == 1
    assert lacking in runner.log()


def test_ports_of_different_gpus_and_servers_never_meet():
    dealt = [set(replica.ports_for(gpu, number, 20000, 29999)) for gpu in range(8) for number in range(16)]
    assert len(set.union(*dealt)) == sum(map(len, dealt))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"SLURM_JOB_GPUS": "4,6", "CUDA_VISIBLE_DEVICES": "0,1"}, [(4, "0"), (6, "1")]),
        ({"SLURM_JOB_GPUS": "1-3", "CUDA_VISIBLE_DEVICES": "1,2,3"}, [(1, "1"), (2, "2"), (3, "3")]),
        ({"SLURM_JOB_GPUS": "5"}, [(5, "")]),
    ],
)
def test_gpus_are_named_by_the_node_and_by_the_job(given, expected):
    assert replica.gpus(given) == expected


def test_a_job_without_a_gpu_is_told_why():
    with pytest.raises(replica.ReplicaError, match="SLURM_JOB_GPUS"):
        replica.gpus({})

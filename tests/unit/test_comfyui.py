"""The replica runner with ComfyUI, which here is the stand-in with Ptolemy's own extension."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ptolemy.comfyui import ComfyUI
from ptolemy.engines import ReplicaError
from ptolemy.keys import backend_key
from test_replica import FIRST, node, run  # noqa: F401

ROOT = Path(__file__).parents[2]
WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "color": 1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "ComfyUI"}},
}


@pytest.fixture
def pictures(node):  # noqa: F811
    """What the spec of a ComfyUI has, on a node that has one."""
    home = node / "comfyui"
    home.mkdir()
    (home / "source").symlink_to(ROOT / "tests" / "comfyui_standin")
    (home / "venv").symlink_to(Path(sys.prefix))
    (home / "ptolemy").symlink_to(ROOT / "roles" / "comfyui" / "files" / "ptolemy")
    (node / "sdxl.safetensors").write_text("weights")
    return {
        "service": "draw",
        "kind": "comfyui",
        "comfyui": str(home),
        "comfyui_dir": str(node / "instances"),
        "comfyui_models": ["checkpoints/sdxl.safetensors"],
        "model_path": str(node / "sdxl.safetensors"),
        "servers_per_gpu": 1,
        "flags": ["--cpu"],
    }


def send(port, seconds):
    body = json.dumps({"prompt": WORKFLOW, "extra_data": {"standin_seconds": seconds}}).encode()
    headers = {"Authorization": f"Bearer {backend_key('draw', 'key')}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/prompt", body, headers), timeout=5) as answer:
        return json.load(answer)["prompt_id"]


def test_each_gpu_has_an_instance_of_its_own_and_an_end_waits_for_its_queue(run, node, pictures):  # noqa: F811
    runner = run(**pictures)
    ports = runner.until_state("ready").ports
    assert ports == (FIRST, FIRST + 32)
    bases = [node / "instances" / f"j7r0p{port}" for port in ports]
    assert [stat.S_IMODE(base.stat().st_mode) for base in bases] == [0o700, 0o700]
    assert all((base / "models/checkpoints/sdxl.safetensors").read_text() == "weights" for base in bases)
    send(ports[0], 1.5)
    runner.process.send_signal(signal.SIGUSR2)
    began = time.monotonic()
    assert runner.process.wait(60) == 0
    assert time.monotonic() - began > 1.5
    assert list((node / "instances").iterdir()) == []
    assert backend_key("draw", "key") not in runner.log()


def test_what_is_missing_on_the_node_is_named(pictures):
    os.unlink(pictures["model_path"])
    with pytest.raises(ReplicaError, match=r"sdxl\.safetensors is not on"):
        ComfyUI(pictures, "key", "7", 0).check()
    with pytest.raises(ReplicaError, match=r"none/source/main\.py is not on"):
        ComfyUI({**pictures, "comfyui": "/none"}, "key", "7", 0).check()


def test_the_key_is_in_no_command_line_and_only_our_extension_is_loaded(pictures):
    engine = ComfyUI(pictures, "secret", "7", 1)
    command = engine.begin(20016)
    assert "secret" not in " ".join(command)
    assert command[command.index("--whitelist-custom-nodes") + 1] == "ptolemy"
    assert command[-1] == "--cpu"
    assert engine.environment(20016)["PTOLEMY_COMFYUI_INSTANCE"] == "j7r1p20016"
    engine.end()
    assert not list(Path(pictures["comfyui_dir"]).iterdir())

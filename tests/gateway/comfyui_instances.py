"""Instances of ComfyUI behind a real HAProxy: the stand-in, with Ptolemy's extension.

With PTOLEMY_TEST_COMFYUI, a directory with ComfyUI's `source` and a `venv` with its packages, they are the real one, on CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from comfyui_client import Painter, workflow
from local_gateway import API_KEY, BACKEND_KEY, ROOT, Gateway, free_port
from ptolemy.comfyui import ComfyUI
from ptolemy.keys import backend_key

REAL = os.environ.get("PTOLEMY_TEST_COMFYUI", "")
# A prompt that takes a minute: the stand-in waits, the real one works.
SLOW: dict[str, Any] = {"prompt": workflow(1, 512, blurs=100) if REAL else workflow(1), "extra_data": {"standin_seconds": 60}}


class Instance:
    """One running instance.

    Args:
        directory: for its home and its data.
        job: Slurm's number of it, part of its name.
        models: as in a job's spec ("vae/ae.safetensors"); their files lie in ``directory / "models"``.
    """

    def __init__(self, directory: Path, job: int, models: Sequence[str] = ()) -> None:
        home = directory / "home"
        if not home.exists():
            home.mkdir()
            (home / "source").symlink_to(Path(REAL) / "source" if REAL else ROOT / "tests" / "comfyui_standin")
            (home / "venv").symlink_to(Path(REAL) / "venv" if REAL else sys.prefix)
            (home / "ptolemy").symlink_to(ROOT / "roles" / "comfyui" / "files" / "ptolemy")
        spec = {
            "service": "draw",
            "comfyui": str(home),
            "comfyui_dir": str(directory),
            "comfyui_models": models,
            "model_path": str(directory / "models" / "any"),
            "flags": ["--cpu"],
        }
        self.engine = ComfyUI(spec, backend_key("draw", BACKEND_KEY), str(job), 0)
        self.engine.check()
        self.port = free_port()
        self.name = self.engine.instance(self.port)
        command = self.engine.begin(self.port)
        self.process = subprocess.Popen(command, env=dict(self.engine.environment(self.port)))
        deadline = time.monotonic() + (240 if REAL else 20)
        while not self.engine.is_ours(self.port):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    def remaining(self) -> int:
        return self.engine.running(self.port)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.engine.end()


@contextlib.asynccontextmanager
async def painter(gateway: Gateway, key: str = API_KEY) -> AsyncIterator[Painter]:
    timeout, connector = aiohttp.ClientTimeout(total=60), aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
        yield Painter(session, f"{gateway.url}/m/draw")


def run(gateway: Gateway, scenario: Callable[[Painter], Any], key: str = API_KEY) -> Any:
    async def whole() -> Any:
        async with painter(gateway, key) as user:
            return await scenario(user)

    return asyncio.run(whole())

"""NVIDIA's multi-process service (MPS): the llama-servers of a GPU compute side by side on it instead of in turns.

A daemon for each GPU of the job, of the job's own account and in a directory of its own, so that jobs and users never share one. It is
left out where it is not installed, where it does not work, or where the environment says ``PTOLEMY_MPS=no``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

from .publisher import say

CONTROL = "nvidia-cuda-mps-control"
READY_TIMEOUT, PROBE_TIMEOUT = 5.0, 20.0  # seconds; the runner looks after nothing else meanwhile


class Mps:
    """The daemons of one job.

    Args:
        environment: the job's.
        program: the llama-server, which is asked whether it sees a GPU through a daemon.
        servers: on each GPU; for one alone there is nothing to share.
    """

    def __init__(self, environment: Mapping[str, str], program: str, servers: int) -> None:
        self._environment, self._program = environment, program
        self._control = shutil.which(CONTROL, path=environment.get("PATH"))
        self._on = servers > 1 and self._control is not None and environment.get("PTOLEMY_MPS") != "no"
        self._daemons: Dict[str, Tuple[subprocess.Popen[bytes], str]] = {}

    def variables(self, device: str) -> Dict[str, str]:
        """What the environment of a server on this device must hold; starts the device's daemon where it does not run.

        Args:
            device: the value of CUDA_VISIBLE_DEVICES that names it; empty leaves the environment as it is.
        """
        plain = {"CUDA_VISIBLE_DEVICES": device} if device else {}
        if not self._on:
            return plain
        daemon = self._daemons.get(device)
        if daemon is None or daemon[0].poll() is not None:
            self._forget(device)
            daemon = self._start(device, plain)
        return _through(daemon[1], device) if daemon else plain

    def leave(self, why: str) -> bool:
        """Start no more servers with it. Returns whether it was in use until now."""
        was, self._on = self._on, False
        if was:
            say(f"servers take turns on a GPU, without MPS: {why}")
        return was

    def stop(self) -> None:
        """End all daemons. The servers have ended before."""
        for device in list(self._daemons):
            self._forget(device)

    def _start(self, device: str, plain: Mapping[str, str]) -> Optional[Tuple[subprocess.Popen[bytes], str]]:
        directory = tempfile.mkdtemp(prefix="ptolemy-mps-")  # 0700: no other user's process may compute as ours
        environment = {**self._environment, **plain, "CUDA_MPS_PIPE_DIRECTORY": directory, "CUDA_MPS_LOG_DIRECTORY": directory}
        try:
            process = subprocess.Popen(
                [str(self._control), "-f"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            self.leave(f"{self._control}: {error.strerror}")
            return None
        self._daemons[device] = (process, directory)
        deadline = time.monotonic() + READY_TIMEOUT
        while not (Path(directory) / "control").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._works(directory, device):
            self._forget(device)
            self.leave(f"{self._program} --list-devices saw no GPU through it")
            return None
        say(f"the servers of GPU {device or 'of this job'} share it through MPS")
        return self._daemons[device]

    def _works(self, directory: str, device: str) -> bool:
        """Through a daemon that does not work llama-server would find no GPU, and serve on the CPU."""
        environment = {**self._environment, **_through(directory, device)}
        command = [self._program, "--list-devices"]
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return any(line.strip().startswith("CUDA") for line in done.stdout.splitlines())

    def _forget(self, device: str) -> None:
        if device not in self._daemons:
            return
        process, directory = self._daemons.pop(device)
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The whole session: the daemon has a server of its own, which holds the GPU.
            try:
                os.killpg(process.pid, number)
                process.wait(2.0)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        shutil.rmtree(directory, ignore_errors=True)


def _through(directory: str, device: str) -> Dict[str, str]:
    """Behind a daemon with one GPU that is number 0, whatever its number was; a UUID stays."""
    named = {"CUDA_VISIBLE_DEVICES": "0" if device.isdigit() else device} if device else {}
    return {**named, "CUDA_MPS_PIPE_DIRECTORY": directory}

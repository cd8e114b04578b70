"""What the machine did in a window: the GPUs, the servers' threads, the gateway."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from processes import TICK, cpu_seconds

EVERY = 250  # milliseconds between two looks at a GPU


def gpu_names() -> dict[str, str]:
    """The GPUs of this machine: kind by UUID; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    pairs = [(line.split(", ")[0], line.split(", ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("GPU-")]
    return dict(pairs)


class Window:
    """A context whose length is observed.

    Args:
        servers: process ids of llama-servers.
        gateway: that of HAProxy, or 0.
        gpus: UUIDs.

    Attributes:
        busy: per cent of the time in which a GPU computed something, mean over the window.
        memory: the most MiB in use on one GPU.
        power: watts, mean.
        main: share of one core that the main thread of a server used, which builds batches, waits for the GPU and samples; mean.
        rest: the same of all its other threads together.
        gateway_cpu: seconds.
    """

    def __init__(self, servers: Sequence[int], gateway: int, gpus: Sequence[str]) -> None:
        self._servers, self._gateway, self._gpus = servers, gateway, gpus
        self.busy = self.memory = self.power = self.main = self.rest = self.gateway_cpu = 0.0
        self._before: list[tuple[float, float]] = []
        self._began = 0.0
        self._smi: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> Window:
        if self._gpus:
            query = "--query-gpu=utilization.gpu,memory.used,power.draw"
            command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"-lms={EVERY}", f"--id={','.join(self._gpus)}"]
            self._smi = subprocess.Popen(command, stdout=self._output, stderr=subprocess.DEVNULL)
        self._before = [_threads(pid) for pid in self._servers]
        self.gateway_cpu = cpu_seconds(self._gateway) if self._gateway else 0.0
        self._began = os.times().elapsed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        seconds = os.times().elapsed - self._began
        if self._gateway:
            self.gateway_cpu = cpu_seconds(self._gateway) - self.gateway_cpu
        after = [_threads(pid) for pid in self._servers]
        count = len(after) or 1
        self.main = sum(now[0] - then[0] for now, then in zip(after, self._before)) / seconds / count
        self.rest = sum(now[1] - then[1] for now, then in zip(after, self._before)) / seconds / count
        if self._smi:
            self._smi.terminate()
            self._smi.wait(10)
            self._output.seek(0)
            rows = [_numbers(line) for line in self._output.read().decode().splitlines()]
            rows = [row for row in rows if len(row) == 3]
            if rows:
                self.busy, self.power = (sum(row[place] for row in rows) / len(rows) for place in (0, 2))
                self.memory = max(row[1] for row in rows)
        self._output.close()


def _numbers(line: str) -> list[float]:
    with contextlib.suppress(ValueError):
        return [float(value) for value in line.split(",")]
    return []


def _threads(pid: int) -> tuple[float, float]:
    """CPU seconds of a process's main thread, and of its other ones."""
    main = rest = 0.0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            used = (int(fields[11]) + int(fields[12])) / TICK
            main, rest = (main + used, rest) if task.name == str(pid) else (main, rest + used)
    return main, rest

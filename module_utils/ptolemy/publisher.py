"""How a replica speaks: to Slurm as its job's comment, to people in the job's log."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from .record import Record, encode

LAST_BYTES = 600  # of the job's log that the record of a failed replica repeats; it holds 1024 in all


class Publisher:
    """Keeps the job's Slurm comment at the wanted record, without ever blocking the servers' care.

    Args:
        job_id: the job whose comment it is.
    """

    TIMEOUT = 10.0
    PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts; the last one is repeated: slurmctld may be away for long

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._wanted = self._published = self._under_way = ""
        self._attempt: subprocess.Popen[bytes] | None = None
        self._attempt_ends = self._next_at = 0.0
        self._failures = 0

    def want(self, record: Record) -> None:
        """Say what the comment should be."""
        self._wanted = encode(record)

    def step(self) -> None:
        """Start an attempt where one is due, or look how the one under way went."""
        now = time.monotonic()
        if self._attempt is not None:
            status = self._attempt.poll()
            if status is None and now > self._attempt_ends:
                self._attempt.kill()
                self._attempt.wait()
                status = -signal.SIGKILL
            if status is not None:
                self._settle(status, now)
        elif self._wanted != self._published and now >= self._next_at:
            self._under_way, self._attempt_ends = self._wanted, now + self.TIMEOUT
            self._attempt = self._scontrol(self._wanted)

    def last_word(self, record: Record) -> None:
        """Publish a record at once, waiting for it at most ``TIMEOUT`` seconds."""
        attempt = self._scontrol(encode(record))
        try:
            attempt.wait(self.TIMEOUT)
        except subprocess.TimeoutExpired:
            attempt.kill()
            attempt.wait()

    def _settle(self, status: int, now: float) -> None:
        self._attempt = None
        if status == 0:
            self._published, self._failures = self._under_way, 0
            return
        pause = self.PAUSES[min(self._failures, len(self.PAUSES) - 1)]
        self._failures += 1
        self._next_at = now + pause
        say(f"scontrol could not publish the record ({told(status)}); trying again in {pause:g} s")

    def _scontrol(self, comment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["scontrol", "update", f"JobId={self._job_id}", f"Comment={comment}"], stdin=subprocess.DEVNULL)


def told(status: int) -> str:
    """A process's exit status in words."""
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def say(message: str) -> None:
    """Write a line to the job's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), "ptolemy:", message, flush=True)


def last_lines() -> str:
    """The end of the job's log, to be told where people look first; empty where the output is no file."""
    try:
        with open("/proc/self/fd/1", "rb") as log:
            log.seek(max(os.fstat(log.fileno()).st_size - LAST_BYTES, 0))
            lines = log.read(LAST_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    # What the runner says itself stands in the reason already.
    return "".join(f" | {line.strip()}" for line in lines[1:] if line.strip() and " ptolemy: " not in line)

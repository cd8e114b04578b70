"""What the lab prints while it works: numbered steps with elapsed time, and commands that never run in silence."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STARTED = time.monotonic()
# A command that prints a lot (debootstrap, podman build) shows one line this often; its whole output goes to its log.
HEARTBEAT_S = 10.0


class LabError(Exception):
    """Ends the lab with one line that says what to do; no traceback."""


def elapsed() -> str:
    """Time since the start of this program, as mm:ss."""
    minutes, seconds = divmod(int(time.monotonic() - STARTED), 60)
    return f"{minutes:02d}:{seconds:02d}"


def show(line: str) -> None:
    """A line for the reader; also into LAB_LIVE_LOG, which lab/molecule follows while Ansible holds back our output."""
    print(line, flush=True)
    if live := os.environ.get("LAB_LIVE_LOG"):
        with open(live, "a", encoding="utf-8") as log:
            print(line, file=log)


def say(text: str) -> None:
    """One indented line under the current step."""
    show(f"    {text}")


class Steps:
    """Prints `==> [2/6] title (+01:07)` as each step begins."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0

    def begin(self, title: str) -> None:
        self.number += 1
        show(f"==> [{self.number}/{self.total}] {title} (+{elapsed()})")


def capture(argv: Sequence[str], timeout: float = 120) -> str:
    """The standard output of a short command; LabError with its last words if it fails or hangs."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run lab/bootstrap") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(argv)}` did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed (exit {done.returncode}): {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def succeeds(argv: Sequence[str], timeout: float = 60) -> bool:
    """Whether a short command exits 0; for questions whose answer `no` is an ordinary one."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def logged(argv: Sequence[str], log: Path, timeout: float, env: Mapping[str, str] | None = None) -> None:
    """Run a long, talkative command: its output goes to `log`, its latest line to the screen now and then."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: collections.deque[str] = collections.deque(maxlen=25)
    shown = time.monotonic()
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=None if env is None else {**os.environ, **env},
        )
        killer = threading.Timer(timeout, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                sink.write(line)
                if line.strip():
                    tail.append(line.rstrip())
                    if time.monotonic() - shown > HEARTBEAT_S:
                        shown = time.monotonic()
                        say(f"{elapsed()}  {line.strip()[:110]}")
            code = process.wait()
        finally:
            killer.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
    if code != 0:
        print("\n".join(tail), file=sys.stderr, flush=True)
        raise LabError(f"`{' '.join(argv[:4])} ...` failed (exit {code}); its whole output: {log}")

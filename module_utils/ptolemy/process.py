"""Run one command: bounded in time, with a small and known environment."""

from __future__ import annotations

import os
import subprocess
from typing import Sequence

from .errors import PtolemyError

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/slurm/bin"
_PASSED_ON = ("SLURM_CONF", "SLURM_CONF_SERVER", "PATH")


def run(argv: Sequence[str], timeout: float, stdin: str = "", error: type[PtolemyError] = PtolemyError) -> str:
    """Run a command and return what it printed on standard output.

    Args:
        argv: the program and its arguments; no shell is involved.
        timeout: seconds until it is killed.
        stdin: text for its standard input.
        error: the exception to raise.

    Raises:
        PtolemyError (or ``error``): it could not be started, failed, or ran out of time. The message is one line.
    """
    # sbatch hands its environment on to the job, so the daemon's own must not leak into it.
    environment = {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
    environment.update((name, os.environ[name]) for name in _PASSED_ON if name in os.environ)
    try:
        done = subprocess.run(
            list(argv), input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired as expired:
        raise error(f"{argv[0]} gave no answer within {timeout:g} s") from expired
    except OSError as failed:
        raise error(f"{argv[0]} could not be started: {failed.strerror}") from failed
    if done.returncode != 0:
        raise error(f"{argv[0]} failed with {done.returncode}: {one_line(done.stderr) or one_line(done.stdout) or 'no message'}")
    if not done.stdout and done.stderr.strip():
        # squeue answers an unknown user with exit status 0, nothing on standard output and an error beside it.
        raise error(f"{argv[0]} printed only an error: {one_line(done.stderr)}")
    return done.stdout


def one_line(text: str, most: int = 300) -> str:
    """Fold a program's message into one line of at most ``most`` characters."""
    return " ".join(text.split())[:most]

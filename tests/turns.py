"""Turns, and patience, for tests on a crowded machine: `make test` runs scenarios side by side, in CI on two cores.

A browser beside a fault under load had a load average of 26 there: pages and replicas took minutes for what takes them seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

LOCK = "/run/lock/ptolemy-heavy-test"
PATIENCE = 180.0  # seconds in which whatever comes at all has come


@contextlib.contextmanager
def my_turn() -> Iterator[None]:
    """Wait until no other process on this machine has its turn; whoever dies gives it up."""
    with open(LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""The time of day, for plans: it never goes back, and follows a clock that was set only slowly.

Slurm's times are times of day. If this host's clock jumped by an hour, the time limits of all replicas would seem to be near, or
far, at once. A clock that was set right is followed all the same, at half the speed at which time passes.
"""

from __future__ import annotations

import time
from typing import Callable

SLEW = 0.5  # seconds of correction in each second
STEP = 5.0  # seconds; a difference of more is told


class SteadyClock:
    """Unix time without jumps.

    Args:
        wall: Unix time as the system has it.
        monotonic: seconds, never set.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._now, self._read_at = wall(), monotonic()
        self._apart = 0.0

    def now(self) -> tuple[float, float]:
        """Unix time, and by how many seconds the system's clock was set since the last call; 0 where it was not."""
        read_at = self._monotonic()
        elapsed, self._read_at = read_at - self._read_at, read_at
        apart = self._wall() - (self._now + elapsed)
        step = apart - self._apart
        correction = min(max(apart, -SLEW * elapsed), SLEW * elapsed)
        self._now += elapsed + correction
        self._apart = apart - correction
        return self._now, step if abs(step) > STEP else 0.0

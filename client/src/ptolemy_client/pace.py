"""How many requests are under way at once: as many as keep the service busy, and few more.

The gateway says of each answer how long it waited in the queue. By Little's law, waiting / total time is the share of our requests
that are queued. That share is kept between LOW and HIGH: nothing queued means that slots may be idle, much queued only makes others wait.
Additive increase, multiplicative decrease, and a doubling start, as TCP does (RFC 5681); the target is TCP Vegas's (Brakmo 1994).
"""

from __future__ import annotations

from typing import Optional

START = 16
MODEST = 128  # more at once than this must pay off
PAYS, TRY_AGAIN = 1.05, 30.0  # a rise of the rate that counts; seconds until more is tried again
LOW, HIGH = 0.08, 0.25
SMOOTHING = 0.1
GROWTH = 0.1  # of the limit in one round trip, and at least 1
LESS, REFUSED = 0.85, 0.5
LONGEST_HOLD = 60.0


class Pace:
    """The limit, and when it was last lowered. All times are seconds of one monotonic clock.

    Args:
        most: requests at once, at the very most.
        start: at the beginning: the service's slots, where they are known.
        fixed: ``most`` all the time.
    """

    def __init__(self, most: int, start: int = START, fixed: bool = False) -> None:
        self._most, self._fixed = max(most, 1), fixed
        self._limit = float(self._most if fixed else min(max(start, 1), self._most))
        self._starting = not fixed
        self._queued = 0.0  # smoothed share
        self._round_began, self._round_answers, self._round_size = 0.0, 0, 1
        self._best_rate, self._best_limit = 0.0, self._limit
        self._grows_from = 0.0
        self._lowered = 0.0
        self._held_until = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be under way."""
        return max(int(self._limit), 1)

    def held(self, now: float) -> float:
        """Seconds for which nothing new may be sent."""
        return max(self._held_until - now, 0.0)

    def answered(self, now: float, queue: Optional[float], seconds: float) -> None:
        """Learn from an answer."""
        self._held_until = 0.0  # a place became free
        if self._fixed:
            return
        self._see_whether_it_pays(now)
        # A server that does not tell of its queue is sent more for as long as that pays.
        share = min(queue / seconds, 1.0) if queue is not None and seconds > 0 else 0.0
        self._queued += SMOOTHING * (share - self._queued)
        # One request that waits among few is not yet a queue.
        slack = 1.0 / self._limit
        if self._queued < LOW + slack:
            if now >= self._grows_from:
                self._limit = min(self._limit + self._step(), float(self._most))
        elif self._queued > HIGH + slack:
            self._starting = False
            self._lower(now, seconds, LESS)
        else:
            self._starting = False

    def refused(self, now: float, retry_after: float, seconds: float) -> None:
        """Learn from a 429, a 503 or a lost connection: send less, and nothing until one is answered or the time is up."""
        self._held_until = max(self._held_until, now + min(retry_after, LONGEST_HOLD))
        self._starting = False
        if not self._fixed:
            self._lower(now, max(seconds, 1.0), REFUSED)

    def _see_whether_it_pays(self, now: float) -> None:
        """Once a round trip: go back to the limit that was as fast, where more requests at once bring no more answers a second.

        So it is where this program, not the service, is the slowest part; or where the server has a queue of its own.
        """
        self._round_answers += 1
        if self._round_answers < self._round_size:
            return
        rate = self._round_answers / max(now - self._round_began, 1e-6)
        self._round_began, self._round_answers, self._round_size = now, 0, self.limit
        if self._limit <= MODEST or rate > self._best_rate * PAYS or now < self._grows_from:
            self._best_rate, self._best_limit = rate, self._limit
        elif self._limit > self._best_limit * 1.25:
            self._limit, self._starting = self._best_limit, False
            self._grows_from = now + TRY_AGAIN

    def _step(self) -> float:
        # Each of `limit` answers in a round trip adds this.
        return 1.0 if self._starting else max(GROWTH, 1.0 / self._limit)

    def _lower(self, now: float, round_trip: float, factor: float) -> None:
        # Answers still to come were sent under the old limit: they say nothing about the new one.
        if now - self._lowered >= round_trip:
            self._lowered = now
            self._limit = max(self._limit * factor, 1.0)

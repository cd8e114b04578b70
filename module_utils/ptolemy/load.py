"""How busy a service is: HAProxy's counters, second by second, and the demand that follows from them.

HAProxy counts the requests that are being answered, those that wait, and those that ever arrived, but not how long the oldest one
has waited. Its queue is first come, first served, so that follows: with `w` waiting now and `a` ever arrived, the oldest waiting one
is number `a - w`, and it has waited since the count of arrivals passed that number.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Deque

PATIENCE = 5.0  # seconds of waiting from which on a queue counts in full: a shorter one drains by itself
SMOOTHING = 3.0  # seconds; time constant of the moving average, a compromise between quick and calm
NOTHING = 0.05  # slots; a moving average never quite gets to zero
RATE_SMOOTHING = 30.0  # seconds; the same for what arrives and what full servers answer
FULL = 0.9  # the share of busy slots from which on servers answer as much as they can
ENOUGH_FULL = 10.0  # seconds of full servers that make a measurement
FORGET = 24 * 3600.0  # seconds after which it is too old
SPEED_UP = 8.0  # a request on an idle GPU is taken to be answered at most so many times as fast as on a full one


@dataclass(frozen=True)
class Load:
    """One look at a service.

    Attributes:
        at: when, in seconds of a clock that never goes back.
        busy: requests that its servers are answering.
        waiting: requests that wait for a server.
        arrived: requests that have ever reached the service, by HAProxy's count; it starts anew with HAProxy.
        slots: requests that its servers can answer at once; of the draining ones too, as `busy`.
    """

    at: float
    busy: int
    waiting: int
    arrived: int
    slots: int = 0


class Queue:
    """How long the head of a queue has waited: see above. Priorities and clients that leave make it an estimate."""

    def __init__(self) -> None:
        self._arrivals: Deque[tuple[float, int]] = deque()
        self.waiting = 0
        self.oldest_wait = 0.0

    def look(self, at: float, arrived: int, waiting: int) -> float:
        """Take note of a look; ``arrived`` counts all that ever came. Returns the seconds that the oldest one has waited, 0 for none."""
        arrivals = self._arrivals
        if arrivals and arrived < arrivals[-1][1]:
            arrivals.clear()  # another HAProxy process counts from 0
        arrivals.append((at, arrived))
        # The look before the head arrived stays, so that the wait is known from then on.
        while len(arrivals) > 1 and (not waiting or arrivals[1][1] <= arrived - waiting):
            arrivals.popleft()
        self.waiting = waiting
        self.oldest_wait = at - arrivals[0][0] if waiting else 0.0
        return self.oldest_wait


class History:
    """The loads of one service in the recent past.

    Args:
        span: seconds that ``peak`` looks back.
    """

    def __init__(self, span: float) -> None:
        self.span = span
        self._queue = Queue()
        self._peaks: Deque[tuple[float, float]] = deque()  # falling: the first is the highest of the span
        self._since = math.inf
        self._last = Load(-math.inf, 0, 0, 0)
        self._smoothed = 0.0
        self._idle = True
        self._busy = self._arrivals_a_second = 0.0  # smoothed more
        self._full_seconds = self._full_answers = 0.0  # how long the servers were full lately, and what a slot answered in that time
        self._full_at = -math.inf

    @property
    def last(self) -> Load:
        """The newest look."""
        return self._last

    @property
    def oldest_wait(self) -> float:
        """Seconds that the request at the head of the queue has waited; 0 where none waits."""
        return self._queue.oldest_wait

    @property
    def demand(self) -> float:
        """Slots that the service needs now, smoothed: busy ones, and the waiting requests by how long they have waited."""
        return self._smoothed

    @property
    def packed(self) -> float:
        """Slots that the present requests would keep busy if all servers were full; 0 until they have been.

        A GPU with little to do answers each request faster (8B model on an H200: 264 tokens/s alone, 67 for each of 64), so a service
        with replicas to spare has fewer slots busy than it would have without them: `demand` alone would give up too many.
        """
        if self._idle or self._full_seconds < ENOUGH_FULL:
            return 0.0
        return min(self._arrivals_a_second * self._full_seconds / max(self._full_answers, 1e-9), SPEED_UP * self._busy)

    @property
    def peak(self) -> float | None:
        """The highest demand, packed or not, of the last ``span`` seconds; None until there are so many."""
        if self._last.at - self._since < self.span:
            return None
        return self._peaks[0][1]

    def add(self, load: Load) -> None:
        """Take note of a look. One that is not newer than the last is ignored."""
        elapsed = load.at - self._last.at
        if elapsed <= 0:
            return
        if load.arrived >= self._last.arrived and not math.isinf(elapsed):
            self._measure_rates(load, elapsed)
        # A request that came and was answered between two looks is demand, too.
        asked = load.arrived != self._last.arrived and not math.isinf(elapsed)
        # Rates fall slowly, but a service of which nobody asks anything is to sleep after its delay.
        self._idle = not (asked or load.busy or load.waiting)
        self._since = min(self._since, load.at)
        self._last = load
        oldest_wait = self._queue.look(load.at, load.arrived, load.waiting)
        demand = max(load.busy + load.waiting * min(oldest_wait / PATIENCE, 1.0), float(asked))
        self._smoothed += (demand - self._smoothed) * (1.0 if math.isinf(elapsed) else 1.0 - math.exp(-elapsed / SMOOTHING))
        highest = max(self._smoothed, self.packed)
        while self._peaks and self._peaks[-1][1] <= highest:
            self._peaks.pop()
        self._peaks.append((load.at, highest))
        while self._peaks[0][0] < load.at - self.span:
            self._peaks.popleft()

    def _measure_rates(self, load: Load, elapsed: float) -> None:
        last, share = self._last, 1.0 - math.exp(-elapsed / RATE_SMOOTHING)
        arrived = load.arrived - last.arrived
        self._arrivals_a_second += (arrived / elapsed - self._arrivals_a_second) * share
        self._busy += (load.busy - self._busy) * share
        if load.slots == last.slots and 0 < FULL * load.slots <= min(load.busy, last.busy):
            answered = arrived - (load.busy - last.busy) - (load.waiting - last.waiting)
            self._full_answers += answered / load.slots - self._full_answers * share
            self._full_seconds += elapsed - self._full_seconds * share
            self._full_at = load.at
        elif load.at - self._full_at > FORGET:
            self._full_answers = self._full_seconds = 0.0


def replicas_for(demand: float, capacity: float) -> int:
    """The replicas that ``demand`` slots need where each has ``capacity``."""
    return max(math.ceil((demand - NOTHING) / capacity), 0)

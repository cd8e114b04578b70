"""The last hour of each service, minute by minute, for the status page; and how long a new request is likely to wait.

Everything is counted from what the daemon sees once a second, and from llama-server's own counters where they can be had. It is kept
in memory, an hour of it, and lost with the process: then the charts begin anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Deque, Iterator, Mapping

MINUTE = 60.0  # seconds
KEPT = 60  # minutes
RECENT = 5  # minutes from which the length of an answer is told
LONGEST_STEP = 30.0  # seconds between two looks, above which nobody knows what was in between


@dataclass(frozen=True)
class Look:
    """A service at one moment, as the daemon's status has it.

    Attributes:
        at: Unix time.
        arrived: requests that ever came; it starts anew with HAProxy.
        running: requests that servers are answering.
        waiting: requests that wait, anywhere.
        at_gate: those of them that wait at the gate of the batch requests.
        slots: of the servers that are up.
        gpus: of the replicas that Slurm runs.
    """

    at: float
    arrived: int
    running: int
    waiting: int
    at_gate: int
    slots: int
    gpus: int = 0


@dataclass(frozen=True)
class Tokens:
    """What llama-servers did, in sum or since the last look.

    Attributes:
        generated: tokens of answers.
        read: tokens of prompts, without those that were found in a cache.
        read_seconds: from the moment at which a request got its slot to its first token, summed over requests.
    """

    generated: float = 0.0
    read: float = 0.0
    read_seconds: float = 0.0

    def __add__(self, more: Tokens) -> Tokens:
        return Tokens(self.generated + more.generated, self.read + more.read, self.read_seconds + more.read_seconds)


@dataclass
class Minute:
    """What happened in one minute; the seconds are integrals over time.

    Attributes:
        number: of the minute since 1970.
        watched: seconds of it that were watched.
        answers: requests that ended.
        begun: requests that got a slot.
        queued: requests that came to the service's own queue, behind the gate.
        busy_seconds: of slots.
        slot_seconds: of slots that there were.
        queue_seconds: of requests in that queue.
        gpu_seconds: of replicas.
        measured: llama-servers were asked.
        tokens: what they did.
    """

    number: int
    watched: float = 0.0
    answers: int = 0
    begun: int = 0
    queued: int = 0
    busy_seconds: float = 0.0
    slot_seconds: float = 0.0
    queue_seconds: float = 0.0
    gpu_seconds: float = 0.0
    measured: bool = False
    tokens: Tokens = Tokens()

    @property
    def requests_per_s(self) -> float:
        """Requests that ended, a second."""
        return max(self.answers, 0) / self.watched if self.watched else 0.0

    @property
    def busy_share(self) -> float | None:
        """The share of the slots that was busy; None where there were none."""
        return self.busy_seconds / self.slot_seconds if self.slot_seconds else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of answers, a second; None where no llama-server was asked."""
        return self.tokens.generated / self.watched if self.measured and self.watched else None

    @property
    def first_token_s(self) -> float | None:
        """Seconds from a request's coming to its first token; None where none came, or where no llama-server was asked.

        The wait in the queue by Little's law (requests in it on average = arrivals a second x wait), and llama-server's own time after it.
        """
        if not self.measured or self.begun < 1 or not self.tokens.read_seconds:
            return None
        wait = self.queue_seconds / self.queued if self.queued > 0 else 0.0
        return wait + self.tokens.read_seconds / self.begun


class Trend:
    """The last hour of one service, bounded in memory: ``KEPT`` minutes, each a few numbers."""

    def __init__(self) -> None:
        self._minutes: Deque[Minute] = deque(maxlen=KEPT + 1)
        self._last: Look | None = None

    def add(self, look: Look) -> None:
        """Take note of a look. What was between two that are far apart, or of two processes of HAProxy, is not known."""
        last, self._last = self._last, look
        if last is None or not 0 < look.at - last.at <= LONGEST_STEP or look.arrived < last.arrived:
            return
        step, arrived = look.at - last.at, look.arrived - last.arrived
        minute = self._minute(look.at)
        minute.watched += step
        minute.answers += arrived - (look.running - last.running) - (look.waiting - last.waiting)
        minute.begun += arrived - (look.waiting - last.waiting)
        minute.queued += arrived - (look.at_gate - last.at_gate)
        minute.busy_seconds += look.running * step
        minute.slot_seconds += look.slots * step
        minute.queue_seconds += (look.waiting - look.at_gate) * step
        minute.gpu_seconds += look.gpus * step

    def count(self, at: float, tokens: Tokens) -> None:
        """Take note of what the service's llama-servers did since they were last asked."""
        minute = self._minute(at)
        minute.measured = True
        minute.tokens += tokens

    def hour(self, at: float) -> Iterator[Minute | None]:
        """The last ``KEPT`` whole minutes before ``at``, the oldest first; None for one that was hardly watched."""
        known = {minute.number: minute for minute in self._minutes if minute.watched >= MINUTE / 4}
        newest = int(at // MINUTE)
        return (known.get(number) for number in range(newest - KEPT, newest))

    def between(self, first: int, end: int) -> list[Minute]:
        """The minutes from number ``first`` to before ``end`` of which anything is known."""
        return [minute for minute in self._minutes if first <= minute.number < end]

    def lately(self, at: float) -> Minute:
        """The present minute and the one before in one, so that there are at least sixty seconds of it."""
        return self._sum(at, 2)

    def seconds_an_answer(self, at: float) -> float | None:
        """How long a request has its slot, by Little's law over the last minutes; None where nothing was answered."""
        recent = self._sum(at, RECENT + 1)
        return recent.busy_seconds / recent.answers if recent.answers > 0 and recent.busy_seconds else None

    def _minute(self, at: float) -> Minute:
        number = int(at // MINUTE)
        if not self._minutes or self._minutes[-1].number < number:
            self._minutes.append(Minute(number))
        return self._minutes[-1]

    def _sum(self, at: float, count: int) -> Minute:
        total = Minute(int(at // MINUTE))
        for minute in self._minutes:
            if minute.number > total.number - count:
                total.watched += minute.watched
                total.answers += minute.answers
                total.begun += minute.begun
                total.queued += minute.queued
                total.busy_seconds += minute.busy_seconds
                total.slot_seconds += minute.slot_seconds
                total.queue_seconds += minute.queue_seconds
                total.measured |= minute.measured
                total.tokens += minute.tokens
        return total


class Trends:
    """The trends of all services, and how long each one's replicas last took to start."""

    def __init__(self) -> None:
        self._trends: dict[str, Trend] = {}
        self.took: dict[str, int] = {}

    def of(self, service: str) -> Trend:
        """The trend of a service; an empty one where it is new."""
        return self._trends.setdefault(service, Trend())

    def between(self, first: int, end: int) -> Iterator[tuple[str, list[Minute]]]:
        """Each service's minutes, as ``Trend.between``."""
        return ((name, trend.between(first, end)) for name, trend in self._trends.items())

    def add(self, seen: Mapping[str, Any]) -> None:
        """Take note of a status, as ``status.read`` gives it. A stale one tells nothing new. Services that are gone are forgotten."""
        names = {row["service"] for row in seen["services"]}
        self._trends = {name: trend for name, trend in self._trends.items() if name in names}
        self.took = {name: took for name, took in self.took.items() if name in names}
        for row in seen["services"]:
            took = max((replica["took"] for replica in row["replicas"]), default=0)
            if took:
                self.took[row["service"]] = took
            if not seen["stale_reason"]:
                self.of(row["service"]).add(look(seen["observed_at"], row))


def look(at: float, row: Mapping[str, Any]) -> Look:
    """What a trend notes of a service's row of the status."""
    at_gate = row["tiers"].get("batch", {}).get("queued", 0)
    slots = sum(server["slots"] for server in row["servers"] if server["up"] and server["admin"] == "ready")
    return Look(at, row["arrived"], row["in_flight"], row["queued"], at_gate, slots, row["gpus"])


def expected_wait(look: Look, width: int, seconds_an_answer: float | None) -> tuple[float | None, float | None]:
    """How many seconds a request that comes now is likely to wait for a slot: an interactive one, and a batch one.

    With `s` slots, each of which is free again after `t` seconds on average, who comes after `w` others gets one after `(w + 1) t / s`.
    A batch request first passes a gate that lets `width` through at once, and each keeps its place there while it waits and is answered.

    Args:
        look: the service now.
        width: of the gate; 0 where there is none.
        seconds_an_answer: how long a request has its slot; None where that is not known.

    Returns:
        0 where a slot is free; None where nobody can tell: without a slot, or where slots are full and nothing was answered lately.
    """
    if not look.slots:
        return None, None
    queued = look.waiting - look.at_gate
    if not queued and look.running < look.slots:
        interactive: float | None = 0.0
    else:
        interactive = None if seconds_an_answer is None else (queued + 1) * seconds_an_answer / look.slots
    if not look.at_gate:
        return interactive, interactive
    if interactive is None or seconds_an_answer is None or not width:
        return interactive, None
    return interactive, look.at_gate * (seconds_an_answer + interactive) / width + interactive

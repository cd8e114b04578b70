"""Thousands of requests at once on 200 slots: is each answered with its own answer, and in order?"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import gc
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from client import Answer, Connection, connect, request
from processes import cpu_seconds, forget_peak, peak_memory
from proxies import BATCH_KEY, PEOPLE_KEY, Proxy
from tables import percentile
from wishes import chat

SERVERS, SLOTS = 8, 25
TAKES = 0.4  # seconds that a request has a slot
BATCH = 0.8  # share of the requests that come with one researcher's key of the batch tier
PEOPLE = 500  # who ask the others, through Open WebUI's key
OPENING = 500  # connections that are being opened at once
_sources = (f"127.0.{number // 250 + 1}.{number % 250 + 1}" for number in itertools.count())


@dataclass
class Crowd:
    """What became of them.

    Attributes:
        offered: requests.
        answered: with status 200 and their own tag.
        failures: of the others, by kind.
        open: the most that were unanswered at one moment.
        seconds: from the first request to the last answer.
        memory: peak of the proxy, in bytes.
        cpu: CPU seconds of the proxy.
        waits: seconds from the request to its slot, at the median and the worst, by tier.
        disorder: by tier: share of requests that got their slot more than twice 200 places away from their turn: 200 have a slot, and of
            the batch as many have passed the gate. The turn is the order in which they came into the gateway's queue, where it says so (a
            proxy's threads read thousands at once in an order of their own), else the order in which they were sent.
    """

    offered: int
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    open: int = 0
    seconds: float = 0.0
    memory: float = 0.0
    cpu: float = 0.0
    waits: dict[str, tuple[float, float]] = field(default_factory=dict)
    disorder: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many were not answered."""
        return self.offered - self.answered


def measure(proxy: Proxy, offered: int, patience: float, tiers: bool) -> Crowd:
    """Open so many connections, then send a request on each of them at once.

    Args:
        proxy: with the stub servers of ``SERVERS`` and ``SLOTS`` behind it.
        offered: how many.
        patience: seconds after which what is not answered has failed.
        tiers: most of them with the batch key.
    """
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_measure(proxy, offered, patience, tiers))
    finally:
        gc.enable()


async def _measure(proxy: Proxy, offered: int, patience: float, tiers: bool) -> Crowd:
    crowd = Crowd(offered)
    forget_peak(proxy.pid)
    before = cpu_seconds(proxy.pid)
    connections: list[Connection | None] = []
    source = next(_sources)  # a fresh one each time: closed connections keep their ports for a minute
    while len(connections) < offered:
        wanted = min(OPENING, offered - len(connections))
        opened = await asyncio.gather(*(_open(proxy.ports[0], source) for _ in range(wanted)))
        connections += opened
    tier = ["batch" if tiers and number % 100 < BATCH * 100 else "interactive" for number in range(offered)]
    whose = {"batch": BATCH_KEY, "interactive": PEOPLE_KEY if tiers else ""}
    asked = [
        connection.ask(request(proxy, chat(number, TAKES, 0, 8, stream=False), whose[tier[number]], f"person-{number % PEOPLE}"))
        for number, connection in enumerate(connections)
        if connection
    ]
    if asked:
        await asyncio.wait(asked, timeout=patience)
    crowd.cpu, crowd.memory = cpu_seconds(proxy.pid) - before, peak_memory(proxy.pid)
    good: dict[int, tuple[Answer, int]] = {}
    for number, connection in enumerate(connections):
        if not connection or not connection.answer or not connection.done:
            crowd.failures["not connected"] += 1
            continue
        answer, marks = connection.answer, connection.answer.tokens()
        if not connection.done.done():
            crowd.failures[f"not answered in {patience:g} s"] += 1
        elif answer.error or answer.status != 200:
            crowd.failures[answer.error or f"status {answer.status}"] += 1
        elif [mark.tag for mark in marks] != [number]:
            crowd.failures["someone else's answer"] += 1
        else:
            good[number] = (answer, marks[0].started)
        if connection.transport:
            connection.transport.abort()
    crowd.answered = len(good)
    if good:
        _account(crowd, good, tier)
    return crowd


async def _open(port: int, source: str) -> Connection | None:
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        return await asyncio.wait_for(connect(port, source), 20)
    return None


def _account(crowd: Crowd, good: dict[int, tuple[Answer, int]], tier: Sequence[str]) -> None:
    sent = sorted(answer.sent for answer, _ in good.values())
    ended = sorted(answer.pieces[-1][0] for answer, _ in good.values())
    crowd.seconds = (ended[-1] - sent[0]) / 1e9
    # Those that failed count as open to the end, which they were.
    crowd.open = max(number + 1 - bisect.bisect_left(ended, at) for number, at in enumerate(sent)) + crowd.failed
    for name in sorted(set(tier)):
        turns = [number for number in good if tier[number] == name]
        waits = [(good[number][1] - good[number][0].sent) / 1e9 for number in turns]
        crowd.waits[name] = (percentile(waits, 0.5), max(waits))
        turns.sort(key=lambda number: good[number][1] - good[number][0].queued if good[number][0].queued else good[number][0].sent)
        crowd.disorder[name] = disorder([good[number][1] for number in turns], 2 * SERVERS * SLOTS)


def disorder(starts: Sequence[int], tolerance: int) -> float:
    """The share of requests that started more than so many places away from their turn.

    Args:
        starts: when each started, in the order of their turns.
        tolerance: places.
    """
    order = sorted(range(len(starts)), key=starts.__getitem__)
    return sum(abs(place - turn) > tolerance for place, turn in enumerate(order)) / len(starts)

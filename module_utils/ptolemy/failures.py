"""Replicas that failed: how long to wait before the next one, which nodes to avoid, what to tell people. Pure.

Slurm forgets an ended job after its MinJobAge (five minutes by default), so failures are remembered here, for an hour. Losing this
memory costs a few more tries, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import AbstractSet, Iterable, Sequence

from .config import Service
from .record import FAILED
from .slurm import Job

MEMORY = 3600.0  # seconds
# A service whose replicas fail is retried after 5 s, 10 s, 20 s ... and at the latest after 5 minutes.
FIRST_RETRY, LAST_RETRY = 5.0, 300.0
LOOP = 3  # failures in a row that are called a crash loop
MOST_ON_A_NODE = 2  # failures in a row on one node after which it is avoided
FIRST_AVOIDANCE = 300.0  # seconds; after each further failure it is avoided for twice as long


@dataclass(frozen=True)
class Failure:
    """A replica that ended by a fault of its own.

    Attributes:
        job_id: which.
        revision: of the service that it ran.
        node: where; empty where it never had one.
        at: Unix time of its end.
        reason: its last words, or Slurm's.
        over: a later replica of that revision has served.
    """

    job_id: int
    revision: str
    node: str
    at: float
    reason: str
    over: bool = False


def remember(known: Sequence[Failure], jobs: Iterable[Job], now: float) -> Sequence[Failure]:
    """Return the failures of the last hour that still mean something: those ``known`` and those that ``jobs`` shows, the oldest first.

    A replica that started later and serves ends the row of failures, and redeems its node.
    """
    found = {failure.job_id: failure for failure in known if now - failure.at < MEMORY}
    serving: dict[tuple[str, str], float] = {}
    for job in jobs:
        if job.record is None:
            continue
        at = job.end if job.ended else now
        if job.failed and job.id not in found and now - at < MEMORY:
            words = job.record.reason if job.record.state == FAILED and job.fresh else ""
            found[job.id] = Failure(job.id, job.record.revision, job.host, at, words or f"{job.state} ({job.reason})")
        elif job.ready:
            for key in ((job.record.revision, job.host), (job.record.revision, "")):
                serving[key] = max(serving.get(key, 0.0), job.start)
    return tuple(
        replace(failure, over=failure.over or failure.at < serving.get((failure.revision, ""), 0.0))
        for failure in sorted(found.values(), key=lambda failure: (failure.at, failure.job_id))
        if not failure.node or failure.at >= serving.get((failure.revision, failure.node), 0.0)
    )


@dataclass(frozen=True)
class Lesson:
    """What the failures of a service's present revision teach.

    Attributes:
        retry_at: Unix time before which no replica should be submitted; 0 where none failed.
        avoid: nodes on which none should start.
        notes: sentences for people, the same ones for as long as the trouble lasts.
    """

    retry_at: float = 0.0
    avoid: frozenset[str] = frozenset()
    notes: Sequence[str] = ()


def lesson(service: Service, failures: Iterable[Failure], places: Iterable[AbstractSet[str]], now: float) -> Lesson:
    """Draw the lesson of a service's failures.

    Args:
        service: the service; failures of other revisions say nothing about this one.
        failures: as ``remember`` returns them.
        places: the nodes that the service's replicas may use, ordinary and extra ones by themselves: where all of them are bad, it is
            not the nodes' fault, and none is avoided.
        now: Unix time.
    """
    mine = [failure for failure in failures if failure.revision == service.revision]
    row = [failure for failure in mine if not failure.over]
    # Replicas that were submitted together and fail together have failed once.
    tries = sum(later.at - earlier.at > FIRST_RETRY for earlier, later in zip(row, row[1:])) + 1
    bad = _bad_nodes(mine)
    avoid = frozenset(node for node, there in bad.items() if there[-1].at + _avoidance(len(there)) > now)
    for place in places:
        if place <= avoid:
            avoid -= place

    notes = []
    if row and tries >= LOOP:
        # The first one's words: logs differ in times and addresses, and the same trouble is told once.
        notes.append(
            f"{service.name}: replicas of revision {service.revision} keep failing, first on {row[0].node or 'no node'}: {row[0].reason}"
        )
    notes += [f"{service.name}: avoiding {node}, where replicas keep failing: {bad[node][0].reason}" for node in sorted(avoid)]
    retry_at = row[-1].at + min(FIRST_RETRY * 2.0 ** (tries - 1), LAST_RETRY) if row else 0.0
    return Lesson(retry_at, avoid, tuple(notes))


def _bad_nodes(failures: Iterable[Failure]) -> dict[str, list[Failure]]:
    """The nodes on which the last few replicas failed, each with its row of failures."""
    rows: dict[str, list[Failure]] = {}
    for failure in failures:
        if failure.node:
            rows.setdefault(failure.node, []).append(failure)
    return {node: row for node, row in rows.items() if len(row) >= MOST_ON_A_NODE}


def _avoidance(failures: int) -> float:
    return float(FIRST_AVOIDANCE * 2.0 ** (failures - MOST_ON_A_NODE))

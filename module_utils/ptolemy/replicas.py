"""The replicas planner: from services, jobs and what their endpoints do, to jobs to submit, drain and end.

Pure: no I/O; the clock is an argument. A surplus, a new revision, a time limit that comes near and a node that is to be emptied are
one operation: bring a successor up, wait until it serves, drain the predecessor, wait until it is idle, end it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import AbstractSet, Iterable, Iterator, Mapping, Sequence

from .config import Canary, Service
from .failures import Failure, Lesson, lesson
from .gateway import Server
from .partitions import hosts
from .record import DRAINING, FAILED, STARTING
from .slurm import RUNNING, Job, Node, job_name

LOST_AFTER = 60.0  # seconds that all endpoints of a replica must have been down before it gets a successor
LEAVE_PATIENCE = 60.0  # seconds that an idle replica gets to end by itself before it is cancelled
MARGIN = 60.0  # seconds to spare in a handover: Slurm's warning may come 30 s early, its time limit 30 s late


@dataclass(frozen=True)
class Order:
    """One replica to submit.

    Attributes:
        service: whose.
        opportunistic: it is an extra one.
        avoid: nodes on which it must not start, because replicas failed there.
        outside: nodes on which the service may not run at all.
        canary: it is to run the revision that a rollout tries.
    """

    service: str
    opportunistic: bool = False
    avoid: frozenset[str] = frozenset()
    outside: frozenset[str] = frozenset()
    canary: bool = False


@dataclass(frozen=True)
class Plan:
    """What to do to the jobs.

    Attributes:
        submit: replicas to submit, in this order.
        release: ids of requeued jobs that Slurm holds, to be started now.
        drain: ids of jobs whose endpoints get no new request.
        leave: ids of drained jobs without a request, to be asked to end.
        end: ids of jobs to cancel: they never served, or did not end when asked.
        notes: one sentence for each thing that a person should know, as a back-off.
    """

    submit: Sequence[Order] = ()
    release: Sequence[int] = ()
    drain: AbstractSet[int] = frozenset()
    leave: Sequence[int] = ()
    end: Sequence[int] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Seen:
    """What the planner knows besides the services.

    Attributes:
        jobs: the service account's jobs, recently ended ones too.
        servers: HAProxy's servers.
        nodes: Slurm's nodes by name.
        failures: of the last hour, see ``failures.remember``.
        asked: when jobs were asked to end, by id; Unix time.
        now: Unix time.
    """

    jobs: Sequence[Job] = ()
    servers: Sequence[Server] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    asked: Mapping[int, float] = field(default_factory=dict)
    now: float = 0.0


def plan(services: Mapping[str, Service], targets: Mapping[str, int], seen: Seen, canaries: Mapping[str, Canary] | None = None) -> Plan:
    """Plan the jobs of all services.

    Args:
        services: what is asked for.
        targets: how many replicas each service should have, see ``scaling.target``.
        seen: the present state of affairs.
        canaries: of the services that are rolled out, by their names. Each has one replica, beside those of its service.
    """
    fleet = Fleet(seen)
    submit: list[Order] = []
    release: list[int] = []
    drain: set[int] = set()
    notes: list[str] = []

    for service, alive, target, canary in _parts(services, targets, canaries or {}, fleet):
        learnt = lesson(service, seen.failures, _places(service, seen.nodes), seen.now) if service else Lesson()
        kept = fleet.kept(service, alive, target, learnt.avoid) if service else []
        # Predecessors go on serving until enough successors do.
        gap = target - sum(map(fleet.serves, kept))
        others = sorted((job for job in alive if job not in kept), key=fleet.worth)
        useful = [job for job in others if fleet.serves(job) or fleet.lost(job)][: max(gap, 0)]
        drain.update(job.id for job in others if job not in useful)
        release += [job.id for job in kept if _is_held(job)]
        room = target + surge(target) - len(kept) - sum(map(fleet.serves, useful))
        if service and learnt.retry_at <= seen.now:
            missing = _orders(service, target, kept, learnt.avoid, nodes_outside(service, seen.nodes))
            submit += [replace(order, canary=canary) for order in missing[: max(room, 0)]]
        notes += learnt.notes

    leave, end = fleet.endings(drain)
    return Plan(tuple(submit), tuple(release), frozenset(drain), tuple(leave), tuple(end), tuple(notes))


def _parts(
    services: Mapping[str, Service], targets: Mapping[str, int], canaries: Mapping[str, Canary], fleet: Fleet
) -> Iterator[tuple[Service | None, list[Job], int, bool]]:
    """What is planned by itself: each service with its jobs and its target, and each canary with its own."""
    for name in sorted(fleet.alive.keys() | services.keys()):
        alive, canary = fleet.alive.get(name, []), canaries.get(name)
        tried = [job for job in alive if canary and job.record and job.record.revision == canary.service.revision]
        yield services.get(name), [job for job in alive if job not in tried], targets.get(name, 0), False
        if canary:
            yield canary.service, tried, 1, True


def surge(target: int) -> int:
    """How many replicas above its target a service may have while successors take over."""
    return max(target // 4, 1)


def _orders(service: Service, target: int, kept: Sequence[Job], avoid: frozenset[str], outside: frozenset[str]) -> list[Order]:
    """The replicas that are missing, ordinary ones first."""
    ordinary, extra = _shares(service, target)
    kept_extra = sum(map(_is_opportunistic, kept))
    missing = [False] * (ordinary - len(kept) + kept_extra) + [True] * (extra - kept_extra)
    return [Order(service.name, opportunistic, avoid, outside) for opportunistic in missing]


def _shares(service: Service, target: int) -> tuple[int, int]:
    """How many of ``target`` replicas are ordinary, and how many are extra."""
    ordinary = min(target, service.guaranteed)
    return ordinary, min(target - ordinary, service.opportunistic)


def _partitions(service: Service) -> tuple[str, str]:
    return service.partition, service.opportunistic_partition or service.partition


def _places(service: Service, nodes: Mapping[str, Node]) -> Iterable[frozenset[str]]:
    """The nodes on which ordinary and extra replicas may start."""
    allowed = frozenset(hosts(service.nodes) if service.nodes else nodes)
    for partition in _partitions(service):
        yield allowed & {node.name for node in nodes.values() if partition in node.partitions and not node.closed}


def nodes_outside(service: Service, nodes: Mapping[str, Node]) -> frozenset[str]:
    """The nodes that a service confined to some may not use. Slurm's --nodelist would ask for all of those at once."""
    if not service.nodes:
        return frozenset()
    partitions = set(_partitions(service))
    return frozenset(node.name for node in nodes.values() if node.partitions & partitions) - frozenset(hosts(service.nodes))


def _is_opportunistic(job: Job) -> bool:
    return job.record is not None and job.record.opportunistic


def _waits(job: Job) -> bool:
    return job.state == "PENDING"


def _avoided(job: Job) -> frozenset[str]:
    return frozenset(job.record.avoids if job.record is not None else ())


def _is_held(job: Job) -> bool:
    return _waits(job) and job.restart > 0 and job.reason == "BeginTime"


class Fleet:
    """The jobs of each service, and what is known of their endpoints."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.alive: dict[str, list[Job]] = {}
        for job in seen.jobs:
            # A job of the service account that carries no record is somebody's own: never ours to end.
            if job.record is not None and not job.ended and job.name == job_name(job.record.service):
                self.alive.setdefault(job.record.service, []).append(job)
        self._servers: dict[int, list[Server]] = {}
        for server in seen.servers:
            self._servers.setdefault(server.job_id, []).append(server)

    def kept(self, service: Service, alive: Iterable[Job], target: int, avoid: frozenset[str]) -> list[Job]:
        """The jobs that are to stay, at most ``target``. One that waits without a node that it might have by now is not among them."""
        present = [job for job in alive if self._is_current(job, service) and not (_waits(job) and _avoided(job) - avoid)]
        ripe = self._near_their_end(service, present)
        present = sorted((job for job in present if job.id not in ripe), key=self.worth)
        ordinary, extra = _shares(service, target)
        return [
            *[job for job in present if not _is_opportunistic(job)][:ordinary],
            *[job for job in present if _is_opportunistic(job)][:extra],
        ]

    def _is_current(self, job: Job, service: Service) -> bool:
        """It runs, or will run, what the service is now, where it may stay."""
        record = job.record
        if record is None or record.revision != service.revision or job.preempted or self.lost(job):
            return False
        node = self._seen.nodes.get(job.host)
        return not (node and node.closed) and not (job.fresh and record.state in (DRAINING, FAILED))

    def _near_their_end(self, service: Service, present: Sequence[Job]) -> set[int]:
        """Ids of jobs that need a successor now, so that it serves when Slurm's warning comes.

        Where many end at once, `surge` of them are handed over at a time, so the first must begin earlier.
        """
        lead = self._start_time(present) + MARGIN
        step = surge(len(present))
        ending = sorted((job for job in present if job.state == RUNNING and job.end > 0), key=lambda job: (job.end, job.id))
        begin = [0.0] * len(ending)
        for index in range(len(ending) - 1, -1, -1):
            leaves = ending[index].end - service.drain_before_end
            begin[index] = min([leaves, *begin[index + step : index + step + 1]]) - lead
        # However slow the starts are: a replica serves for half of its time before it is replaced.
        return {job.id for job, at in zip(ending, begin) if self._seen.now >= max(at, (job.start + job.end) / 2)}

    def _start_time(self, jobs: Iterable[Job]) -> float:
        """Seconds from submission to service, by the slowest of the service's own jobs."""
        queued = [(job.start if job.state == RUNNING else self._seen.now) - job.submit for job in jobs if job.submit]
        took = [float(job.record.took) for job in jobs if job.record is not None]
        return max([0.0, *queued]) + max([0.0, *took])

    def serves(self, job: Job) -> bool:
        """At least one of its endpoints is healthy in HAProxy."""
        return job.ready and any(server.up for server in self._servers.get(job.id, []))

    def lost(self, job: Job) -> bool:
        """It says that it is ready, but none of its endpoints has answered for long: its node may be dead, and Slurm does not know yet."""
        servers = self._servers.get(job.id, [])
        return job.ready and bool(servers) and all(not server.up and server.unchanged >= LOST_AFTER for server in servers)

    def worth(self, job: Job) -> tuple[bool, bool, bool, int]:
        """Sort key: whom to keep first. Serving before starting before waiting; one that drains already goes first; old before new."""
        draining = any(server.admin == "drain" for server in self._servers.get(job.id, []))
        return draining, not self.serves(job), job.state != RUNNING, job.id

    def endings(self, drain: AbstractSet[int]) -> tuple[list[int], list[int]]:
        """Which of the jobs that drain are to be asked to end, and which are to be cancelled.

        A replica that may have had requests is asked: HAProxy counts those of its present process only, the replica knows of all.
        """
        leave, end = [], []
        for job in (job for jobs in self.alive.values() for job in jobs if job.id in drain):
            if job.state != RUNNING or not job.fresh or job.record is None or job.record.state == STARTING:
                end.append(job.id)
            elif all(server.admin != "ready" and not server.busy for server in self._servers.get(job.id, [])):
                asked_at = self._seen.asked.get(job.id)
                if asked_at is None:
                    leave.append(job.id)
                elif self._seen.now - asked_at > LEAVE_PATIENCE:
                    end.append(job.id)
        return sorted(leave), sorted(end)

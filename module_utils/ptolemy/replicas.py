"""The replicas planner: from services, jobs and what their endpoints do, to jobs to submit, drain and end.

Pure: no I/O; the clock is an argument. A change of revision, a surplus and a job that asks to drain are one operation:
bring a successor up, wait until it serves, drain the predecessor, wait until it is idle, end it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import AbstractSet, Iterable, Mapping, Sequence

from .config import Service
from .haproxy import Server
from .record import DRAINING, FAILED
from .slurm import RUNNING, Job, job_name

# A service whose jobs fail is retried after 5 s, 10 s, 20 s ... and at the latest after 5 minutes.
FIRST_RETRY = 5.0
LAST_RETRY = 300.0


@dataclass(frozen=True)
class Plan:
    """What to do to the jobs.

    Attributes:
        submit: how many replicas to submit, by service.
        drain: ids of jobs whose endpoints get no new request.
        end: ids of jobs to cancel: they wait, or are idle and drained.
        notes: one sentence for each thing that a person should know, as a back-off.
    """

    submit: Mapping[str, int]
    drain: AbstractSet[int]
    end: Sequence[int]
    notes: Sequence[str] = ()


def plan(services: Mapping[str, Service], jobs: Iterable[Job], servers: Iterable[Server], now: float) -> Plan:
    """Plan the jobs of all services.

    Args:
        services: what is asked for.
        jobs: the service account's jobs, recently ended ones too.
        servers: HAProxy's servers.
        now: Unix time.
    """
    replicas = _Replicas(jobs, servers)
    submit: dict[str, int] = {}
    drain: set[int] = set()
    end: list[int] = []
    notes: list[str] = []

    for name in sorted(replicas.alive.keys() | services.keys()):
        jobs_of = replicas.alive.get(name, [])
        service = services.get(name)
        wanted = service.replicas if service else 0
        current = [job for job in jobs_of if service and _is_current(job, service)]
        kept = sorted(current, key=replicas.worth)[:wanted]

        if service and len(kept) < wanted:
            retry_at = _retry_at(service, replicas.ended.get(name, []))
            if retry_at > now:
                at = datetime.fromtimestamp(retry_at).strftime("%H:%M:%S")
                notes.append(f"{name}: {wanted - len(kept)} replicas missing, next try at {at} because the last ones failed")
            else:
                submit[name] = wanted - len(kept)

        # Predecessors go on serving until enough successors do.
        gap = wanted - sum(map(replicas.serves, kept))
        others = sorted((job for job in jobs_of if job not in kept), key=replicas.worth)
        useful = [job for job in others if replicas.serves(job)][: max(gap, 0)]
        for job in others:
            if job in useful:
                continue
            drain.add(job.id)
            if replicas.idle(job):
                end.append(job.id)
    return Plan(submit, frozenset(drain), tuple(sorted(end)), tuple(notes))


def _is_current(job: Job, service: Service) -> bool:
    record = job.record
    if record is None or record.revision != service.revision:
        return False
    return not (job.fresh and record.state in (DRAINING, FAILED))


def _retry_at(service: Service, ended: Sequence[Job]) -> float:
    """Unix time before which a service whose jobs failed gets no new one; 0 where none failed."""
    failures = [job for job in ended if job.failed and job.record is not None and job.record.revision == service.revision]
    if not failures:
        return 0.0
    return max(job.end for job in failures) + min(FIRST_RETRY * 2.0 ** (len(failures) - 1), LAST_RETRY)


class _Replicas:
    """The jobs of each service, and what is known of their endpoints."""

    def __init__(self, jobs: Iterable[Job], servers: Iterable[Server]) -> None:
        self.alive: dict[str, list[Job]] = {}
        self.ended: dict[str, list[Job]] = {}
        for job in jobs:
            # A job of the service account that carries no record is somebody's own: never ours to end.
            if job.record is not None and job.name == job_name(job.record.service):
                (self.ended if job.ended else self.alive).setdefault(job.record.service, []).append(job)
        self._servers: dict[int, list[Server]] = {}
        for server in servers:
            self._servers.setdefault(server.job_id, []).append(server)

    def serves(self, job: Job) -> bool:
        """At least one of its endpoints is healthy in HAProxy."""
        return job.ready and any(server.up for server in self._servers.get(job.id, []))

    def idle(self, job: Job) -> bool:
        """No request can be running on it: it has not started, or all its servers are drained and empty."""
        return job.state != RUNNING or all(server.admin != "ready" and not server.in_flight for server in self._servers.get(job.id, []))

    def worth(self, job: Job) -> tuple[bool, bool, bool, int]:
        """Sort key: whom to keep first. Serving before starting before waiting; one that drains already goes first; old before new."""
        draining = any(server.admin == "drain" for server in self._servers.get(job.id, []))
        return draining, not self.serves(job), job.state != RUNNING, job.id

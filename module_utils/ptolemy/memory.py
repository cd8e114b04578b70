"""What the daemon remembers between two ticks.

None of it is needed to be safe: a daemon that starts knows the jobs from Slurm and the servers from HAProxy, keeps the replicas that
are there, and gives none up before it has watched the load for as long as ``scale_in_delay``.
"""

from __future__ import annotations

from typing import AbstractSet, Iterable, Sequence

from .config import Config, Service
from .failures import Failure, remember
from .gates import Chat, listen
from .gateway import Gateway, backend_name
from .keys import BATCH, INTERACTIVE, TIERS
from .load import History, Load, Queue
from .scaling import target
from .slurm import Job


class Memory:
    """Loads and targets by service, failures, and which jobs were asked to end.

    Attributes:
        loads: the recent loads of each service.
        targets: how many replicas each service should have.
        failures: of the last hour.
        asked: when jobs were asked to end, by id; Unix time.
        chats: when each service was last asked by a person.
        slots: of the servers that are up, by backend.
        queues: of each service, by tier; batch requests that are through the gate wait among the interactive ones.
    """

    def __init__(self) -> None:
        self.loads: dict[str, History] = {}
        self.targets: dict[str, int] = {}
        self.failures: Sequence[Failure] = ()
        self.asked: dict[int, float] = {}
        self.chats: dict[str, Chat] = {}
        self.slots: dict[str, int] = {}
        self.queues: dict[str, dict[str, Queue]] = {}
        self._alive: frozenset[int] = frozenset()

    def expected(self, gateway: Gateway) -> AbstractSet[int]:
        """Ids of jobs that must be alive, or seen as ended, in a truthful answer of Slurm."""
        return self._alive | {server.job_id for server in gateway.servers if server.up and server.admin == "ready"}

    def submitted(self, job_id: int) -> None:
        """Take note of a job that Slurm accepted."""
        self._alive |= {job_id}

    def learn(self, config: Config, jobs: Sequence[Job], gateway: Gateway, now: float) -> None:
        """Take note of one whole observation, and set the targets."""
        self._alive = frozenset(job.id for job in jobs if not job.ended)
        # How a replica ends that was asked to says nothing about the next one.
        self.failures = remember(self.failures, [job for job in jobs if job.id not in self.asked], now)
        self.asked = {job.id: self.asked[job.id] for job in jobs if job.id in self.asked}
        self.loads = {name: self._history(service) for name, service in config.services.items()}
        busy: dict[str, int] = {}
        slots: dict[str, int] = {}
        for server in gateway.servers:
            busy[server.backend] = busy.get(server.backend, 0) + server.busy
            if server.up:
                slots[server.backend] = slots.get(server.backend, 0) + server.slots
        for name, history in self.loads.items():
            backend = backend_name(name)
            if backend in gateway.queued:
                load = Load(now, busy.get(backend, 0), gateway.queued[backend], gateway.arrived[backend], slots.get(backend, 0))
                history.add(load)
            if backend in gateway.gates:
                gate = gateway.gates[backend]
                queues = self.queues.setdefault(name, {tier: Queue() for tier in TIERS})
                queues[BATCH].look(now, gate.arrived, gate.waiting)
                # Of what arrived, those before the gate have not come to this queue yet, nor have those that left it there.
                queues[INTERACTIVE].look(now, gateway.arrived[backend] - gate.waiting, gateway.queued[backend] - gate.waiting)
                self.chats[name] = listen(self.chats.get(name, Chat()), gate.interactive_arrived, gate.interactive, now)
        self.slots = slots
        self.targets = {
            name: target(service, self.loads[name], self.targets.get(name, _present(service, jobs)))
            for name, service in config.services.items()
        }

    def _history(self, service: Service) -> History:
        known = self.loads.get(service.name)
        return known if known and known.span == service.scale_in_delay else History(service.scale_in_delay)


def _present(service: Service, jobs: Iterable[Job]) -> int:
    """The replicas that a daemon finds at its start; predecessors whose successors are on their way count once."""
    alive = [job for job in jobs if not job.ended and job.record is not None and job.record.service == service.name]
    ready = sum(job.ready for job in alive)
    return max(ready, sum(job.record is not None and job.record.revision == service.revision for job in alive))

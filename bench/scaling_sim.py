#!/usr/bin/env python3
"""Replay a day of load on 64 GPUs: Ptolemy's own scaling against fixed sizing and other autoscalers. See bench/README.md.

The control plane is the real one: ``Memory.learn``, ``controller.decide`` with both planners, once a simulated second. Slurm, HAProxy
and the engines are simulated (cluster.py), the day is day.py's. Same seed, same result.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Callable, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "module_utils"))

import day
import peers
import report
from cluster import EPOCH, Backend, Cluster, Engine, Replica
from ptolemy import controller, partitions
from ptolemy.config import Config, Service, Site
from ptolemy.gateway import Gateway, backend_name
from ptolemy.memory import Memory
from tables import write_between

ROOT = Path(__file__).resolve().parent.parent
SITE = Site(user="ptolemy", uid=6030)
# One H200, 8B model in Q4_K_M: bench/README.md says what was measured and what was computed.
ENGINES = {"chat": Engine.through(alone=0.53, full=11.0), "classify": Engine.through(alone=0.082, full=60.0)}
WARM_UP = 600.0  # seconds before midnight, so that the day begins as a running service
MINUTE = 60.0
QUEUE_TIMEOUT = 3600.0  # haproxy_queue_timeout
PLOT, PAGE = ROOT / "docs" / "scaling.svg", ROOT / "docs" / "benchmarks.md"


def services(**changes: object) -> Mapping[str, Service]:
    """The two services of the simulation; ``changes`` hold for both."""
    common = {"model": "8b", "model_path": "/models/8b.gguf", "model_sha256": "0" * 64, "partition": "gpu", "time_limit": "12:00:00"}
    shape = {
        "chat": {"min": 1, "max": 8, "servers_per_gpu": 4, "slots": 8, "context": 8192},
        "classify": {"min": 0, "max": 16, "opportunistic": 10, "servers_per_gpu": 4, "slots": 32, "context": 2048},
    }
    return {name: Service(name=name, **{**common, **own, **changes}) for name, own in shape.items()}  # type: ignore[arg-type]


@dataclass
class Result:
    """What a day came to, for one service.

    Attributes:
        gpu_hours: of the replicas' jobs, from their first line to their end.
        changes: how often the target changed.
        answered: requests.
        again: requests that were sent to another replica because theirs was gone.
        refused: requests that waited longer than HAProxy's ``timeout queue``.
        bare: seconds in which requests waited and no replica served: a sleeping service that wakes.
        waits, answers: seconds in the queue, and in all, by class: quantiles 0.5, 0.95, 0.99, 1 and the number of requests.
        all_waits, all_answers: the same of all classes together.
        finished: when the batch was answered.
        minutes: by minute: replicas that had GPUs, the most; target; the oldest waiting request's age, the most.
    """

    gpu_hours: float
    changes: int
    answered: int
    again: int
    refused: int
    bare: int
    waits: Mapping[str, Sequence[float]]
    answers: Mapping[str, Sequence[float]]
    all_waits: Sequence[float]
    all_answers: Sequence[float]
    finished: float
    minutes: Mapping[str, Sequence[float]] = field(default_factory=dict)


QUANTILES = (0.5, 0.95, 0.99, 1.0)


def quantiles(values: Sequence[float]) -> Sequence[float]:
    """The ``QUANTILES`` of the values, by nearest rank, and how many there are."""
    ranked = sorted(values)
    return [*(ranked[max(math.ceil(share * len(ranked)) - 1, 0)] if ranked else 0.0 for share in QUANTILES), float(len(ranked))]


@lru_cache(maxsize=2)
def trace(name: str, seed: int) -> day.Trace:
    """The requests to a service; made once in each process."""
    return day.chat(seed) if name == "chat" else day.batch(seed)


def summary(backend: Backend, gpu_hours: float, changes: int, minutes: Mapping[str, Sequence[float]], bare: int = 0) -> Result:
    """Boil a service's day down."""
    every = [wait for waits in backend.waits for wait in waits]
    return Result(
        gpu_hours=gpu_hours,
        changes=changes,
        answered=len(every),
        again=backend.again,
        refused=sum(wait > QUEUE_TIMEOUT for wait in every),
        bare=bare,
        waits={kind: quantiles(waits) for kind, waits in zip(day.CLASSES, backend.waits) if waits},
        answers={kind: quantiles(answers) for kind, answers in zip(day.CLASSES, backend.answers) if answers},
        all_waits=quantiles(every),
        all_answers=quantiles([answer for answers in backend.answers for answer in answers]),
        finished=backend.finished,
        minutes=minutes,
    )


@dataclass(frozen=True)
class World:
    """What all peers share."""

    seed: int = 1
    load_seconds: tuple[float, float] = (25.0, 45.0)
    others: float = 34.0


def fixed(name: str, count: int, world: World) -> Result:
    """A day with ``count`` replicas that are always there: no start, no time limit, no failure ever."""
    backend = Backend(trace(name, world.seed), world.seed)
    service = services()[name]
    for number in range(count):
        replica = Replica(number, ENGINES[name].speeds(service.capacity))
        replica.open = service.capacity
        backend.replicas.append(replica)
    oldest = [0.0] * int(day.DAY / MINUTE)
    for second in range(int(day.DAY)):
        backend.advance(float(second))
        index = int(second / MINUTE)
        oldest[index] = max(oldest[index], second - backend.oldest)
    backend.advance(day.DAY)
    return summary(backend, count * day.DAY / day.HOUR, 0, {"oldest": oldest, "replicas": [float(count)] * len(oldest)})


class Simulation:
    """A day under a peer's scaling, by the real control plane."""

    def __init__(self, world: World, peer: peers.Peer, wanted: Mapping[str, Service]) -> None:
        self.services = wanted
        self.config = Config(SITE, dict(wanted))
        self.cluster = Cluster(world.seed, world.load_seconds, world.others)
        self.backends = {name: Backend(trace(name, world.seed), world.seed) for name in wanted}
        self.memory = Memory()
        self.changes = dict.fromkeys(wanted, 0)
        count = int(day.DAY / MINUTE)
        self.minutes = {name: {key: [0.0] * count for key in ("replicas", "target", "oldest")} for name in wanted}
        self.others = [0.0] * count
        self.bare = dict.fromkeys(wanted, 0)
        self._peer = peer
        self._before: dict[str, int] = {}

    def run(self) -> Mapping[str, Result]:
        """Play the day."""
        for second in range(-int(WARM_UP), int(day.DAY)):
            self.tick(float(second))
        return {
            name: summary(
                backend, self.cluster.gpu_seconds.get(name, 0.0) / day.HOUR, self.changes[name], self.minutes[name], self.bare[name]
            )
            for name, backend in self.backends.items()
        }

    def tick(self, now: float) -> None:
        """One second: the world goes on, the daemon looks and acts."""
        for backend in self.backends.values():
            backend.advance(now)
        self.cluster.tick(now, self.backends)
        jobs = self.cluster.look()
        gateway = Gateway(
            pid=1,
            queued={backend_name(name): len(backend.queue) for name, backend in self.backends.items()},
            arrived={backend_name(name): backend.arrived for name, backend in self.backends.items()},
            servers=self.cluster.servers(),
            awake={},
        )
        self.memory.learn(self.config, jobs, gateway, EPOCH + now)
        self._peer(self.services, self.memory, now)
        decision = controller.decide(self.config, jobs, self.cluster.nodes, gateway, self.memory, EPOCH + now)
        for change in decision.backends:
            name = change.backend.removeprefix("svc_")
            self.cluster.tell(int(change.name[1 : change.name.index("r")]), change.name, change.verb, self.backends[name], ENGINES[name])
        if decision.backends:
            for backend in self.backends.values():
                backend.fill(now)
        self._act(decision, now)
        if now >= 0:
            self._note(now)

    def _act(self, decision: controller.Decision, now: float) -> None:
        plan = decision.replicas
        for order in plan.submit[: SITE.max_submissions]:
            service = self.services[order.service]
            self.cluster.submit(service, order.opportunistic, now, float(partitions.seconds(service.time_limit)))
        for job_id in plan.leave:
            self.cluster.jobs[job_id].asked = now
            self.memory.asked[job_id] = EPOCH + now
        for job_id in plan.end:
            job = self.cluster.jobs[job_id]
            job.cancelled = min(job.cancelled, now)

    def _note(self, now: float) -> None:
        index = int(now / MINUTE)
        for name, backend in self.backends.items():
            target = self.memory.targets[name]
            self.changes[name] += target != self._before.get(name, target)
            self._before[name] = target
            self.bare[name] += bool(backend.queue) and not any(replica.open for replica in backend.replicas)
            minute = self.minutes[name]
            minute["target"][index] = max(minute["target"][index], target)
            minute["oldest"][index] = max(minute["oldest"][index], now - backend.oldest)
            having = sum(job.state == "RUNNING" for job in self.cluster.jobs.values() if job.service is self.services[name])
            minute["replicas"][index] = max(minute["replicas"][index], having)
        self.others[index] = max(self.others[index], self.cluster.used_by_others)


PEERS: Mapping[str, Callable[[], peers.Peer]] = {"Ptolemy": lambda: peers.ptolemy, "naive": peers.Naive, "HPA": peers.Horizontal}
Task = tuple[str, str, int]  # what: a peer, or "fixed" with a service and a count


def work_on(task: tuple[Task, World]) -> tuple[Mapping[str, Result], Sequence[float]]:
    """One run, in a process of its own."""
    (what, name, count), world = task
    if what == "fixed":
        return {name: fixed(name, count, world)}, ()
    simulation = Simulation(world, PEERS[what](), services())
    return simulation.run(), simulation.others


def arrivals(world: World) -> Sequence[float]:
    """Chat requests a second, by minute."""
    counts = [0] * int(day.DAY / MINUTE)
    for at in trace("chat", world.seed).at:
        if at < day.DAY:
            counts[int(at / MINUTE)] += 1
    return [count / MINUTE for count in counts]


def main() -> int:
    """Run all peers, print the tables, write them and the plot into docs/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load-seconds", type=float, nargs=2, default=(25.0, 45.0), metavar=("LEAST", "MOST"), help="model load time")
    parser.add_argument("--others", type=float, default=34.0, help="GPUs that other people want on average")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--dry-run", action="store_true", help="print, but do not write docs/")
    options = parser.parse_args()
    world = World(options.seed, tuple(options.load_seconds), options.others)
    began = time.monotonic()
    with multiprocessing.Pool(options.jobs, maxtasksperchild=1) as pool:

        def start(*task: object) -> multiprocessing.pool.AsyncResult:  # type: ignore[type-arg]
            return pool.apply_async(work_on, ((task, world),))

        limits = {name: service.max for name, service in services().items()}
        dynamic = {peer: start(peer, "", 0) for peer in PEERS}
        # Every number that may turn out to be the one: all small ones, and the largest.
        counts = {"chat": (1, 2, 3, 4, 5, limits["chat"]), "classify": (1, 2, 4, 6, 7, 8, 9, 10, limits["classify"])}
        still = {name: {count: start("fixed", name, count) for count in counts[name]} for name in limits}
        days = {peer: run.get() for peer, run in dynamic.items()}
        sizes = {name: {count: run.get()[0][name] for count, run in runs.items()} for name, runs in still.items()}
    results = {peer: found for peer, (found, _) in days.items()}
    tables = report.tables(results, sizes, limits, vars(options))
    print(tables)
    print(f"\n{time.monotonic() - began:.0f} s")
    if not options.dry_run:
        write_between(PAGE, "scaling", tables)
        PLOT.write_text(report.plot(results, sizes, days["Ptolemy"][1], arrivals(world)), encoding="utf-8")
    return 0 if not any(result.refused for found in results.values() for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A Slurm cluster and an HAProxy in memory, as the control plane sees them. The model is stated in bench/README.md."""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Deque, Optional, Sequence

from day import CLASSES, DAY, HOUR, Trace, work
from ptolemy.config import Service
from ptolemy.gateway import Server, backend_name
from ptolemy.record import DRAINING, READY, STARTING, Record
from ptolemy.slurm import RUNNING, Job, Node, job_name

NODES, GPUS_PER_NODE = 8, 8
EPOCH = 1_000_000.0  # the simulation's midnight in Unix time: Slurm's 0 means "none"
MEASURED_SLOTS = 128  # at which the full rate is reached: 4 servers of 32 (for chat an assumption)
OTHERS_LIMIT = 48  # GPUs that other people's ordinary jobs may have together, as Slurm's GrpTRES holds them
BACKFILL = 10  # so many of their waiting jobs are tried each second
SUBMIT_SECONDS = 3.0  # from sbatch to the job's first line, on an idle cluster: measured 2.7
PREEMPT_GRACE = 15.0  # seconds from the warning to the end of a preempted job
REMEMBERED = 300.0  # seconds that squeue lists an ended job


@dataclass(frozen=True)
class Engine:
    """How fast one GPU answers: `rate x busy / (busy + half)` requests a second, shared evenly.

    Attributes:
        rate: what it tends to with many requests at once.
        half: how many requests at once give half of that.
    """

    rate: float
    half: float

    @classmethod
    def through(cls, alone: float, full: float) -> Engine:
        """The curve through two measurements: seconds of a request alone, and requests a second with ``MEASURED_SLOTS``."""
        half = (full * MEASURED_SLOTS - MEASURED_SLOTS / alone) / (MEASURED_SLOTS / alone - full)
        return cls((1 + half) / alone, half)

    def speeds(self, slots: int) -> Sequence[float]:
        """Work a second that each of 0, 1 ... ``slots`` requests gets."""
        return [self.rate / (busy + self.half) for busy in range(slots + 1)]


class Replica:
    """The GPU of a replica: its requests share it evenly, so one number, the work done for each so far, is enough."""

    __slots__ = ("busy", "done", "number", "open", "running", "since", "speeds", "version")

    def __init__(self, number: int, speeds: Sequence[float]) -> None:
        self.number, self.speeds = number, speeds
        self.open = 0  # requests that HAProxy may give it at once
        self.busy = 0
        self.running: list[tuple[float, int, float, float, int, float]] = []  # heap: done at, order, arrived, started, kind, work
        self.done, self.since, self.version = 0.0, 0.0, 0


class Backend:
    """A service in HAProxy: one queue, first come, first served, and the replicas that it gives requests to, the least busy first."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.replicas: list[Replica] = []
        self.queue: Deque[tuple[float, int, float]] = deque()  # arrived, kind, work
        self.arrived = 0
        self.again = 0
        self.waits = [array("d") for _ in CLASSES]
        self.answers = [array("d") for _ in CLASSES]
        self.finished = 0.0
        self._trace, self._next, self._rows = trace, 0, trace.rows
        self._events: list[tuple[float, int, int, Replica]] = []
        self._order = 0
        self._dice = random.Random(f"rows {seed}")

    @property
    def oldest(self) -> float:
        """When the request at the head of the queue came."""
        return self.queue[0][0] if self.queue else math.inf

    @property
    def busy(self) -> int:
        """Requests that are being answered."""
        return sum(replica.busy for replica in self.replicas)

    def advance(self, until: float) -> None:
        """Let requests come and be answered."""
        events, trace = self._events, self._trace
        while True:
            while events and events[0][2] != events[0][3].version:
                heapq.heappop(events)
            answered = events[0][0] if events else math.inf
            comes = trace.at[self._next] if self._next < len(trace.at) else math.inf
            if min(answered, comes) > until:
                return
            if answered <= comes:
                self._answer(answered, heapq.heappop(events)[3])
            else:
                self._next += 1
                self._arrive(comes, trace.kind[self._next - 1], trace.work[self._next - 1])

    def fill(self, now: float) -> None:
        """Give waiting requests to replicas that have room."""
        while self.queue:
            replica = self._least_busy()
            if replica is None:
                return
            self._start(now, replica, *self.queue.popleft())

    def lose(self, now: float, replica: Replica) -> None:
        """A replica is gone; what it had not answered is sent again, first."""
        self.replicas.remove(replica)
        replica.version += 1
        self.again += replica.busy
        self.queue.extendleft((entry[2], entry[4], entry[5]) for entry in sorted(replica.running, key=lambda entry: -entry[2]))
        self.fill(now)

    def _arrive(self, now: float, kind: int, amount: float) -> None:
        self.arrived += 1
        replica = None if self.queue else self._least_busy()
        if replica is None:
            self.queue.append((now, kind, amount))
        else:
            self._start(now, replica, now, kind, amount)

    def _least_busy(self) -> Optional[Replica]:
        best = None
        for replica in self.replicas:
            if replica.busy < replica.open and (best is None or replica.busy < best.busy):
                best = replica
        return best

    def _start(self, now: float, replica: Replica, arrived: float, kind: int, amount: float) -> None:
        replica.done += (now - replica.since) * replica.speeds[replica.busy]
        replica.since = now
        self._order += 1
        replica.busy += 1
        heapq.heappush(replica.running, (replica.done + amount, self._order, arrived, now, kind, amount))
        self._schedule(replica)

    def _answer(self, now: float, replica: Replica) -> None:
        replica.done, _, arrived, started, kind, _ = heapq.heappop(replica.running)
        replica.since = now
        replica.busy -= 1
        self.waits[kind].append(started - arrived)
        self.answers[kind].append(now - arrived)
        self.finished = now
        if self.queue and replica.busy < replica.open:
            self._start(now, replica, *self.queue.popleft())
        else:
            self._schedule(replica)
        if self._trace.rows and self._rows:
            self._rows -= 1
            self._arrive(now, kind, work(self._dice))

    def _schedule(self, replica: Replica) -> None:
        replica.version += 1
        if replica.busy:
            at = replica.since + (replica.running[0][0] - replica.done) / replica.speeds[replica.busy]
            heapq.heappush(self._events, (at, self._order, replica.version, replica))


@dataclass
class SimJob:
    """A job: one of our replicas, or (``service`` None) somebody else's work."""

    number: int
    service: Optional[Service]
    gpus: int
    submit: float
    lasts: float
    opportunistic: bool = False
    node: int = -1
    state: str = "PENDING"
    word: str = STARTING
    start: float = 0.0
    took: float = 0.0
    ended: float = math.inf
    warned: float = math.inf  # when Slurm began to take its GPUs away
    asked: float = math.inf  # when it was asked to end once idle
    cancelled: float = math.inf
    replica: Optional[Replica] = None
    servers: dict[str, str] = field(default_factory=dict)  # name -> what HAProxy was told
    seen: Optional[Job] = None

    def look(self) -> Job:
        """The job as squeue shows it."""
        if self.seen is None and self.service is not None:
            running = self.state != "PENDING"
            ports = tuple(20000 + self.number * 8 % 8000 + index for index in range(self.service.gpus * self.service.servers_per_gpu))
            self.seen = Job(
                id=self.number,
                state=self.state,
                user_id=6030,
                restart=0,
                host=f"node{self.node + 1}" if running else "",
                submit=EPOCH + self.submit,
                start=EPOCH + self.start if running else 0.0,
                end=EPOCH + min(self.start + self.lasts, self.ended) if running else 0.0,
                reason="None",
                name=job_name(self.service.name),
                record=Record(
                    self.service.name,
                    self.service.revision,
                    0,
                    self.word,
                    ports,
                    self.service.slots,
                    opportunistic=self.opportunistic,
                    took=math.ceil(self.took) if self.word != STARTING else 0,
                ),
                address=f"10.0.0.{self.node + 1}" if running else "",
                preempted=self.state == RUNNING and self.warned < math.inf,
            )
        assert self.seen is not None
        return self.seen


class Cluster:
    """Slurm: ours before others', others' before opportunistic ones, first come, first served, each job on one node.

    Args:
        seed: of other people's jobs and of the times that models take to load.
        load_seconds: the shortest and the longest time from a job's first line to its endpoints' health.
        others: GPUs that other people want, on average over the day.
    """

    def __init__(self, seed: int, load_seconds: tuple[float, float], others: float) -> None:
        self.free = [GPUS_PER_NODE] * NODES
        self.jobs: dict[int, SimJob] = {}  # ours, recently ended ones too
        self.used_by_others = 0  # GPUs
        self.gpu_seconds: dict[str, float] = {}
        self.preempted = 0
        self.nodes = {f"node{n + 1}": Node(f"node{n + 1}", f"10.0.0.{n + 1}", frozenset(["gpu"]), False) for n in range(NODES)}
        self._coming = _others(random.Random(f"others {seed}"), others)
        self._theirs_pending: list[SimJob] = []
        self._theirs_running: list[tuple[float, int, SimJob]] = []  # heap, by end
        self._dice = random.Random(f"loads {seed}")
        self._load_seconds = load_seconds
        self._number = 100

    def submit(self, service: Service, opportunistic: bool, now: float, lasts: float) -> None:
        """What sbatch does."""
        self._number += 1
        self.jobs[self._number] = SimJob(self._number, service, service.gpus, now, lasts, opportunistic)

    def tick(self, now: float, backends: dict[str, Backend]) -> None:
        """One second of everybody's jobs."""
        while self._coming and self._coming[0].submit <= now:
            self._theirs_pending.append(self._coming.popleft())
        while self._theirs_running and self._theirs_running[0][0] <= now:
            job = heapq.heappop(self._theirs_running)[2]
            self.free[job.node] += job.gpus
            self.used_by_others -= job.gpus
        for job in list(self.jobs.values()):
            self._live(job, now, backends)
        self._schedule(now)

    def _live(self, job: SimJob, now: float, backends: dict[str, Backend]) -> None:
        service = job.service
        assert service is not None
        if job.ended < math.inf:
            if now - job.ended > REMEMBERED:
                del self.jobs[job.number]
            return
        if job.state == "PENDING":
            if job.cancelled < math.inf:
                self._end(job, "CANCELLED", now, backends)
            return
        if now >= 0:
            self.gpu_seconds[service.name] = self.gpu_seconds.get(service.name, 0.0) + job.gpus
        if job.word == STARTING and now >= job.start + job.took:
            job.word, job.seen = READY, None
        if job.word == READY and now >= job.start + job.lasts - service.drain_before_end:
            job.word, job.seen = DRAINING, None
        idle = job.replica is None or not job.replica.busy
        if now >= job.start + job.lasts:
            self._end(job, "TIMEOUT", now, backends)
        elif now >= job.warned + PREEMPT_GRACE:
            self._end(job, "PREEMPTED", now, backends)
        elif job.asked < math.inf and idle:
            self._end(job, "COMPLETED", now, backends)
        elif job.cancelled < math.inf and (idle or now >= job.cancelled + service.stop_grace):
            self._end(job, "CANCELLED", now, backends)

    def _end(self, job: SimJob, state: str, now: float, backends: dict[str, Backend]) -> None:
        if job.state == RUNNING:
            self.free[job.node] += job.gpus
        job.state, job.ended, job.seen = state, now, None
        if state == "COMPLETED":
            job.word = DRAINING
        if job.replica is not None and job.service is not None:
            backends[job.service.name].lose(now, job.replica)
            job.replica = None

    def _schedule(self, now: float) -> None:
        ours = [job for job in self.jobs.values() if job.state == "PENDING"]
        theirs = self._theirs_pending[:BACKFILL]
        waiting = [*(job for job in ours if not job.opportunistic), *theirs, *(job for job in ours if job.opportunistic)]
        for job in waiting:
            if now < job.submit + SUBMIT_SECONDS or (job.service is None and self.used_by_others + job.gpus > OTHERS_LIMIT):
                continue
            fitting = [node for node in range(NODES) if self.free[node] >= job.gpus]
            if fitting:
                self._begin(job, min(fitting, key=lambda node: (self.free[node], node)), now)
            elif not job.opportunistic:
                self._preempt(job, now)

    def _begin(self, job: SimJob, node: int, now: float) -> None:
        self.free[node] -= job.gpus
        job.node, job.state, job.start, job.seen = node, RUNNING, now, None
        if job.service is None:
            self.used_by_others += job.gpus
            self._theirs_pending.remove(job)
            heapq.heappush(self._theirs_running, (now + job.lasts, job.number, job))
        else:
            job.took = self._dice.uniform(*self._load_seconds)

    def _preempt(self, wanting: SimJob, now: float) -> None:
        """Warn as many opportunistic replicas as the job needs, on the node where the fewest are needed."""
        extras: list[list[SimJob]] = [[] for _ in range(NODES)]
        leaving = list(self.free)
        for job in self.jobs.values():
            if job.state == RUNNING and job.opportunistic:
                if job.warned < math.inf:
                    leaving[job.node] += job.gpus
                else:
                    extras[job.node].append(job)
        lacking = [wanting.gpus - leaving[node] for node in range(NODES)]
        able = [node for node in range(NODES) if lacking[node] <= sum(job.gpus for job in extras[node])]
        if able:
            node = min(able, key=lambda node: (lacking[node], node))
            for job in extras[node][::-1][: max(lacking[node], 0)]:
                job.warned, job.seen = now, None
                self.preempted += 1

    def look(self) -> Sequence[Job]:
        """What squeue says."""
        return [job.look() for job in self.jobs.values()]

    def servers(self) -> Sequence[Server]:
        """What HAProxy says of its servers."""
        found = []
        for job in self.jobs.values():
            if job.service is None or not job.servers:
                continue
            busy = job.replica.busy if job.replica is not None else 0
            share, more = divmod(busy, len(job.servers))
            for index, (name, admin) in enumerate(job.servers.items()):
                port = int(name.rpartition("p")[2])
                up = job.state == RUNNING
                flight = share + (index < more)
                backend = backend_name(job.service.name)
                found.append(Server(backend, name, job.number, f"10.0.0.{job.node + 1}", port, admin, up, flight, job.service.slots))
        return found

    def tell(self, job_id: int, name: str, verb: str, backend: Backend, engine: Engine) -> None:
        """Apply one change to one of HAProxy's servers."""
        job = self.jobs[job_id]
        service = job.service
        assert service is not None
        if verb == "remove":
            job.servers.pop(name, None)
        else:
            job.servers[name] = "drain" if verb == "drain" else "ready"
        if job.replica is None and verb == "add" and job.state == RUNNING:
            job.replica = Replica(job_id, engine.speeds(service.capacity))
            backend.replicas.append(job.replica)
        if job.replica is not None:
            job.replica.open = service.slots * sum(admin == "ready" for admin in job.servers.values())


def _others(dice: random.Random, average: float) -> Deque[SimJob]:
    """Other people's jobs: more by day, of 1 to 8 GPUs, for a quarter of an hour to some hours."""
    sizes, shares = (1, 2, 4, 8), (50, 25, 15, 10)
    lasts_on_average = 2.0 * HOUR
    size_on_average = sum(size * share for size, share in zip(sizes, shares)) / sum(shares)
    jobs: Deque[SimJob] = deque()
    at = -12 * HOUR
    number = 1_000_000
    while at < DAY:
        profile = 1.0 + 0.5 * math.sin((at / HOUR - 8.0) / 24.0 * 2 * math.pi)  # most at 14 o'clock, least at 2
        at += dice.expovariate(average * profile / (size_on_average * lasts_on_average))
        number += 1
        lasts = min(max(dice.lognormvariate(math.log(lasts_on_average) - 0.5, 1.0), 900.0), 12 * HOUR)
        jobs.append(SimJob(number, None, dice.choices(sizes, shares)[0], at, lasts))
    return jobs

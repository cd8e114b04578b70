"""The whole loop of scaling: what is told is done, and takes its time."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ptolemy.config import Service
from ptolemy.memory import Memory
from ptolemy.record import READY, STARTING
from ptolemy.replicas import Seen, plan, surge
from values import config, gateway, job, node, record, server, service

DELAY = 60
CHAT = service(min=1, max=8, slots=10, scale_in_delay=DELAY)  # 8 busy slots are a replica's share
SLEEPER = service(min=0, max=8, slots=10, scale_in_delay=DELAY)
unshrunk = (Phase.explicit, Phase.reuse, Phase.generate)  # whole worlds take long to shrink


class World:
    """Memory and the replicas planner with jobs that start after a while, servers that share the load, and nobody's failures."""

    def __init__(self, of: Service, start_seconds: int = 20) -> None:
        self.service, self.start_seconds = of, start_seconds
        self.config, self.memory = config(of), Memory()
        self.now, self.arrived, self.queued, self.next_id = 0, 0, 0, 1
        self.born: dict[int, int] = {}  # when each live job was submitted
        self.draining: dict[int, int] = {}  # its requests
        self.changes = 0

    def ready(self, number: int) -> bool:
        return self.now - self.born[number] >= self.start_seconds

    def second(self, load: int) -> None:
        """``load`` requests want a slot for this second."""
        self.now += 1
        open_ones = [number for number in self.born if self.ready(number) and number not in self.draining]
        busy = min(load, len(open_ones) * self.service.capacity)
        self.queued, self.arrived = load - busy, self.arrived + busy + max(load - busy - self.queued, 0)
        shares = {number: busy // len(open_ones) + (index < busy % len(open_ones)) for index, number in enumerate(open_ones)}
        self.draining = {number: max(left - 3, 0) for number, left in self.draining.items()}
        jobs = [self.job(number) for number in self.born]
        servers = [
            server(
                number, admin="drain" if number in self.draining else "ready", in_flight=shares.get(number, self.draining.get(number, 0))
            )
            for number in self.born
            if self.ready(number)
        ]
        before = self.memory.targets.get("chat", self.service.min)
        self.memory.learn(self.config, jobs, gateway(*servers, queued=self.queued, arrived=self.arrived), float(self.now))
        wanted = self.memory.targets["chat"]
        self.changes += wanted != before
        result = plan(self.config.services, self.memory.targets, Seen(jobs, servers, {"n1": node("n1")}, now=float(self.now)))
        self.check(result, wanted, servers)
        for number in {*result.end, *result.leave}:
            del self.born[number]
            self.draining.pop(number, None)
        for number in result.drain & self.born.keys():
            self.draining.setdefault(number, shares.get(number, 0))
        for number in self.draining.keys() - result.drain:
            del self.draining[number]
        for _ in result.submit:
            self.born[self.next_id] = self.now
            self.next_id += 1

    def job(self, number: int):
        state = READY if self.ready(number) else STARTING
        slurm = "RUNNING" if self.now - self.born[number] >= 3 else "PENDING"
        return job(number, self.service, slurm=slurm, record=record(self.service, state), submit=float(self.born[number]), start=1.0)

    def check(self, result, wanted, servers):
        assert self.service.min <= wanted <= self.service.max
        staying = [made for made in servers if made.admin == "ready" and made.job_id not in result.drain]
        serving = [made for made in servers if made.admin == "ready"]
        # Nobody who serves is given up while those who stay are fewer than are wanted.
        assert len(staying) >= min(wanted, len(serving))
        assert len(self.born) - len(result.drain) + len(result.submit) <= self.service.max + surge(self.service.max)
        # Whoever still answers is not ended.
        assert not any(made.in_flight for made in servers if made.job_id in {*result.leave, *result.end})


PATTERNS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 12), st.integers(5, 60)), min_size=1, max_size=4)


@settings(max_examples=5, deadline=None, phases=unshrunk)
@given(st.sampled_from([CHAT, SLEEPER, service(min=2, max=5, slots=10, scale_in_delay=DELAY)]), PATTERNS, st.randoms(use_true_random=False))
def test_through_any_load_the_bounds_hold_nothing_that_serves_is_missed_and_it_settles(of, pattern, dice):
    world = World(of)
    for level, noise, seconds in pattern:
        for _ in range(seconds):
            world.second(max(level + dice.randint(-noise, noise), 0))
    # The rate of arrivals is smoothed over half a minute, and nothing is given up before the delay after that.
    for _ in range(DELAY + 250):
        world.second(20)
    changes, alive = world.changes, set(world.born)
    for _ in range(100):
        world.second(20)
    assert world.changes == changes
    assert set(world.born) == alive
    assert of.min <= len(alive) <= of.max
    assert len(alive) * of.capacity >= 20
    assert not world.queued


@settings(max_examples=5, deadline=None, phases=unshrunk)
@given(st.integers(10, 70), st.integers(0, 4), st.randoms(use_true_random=False))
def test_noisy_load_starts_no_replica_again_and_again(level, noise, dice):
    world = World(CHAT)
    for _ in range(400):
        world.second(max(level + dice.randint(-noise, noise), 0))
    # At most one more than there are at the end, for the crowd that waited while the first ones started.
    assert world.next_id - 1 <= 8
    assert world.changes <= 12


def test_a_handover_never_takes_more_than_the_surge():
    world = World(CHAT)
    for _ in range(100):
        world.second(20)
    before = set(world.born)
    world.service = service(min=1, max=8, slots=10, scale_in_delay=DELAY, context=1024)
    world.config = config(world.service)
    old = {number: record(CHAT) for number in before}
    present = world.job
    world.job = lambda number: present(number) if number not in old else job(number, CHAT, record=old[number], start=1.0)
    most = 0
    for _ in range(300):
        world.second(20)
        most = max(most, len(world.born))
    assert not before & set(world.born)
    assert most <= world.memory.targets["chat"] + surge(world.memory.targets["chat"]) + 1
    assert not world.queued

"""How busy a service is, and how many replicas that needs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptolemy.config import Service
from ptolemy.load import History, Load, replicas_for
from ptolemy.scaling import target
from values import service

DELAY = 60
quickly = settings(max_examples=30, deadline=None)
CHAT = service(min=1, max=8, slots=10, scale_in_delay=DELAY)  # 8 busy slots are a replica's share
SLEEPER = service(min=0, max=8, slots=10, scale_in_delay=DELAY)


class Watch:
    """A service that is looked at once a second, and what it is told to have."""

    def __init__(self, of: Service, previous: int = 0) -> None:
        self.service, self.history, self.target = of, History(of.scale_in_delay), previous
        self.now, self.answered = 0.0, 0

    def look(self, busy: int = 0, waiting: int = 0, arrivals: int = 0, slots: int = 0) -> int:
        self.now += 1
        self.answered += arrivals
        self.history.add(Load(self.now, busy, waiting, self.answered, slots))
        self.target = target(self.service, self.history, self.target)
        return self.target

    def looks(self, seconds: int, *args: int, **kwargs: int) -> list[int]:
        return [self.look(*args, **kwargs) for _ in range(seconds)]


# The queue


def waits(*looks):
    history, found = History(DELAY), []
    for at, (waiting, arrived) in enumerate(looks):
        history.add(Load(float(at), 0, waiting, arrived))
        found.append(history.oldest_wait)
    return found


def test_the_oldest_request_has_waited_since_the_count_of_arrivals_passed_its_number():
    # Ten came in the first second and two in the second one; these two are left in the end.
    assert waits((0, 0), (10, 10), (10, 12), (7, 12), (2, 12)) == [0, 1, 2, 3, 3]


def test_who_comes_to_an_empty_queue_has_waited_for_no_longer_than_one_look():
    assert waits((0, 5), (0, 90), (1, 91)) == [0, 0, 1]


def test_a_queue_that_turns_over_holds_no_old_request():
    assert waits((0, 0), *((5, 5 * second) for second in range(1, 20)))[-1] <= 2


def test_a_haproxy_that_counts_anew_starts_a_new_queue():
    assert waits((0, 1000), (3, 1003), (3, 1003), (2, 2), (2, 2)) == [0, 1, 2, 0, 1]


@quickly
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_the_wait_is_that_of_the_head_of_a_real_queue_to_within_a_second(steps):
    history, queue, arrived = History(DELAY), [], 0
    history.add(Load(0.0, 0, 0, 0))
    for now, (come, served) in enumerate(steps, 1):
        queue += [now] * come  # they came in the second that ends now
        arrived += come
        del queue[:served]
        history.add(Load(float(now), 0, len(queue), arrived))
        assert history.oldest_wait == (now - queue[0] + 1 if queue else 0)


def test_looks_that_are_not_newer_count_for_nothing():
    history = History(DELAY)
    history.add(Load(5.0, 4, 0, 4))
    history.add(Load(5.0, 400, 0, 400))
    history.add(Load(4.0, 400, 0, 400))
    assert (history.demand, history.last.busy) == (4, 4)


# Scale-out


def test_a_sleeping_service_wakes_with_its_first_request():
    watch = Watch(SLEEPER)
    assert watch.looks(100) == [0] * 100
    assert watch.look(waiting=1, arrivals=1) == 1


def test_a_daemon_that_starts_wakes_a_service_for_which_requests_wait_already():
    assert Watch(SLEEPER).look(waiting=1, arrivals=1) == 1


def test_a_short_queue_is_no_demand():
    watch = Watch(CHAT, 1)
    watch.looks(5, busy=7)
    # Fifty arrive at once, and are gone two seconds later.
    watch.look(busy=7, waiting=50, arrivals=50)
    assert watch.history.demand < 7 + 50 / 5
    watch.looks(10, busy=7)
    assert watch.history.demand == pytest.approx(7, abs=1)


def test_requests_that_have_waited_for_long_count_in_full():
    watch = Watch(CHAT, 1)
    watch.look(busy=10, waiting=30, arrivals=40)
    watch.looks(20, busy=10, waiting=30)
    assert watch.history.demand == pytest.approx(40, rel=0.01)
    assert watch.target == 5


def test_a_sudden_crowd_is_answered_within_seconds():
    watch = Watch(CHAT, 1)
    watch.looks(10, busy=2)
    watch.look(busy=10, waiting=60, arrivals=70)
    assert 8 in watch.looks(10, busy=10, waiting=60)


def test_never_more_than_max_however_long_the_queue():
    watch = Watch(CHAT, 1)
    assert max(watch.looks(50, busy=80, waiting=10_000, arrivals=100)) == 8


# Scale-in


def test_replicas_are_given_up_only_after_fewer_have_been_enough_for_a_while():
    watch = Watch(CHAT, 1)
    watch.looks(70, busy=30)
    assert watch.target == 4
    assert watch.looks(DELAY, busy=2) == [4] * DELAY
    assert watch.looks(20, busy=2)[-1] == 1


def test_one_busy_moment_starts_the_delay_anew():
    watch = Watch(CHAT, 1)
    watch.looks(70, busy=30)
    watch.looks(DELAY - 10, busy=2)
    watch.looks(10, busy=30)
    assert watch.looks(DELAY, busy=2) == [4] * DELAY


def test_noise_within_a_band_does_not_flap():
    watch = Watch(CHAT, 1)
    watch.looks(70, busy=24)
    noisy = [watch.look(busy=24 + wobble) for wobble in itertools.islice(itertools.cycle([-5, 0, 3, -2, 5, -4, 4]), 600)]
    assert len(set(noisy[10:])) == 1


def test_one_busy_look_starts_no_replica():
    watch = Watch(CHAT, 1)
    watch.looks(70, busy=20)
    assert watch.look(busy=32) == 3


def test_a_replica_at_the_edge_of_being_needed_stays():
    watch = Watch(CHAT, 1)
    watch.looks(5, busy=17)
    assert watch.target == 3
    assert set(watch.looks(300, busy=15)) == {3}  # two would do, but only just
    assert watch.looks(300, busy=12)[-1] == 2


def test_a_daemon_that_starts_gives_nothing_up_before_it_has_watched_for_the_delay():
    watch = Watch(CHAT, previous=6)
    assert watch.looks(DELAY, busy=2) == [6] * DELAY
    assert watch.look(busy=2) == 1


def test_a_daemon_that_starts_still_scales_out_at_once():
    assert Watch(CHAT, previous=2).look(busy=40) == 5


def test_a_service_sleeps_after_the_delay_only_when_nobody_asks():
    watch = Watch(SLEEPER, 1)
    watch.looks(100, busy=1)
    assert watch.target == 1
    assert watch.looks(DELAY + 30)[-1] == 0


def test_a_trickle_of_requests_too_short_to_be_seen_keeps_a_service_awake():
    watch = Watch(service(min=0, max=2, gpus=8, servers_per_gpu=4, slots=32, scale_in_delay=DELAY), 1)
    for _ in range(30):
        assert watch.looks(19)[-1] == 1
        assert watch.look(arrivals=1) == 1
    assert watch.looks(DELAY + 10)[-1] == 0


def test_a_large_replica_is_not_given_up_after_a_small_request():
    watch = Watch(service(min=0, max=2, gpus=8, servers_per_gpu=4, slots=32, scale_in_delay=DELAY), 1)
    watch.looks(100)
    watch.target = watch.look(busy=1)
    assert watch.looks(DELAY - 1) == [1] * (DELAY - 1)


def test_max_below_what_is_there_counts_at_once():
    watch = Watch(service(min=0, max=2, slots=10), previous=6)
    assert watch.look(busy=60) == 2


# GPUs that are faster when they have little to do


def test_replicas_that_are_fast_because_there_are_many_are_kept():
    watch = Watch(CHAT, 1)
    # One replica, full: its 10 slots answer 10 requests a second while 15 come.
    watch.look(busy=10, waiting=10, arrivals=20, slots=10)
    for second in range(60):
        watch.look(busy=10, waiting=15 + 5 * second, arrivals=15, slots=10)
    assert watch.target == 8
    # With eight, each request takes a fifth of the time: 3 slots are busy, and one replica would be too few all the same.
    watch.looks(600, busy=3, arrivals=15, slots=80)
    assert watch.history.packed == pytest.approx(15, rel=0.05)
    assert watch.target == replicas_for(15, 8 * 0.85) == 3


def test_what_full_servers_answered_scales_nothing_out():
    watch = Watch(CHAT, 1)
    watch.looks(200, busy=10, arrivals=1, slots=10)
    assert watch.history.packed == pytest.approx(10, rel=0.05)
    assert set(watch.looks(60, busy=5, arrivals=20, slots=20)) == {2}
    assert watch.history.packed > 20


def test_short_answers_after_long_ones_hold_only_a_few_replicas():
    watch = Watch(CHAT, 1)
    watch.looks(60, busy=10, arrivals=1, slots=10)
    watch.target = 8
    assert watch.looks(600, busy=1, arrivals=50, slots=80)[-1] <= 2


def test_without_a_look_at_full_servers_only_busy_slots_count():
    watch = Watch(CHAT, 1)
    watch.looks(100, busy=5, arrivals=50, slots=10)
    assert watch.history.packed == 0


# Properties of the rule

LOADS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 200), st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=8)


@quickly
@given(st.integers(0, 3), st.integers(0, 6), st.integers(0, 12), LOADS)
def test_whatever_the_load_the_target_stays_within_its_bounds(least, more, previous, loads):
    watch = Watch(service(min=least, max=least + more, slots=10, scale_in_delay=DELAY), previous)
    for busy, waiting, arrivals, seconds in loads:
        assert all(least <= answer <= least + more for answer in watch.looks(seconds, busy, waiting, arrivals, 80))


@quickly
@given(LOADS)
def test_whatever_the_load_the_target_falls_only_after_the_delay_of_the_last_rise(loads):
    watch, before, rose = Watch(CHAT, 1), 1, 0.0
    for busy, waiting, arrivals, seconds in loads:
        for answer in watch.looks(seconds, busy, waiting, arrivals, 80):
            rose = watch.now if answer > before else rose
            before = answer
    for _ in range(DELAY - 1):
        answer = watch.look(slots=80)
        assert answer >= before or watch.now - rose >= DELAY - 1
        rose = watch.now if answer > before else rose
        before = answer


@quickly
@given(LOADS, st.integers(0, 90))
def test_constant_load_converges_to_what_it_needs(loads, busy):
    watch = Watch(CHAT, 1)
    for load in loads:
        watch.looks(load[-1], *load[:3], slots=80)
    # What full servers could not answer is forgotten slowly: by a factor of e in 30 s, from at most 1e9 times as much as there is.
    settled = watch.looks(1200, busy=busy, slots=80)[-200:]
    assert len(set(settled)) == 1
    assert replicas_for(busy, 8) <= max(settled[0], 1) or settled[0] == 8
    assert settled[0] <= max(replicas_for(busy, 8 * 0.85), 1)


@quickly
@given(st.integers(10, 60), st.lists(st.integers(-4, 4), min_size=5, max_size=30))
def test_noise_changes_the_target_at_most_by_one_step_out(level, noise):
    watch = Watch(CHAT, 1)
    watch.looks(200, busy=level)
    wobble = itertools.cycle([*noise, *(-step for step in noise)])  # around the level: less on the whole would be less load
    answers = [watch.look(busy=level + next(wobble)) for _ in range(400)]
    changes = sum(one != other for one, other in itertools.pairwise(answers))
    assert changes <= 2
    assert answers == sorted(answers)

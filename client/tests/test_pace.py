"""The limit follows what the gateway says, in a small model of a service with slots."""

from __future__ import annotations

import pytest

from ptolemy_client.pace import MODEST, Pace

SERVICE = 0.5  # seconds an answer takes in a slot


def settle(pace: Pace, slots: int, answers: int = 6000, now: float = 0.0) -> float:
    """Give the answers that a service with these slots would give; returns the time."""
    for _ in range(answers):
        queued = max(pace.limit - slots, 0)
        wait = SERVICE * queued / slots
        now += SERVICE / min(pace.limit, slots)
        pace.answered(now, wait, wait + SERVICE)
    return now


@pytest.mark.parametrize("slots", [1, 4, 32, 128, 500])
def test_all_slots_are_kept_busy_and_the_queue_short(slots):
    pace = Pace(1024)
    settle(pace, slots, 20_000)
    assert slots < pace.limit <= slots * 1.6 + 4


def test_the_limit_follows_slots_that_come_and_go():
    pace = Pace(1024)
    now = settle(pace, 32)
    now = settle(pace, 128, now=now)
    assert pace.limit > 128
    settle(pace, 16, now=now)
    assert pace.limit < 32


def test_a_start_from_16_fills_500_slots_within_a_few_round_trips():
    pace = Pace(1024)
    settle(pace, 500, 16 + 32 + 64 + 128 + 256 + 512)
    assert pace.limit > 500


def test_refusals_of_one_moment_halve_the_limit_once_and_hold_until_an_answer():
    pace = Pace(1024, 64)
    for _ in range(20):
        pace.refused(100.0, 5.0, 0.01)
    assert pace.limit == 32
    assert pace.held(101.0) == pytest.approx(4.0)
    pace.answered(101.0, 0.0, 0.5)
    assert pace.held(101.0) == 0.0
    pace.refused(110.0, 1e9, 0.01)
    assert pace.held(110.0) <= 60.0  # no header can stop a run for long


def test_the_limit_never_falls_below_one_nor_rises_above_the_most():
    pace = Pace(20, 16)
    for second in range(100):
        pace.refused(2.0 * second, 0.0, 0.1)
    assert pace.limit == 1
    settle(pace, 500, now=500.0)
    assert pace.limit == 20


def test_more_at_once_than_pays_off_is_taken_back():
    pace = Pace(1024)
    now = 0.0
    for _ in range(20_000):
        now += 0.01  # as fast as it gets, whatever is sent
        pace.answered(now, None, 0.5)
    assert pace.limit <= MODEST * 2


def test_a_fixed_limit_stays():
    pace = Pace(7, fixed=True)
    pace.refused(1.0, 1.0, 1.0)
    pace.answered(2.0, 9.0, 10.0)
    assert pace.limit == 7

"""The last hour of a service: rates, first tokens, expected waits; bounded, and honest about what nobody saw."""

from __future__ import annotations

import pytest

from ptolemy.trends import KEPT, Look, Tokens, Trend, Trends, expected_wait

START = 60_000.0  # the beginning of a minute


def look(at, arrived=0, running=0, waiting=0, at_gate=0, slots=8):
    return Look(START + at, arrived, running, waiting, at_gate, slots)


def steady(trend, seconds, rate=1, running=2, slots=8, waiting=0, first=0):
    """A service that gets ``rate`` requests a second and has always as many running."""
    for second in range(first, first + seconds + 1):
        trend.add(look(second, arrived=rate * second, running=running, waiting=waiting, slots=slots))


def test_a_minute_holds_what_happened_in_it():
    trend = Trend()
    steady(trend, 120)
    last = list(trend.hour(START + 121))[-1]
    assert last.requests_per_s == pytest.approx(1, rel=0.05)
    assert last.busy_share == pytest.approx(0.25)
    assert last.tokens_per_s is None and last.first_token_s is None


def test_an_hour_has_a_place_for_each_minute_and_nothing_for_those_that_nobody_watched():
    trend = Trend()
    steady(trend, 60)
    steady(trend, 60, first=600)
    hour = list(trend.hour(START + 661))
    assert len(hour) == KEPT
    assert [index for index, minute in enumerate(hour) if minute] == [KEPT - 11, KEPT - 1]


def test_however_long_it_watches_it_keeps_an_hour():
    trend = Trend()
    for second in range(0, 5 * 3600, 20):
        trend.add(look(second, arrived=second))
    assert len(trend._minutes) <= KEPT + 1
    assert all(trend.hour(START + 5 * 3600))


def test_a_restarted_haproxy_and_a_long_gap_are_no_burst():
    trend = Trend()
    trend.add(look(0, arrived=5000))
    trend.add(look(1, arrived=3))
    trend.add(look(2, arrived=4))
    trend.add(look(50, arrived=9000))
    trend.add(look(51, arrived=9001))
    assert trend.lately(START + 51).answers == 2
    assert trend.lately(START + 51).watched == 2


def test_a_clock_that_goes_back_adds_nothing():
    trend = Trend()
    for at in (100, 40, 41):
        trend.add(look(at, arrived=at))
    assert sum(minute.watched for minute in trend._minutes) == 1


def test_the_first_token_comes_after_the_wait_and_the_reading():
    trend = Trend()
    # 2 requests a second, 6 of them wait on average: 3 s in the queue.
    steady(trend, 60, rate=2, waiting=6)
    trend.count(START + 59, Tokens(generated=1200, read=9000, read_seconds=30))
    minute = trend.lately(START + 60)
    assert minute.first_token_s == pytest.approx(3 + 30 / 120, rel=0.05)
    assert minute.tokens_per_s == pytest.approx(20, rel=0.05)


def test_those_who_wait_at_the_gate_do_not_make_the_first_token_late():
    trend = Trend()
    for second in range(61):
        trend.add(look(second, arrived=2 * second + 500, running=8, waiting=500, at_gate=500))
    trend.count(START + 59, Tokens(read_seconds=12))
    assert trend.lately(START + 60).first_token_s == pytest.approx(0.1, rel=0.05)


def test_how_long_an_answer_takes_follows_from_the_busy_slots():
    trend = Trend()
    assert trend.seconds_an_answer(START) is None
    steady(trend, 120, rate=2, running=8)
    assert trend.seconds_an_answer(START + 120) == pytest.approx(4)
    # What was answered long ago says nothing.
    assert trend.seconds_an_answer(START + 1000) is None


@pytest.mark.parametrize(
    ("now", "width", "takes", "wait"),
    [
        (look(0, running=3), 6, 4.0, (0.0, 0.0)),
        (look(0, running=3), 6, None, (0.0, 0.0)),
        (look(0, running=8), 6, 4.0, (0.5, 0.5)),  # a slot is free every half second
        (look(0, running=8, waiting=19), 6, 4.0, (10.0, 10.0)),
        (look(0, running=8, waiting=19), 6, None, (None, None)),
        # 60 before the gate, 6 at once; people have a slot at once.
        (look(0, running=6, waiting=60, at_gate=60), 6, 4.0, (0.0, 40.0)),
        (look(0, running=8, waiting=63, at_gate=60), 6, 4.0, (2.0, 62.0)),
        (look(0, running=6, waiting=60, at_gate=60), 6, None, (0.0, None)),
        (look(0, running=6, waiting=60, at_gate=60), 0, 4.0, (0.0, None)),
        (look(0, waiting=2, slots=0), 6, 4.0, (None, None)),
    ],
)
def test_the_expected_wait(now, width, takes, wait):
    assert expected_wait(now, width, takes) == wait


def row(name="chat", arrived=0, took=0):
    queue = {"queued": 0, "oldest_wait": 0.0}
    return {
        "service": name,
        "arrived": arrived,
        "in_flight": 1,
        "gpus": 1,
        "queued": 0,
        "tiers": {"interactive": queue, "batch": queue},
        "servers": [{"slots": 4, "up": True, "admin": "ready"}, {"slots": 4, "up": False, "admin": "ready"}],
        "replicas": [{"took": took}],
    }


def test_a_stale_status_teaches_nothing_and_services_that_are_gone_are_forgotten():
    trends = Trends()
    for at, stale in ((0, ""), (1, ""), (2, "squeue gave no answer")):
        trends.add({"observed_at": START + at, "stale_reason": stale, "services": [row(arrived=at, took=7), row("gone")]})
    assert trends.of("chat").lately(START).watched == 1
    assert trends.of("chat").lately(START).slot_seconds == 4
    assert trends.took == {"chat": 7}
    # A service without replicas remembers how long they took to start.
    trends.add({"observed_at": START + 3, "stale_reason": "", "services": [row()]})
    assert trends.took == {"chat": 7}
    assert list(trends._trends) == ["chat"]

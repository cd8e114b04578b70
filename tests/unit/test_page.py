"""The status page's document: what state a service is in, in words; and what only operators see."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ptolemy import page
from ptolemy.config import Canary
from ptolemy.failures import Failure
from ptolemy.gateway import Gate
from ptolemy.page import document, for_operators
from ptolemy.trends import KEPT, Trends
from statuses import BOTH, CHAT, NOW, seen
from values import gateway, job, record, server, service


def shown(*arguments, trends=None, **fields):
    made = document(seen(*arguments, **fields), trends or Trends(), NOW)
    return made, made["services"][0]


def test_a_service_with_all_its_replicas_answers():
    whole, chat = shown(*BOTH)
    assert whole["headline"] == {"level": "good", "text": "chat answers."}
    assert (chat["state"], chat["sentence"], chat["slots"]) == ("ready", "all replicas ready.", {"busy": 0, "all": 16})


def test_a_service_that_starts_says_when_the_first_answer_comes():
    trends = Trends()
    trends.took["chat"] = 70
    jobs = [job(1, CHAT, "starting", start=NOW - 30), job(2, CHAT, "starting", "PENDING", reason="Resources")]
    whole, chat = shown(jobs, trends=trends)
    assert whole["headline"] == {"level": "busy", "text": "chat: starting, 0 of 2 replicas; the first answer in about 40 s."}
    assert [replica["state"] for replica in chat["replicas"]] == ["starting", "waiting for a GPU"]
    assert chat["first_answer_in"] == 40


def test_nobody_guesses_how_long_a_first_start_takes():
    _, chat = shown([job(1, CHAT, "starting", start=NOW - 30)])
    assert (chat["first_answer_in"], chat["sentence"]) == (None, "starting, 0 of 2 replicas.")


def test_a_service_that_waits_for_slurm_says_so():
    _, chat = shown([job(1, CHAT, "starting", "PENDING", reason="Priority")])
    assert chat["sentence"] == "starting, 0 of 2 replicas; it waits for Slurm to give it a GPU (Priority)."


def test_replicas_that_fail_again_and_again_make_a_service_failing():
    failures = [Failure(number, CHAT.revision, "n1", NOW - 60, "secret path /srv/x") for number in (1, 2)]
    whole, chat = shown(failures=failures)
    assert (chat["state"], whole["headline"]["level"]) == ("failing", "bad")
    assert shown(failures=[replace(failures[0], over=True), failures[1]])[1]["state"] == "starting"
    assert shown(*BOTH, failures=failures)[1]["state"] == "ready"


def test_a_sleeping_service_is_nothing_to_worry_about():
    asleep = service(min=0, max=2)
    trends = Trends()
    trends.took["chat"] = 25
    whole, chat = shown(of=asleep, trends=trends)
    assert (chat["state"], chat["sentence"]) == ("asleep", "asleep; the first request wakes it in about 25 s.")
    assert whole["headline"] == {"level": "good", "text": "All services sleep until somebody asks."}
    assert shown(of=service(size=0))[0]["headline"]["text"] == "No service is switched on."


@pytest.mark.parametrize(
    ("share", "state", "step"),
    [
        (0.0, "starting", "the canary starts"),
        (0.0, "ready", "the canary is asked questions with known answers"),
        (0.1, "ready", "the canary answers 10% of the requests and is watched"),
    ],
)
def test_a_rollout_shows_its_step(share, state, step):
    tried = service(size=2, slots=3)
    jobs = [*BOTH[0], job(3, tried, state)]
    _, chat = shown(jobs, BOTH[1], canary=Canary(tried, share, NOW - 9))
    assert (chat["state"], chat["rollout"]["step"], chat["rollout"]["revision"]) == ("rolling out", step, tried.revision)
    assert [(replica["canary"], replica["old"]) for replica in chat["replicas"]] == [(False, False)] * 2 + [(True, False)]


def test_the_replacement_of_replicas_is_a_step_too():
    jobs = [job(1, CHAT), job(2, CHAT, record=record(service(slots=3)))]
    _, chat = shown(jobs, BOTH[1])
    assert chat["rollout"]["step"] == "replacing replicas: 1 of 2 have the new revision"
    assert [replica["old"] for replica in chat["replicas"]] == [False, True]


def test_the_headline_counts_those_that_answer_and_those_that_sleep():
    def told(*states):
        rows = [{"service": f"s{number}", "state": state, "sentence": "x.", "tiers": {}} for number, state in enumerate(states)]
        return page.headline(rows, stale=False)["text"]

    assert told("ready", "rolling out") == "All 2 services answer; s1: a rollout is going on."
    assert told("ready", "ready", "asleep", "off") == "2 services answer, 1 sleeps until somebody asks."
    assert told("ready", "asleep", "asleep") == "s0 answers, 2 sleep until somebody asks."
    assert told("ready", "starting", "asleep") == "1 of 2 services answer. s1: x."


def test_a_long_wait_stands_in_the_headline():
    gates = {"svc_chat": Gate(width=12, waiting=0, arrived=0, interactive=0, interactive_arrived=0)}
    there = gateway(server(1, in_flight=8), server(2, in_flight=8), queued=31, arrived=100, gates=gates)
    trends = Trends()
    status_now = seen(BOTH[0], there)
    for second in range(61):
        row = {**status_now["services"][0], "arrived": 100 + second}
        trends.add({**status_now, "observed_at": NOW - 60 + second, "services": [row]})
    made = document(status_now, trends, NOW)
    # 16 slots, an answer takes 16 s: each second one is free, and 31 are before.
    assert made["services"][0]["tiers"]["interactive"]["expected_wait"] == 32
    assert made["headline"] == {"level": "busy", "text": "chat answers; chat is busy, a new request waits about 32 s."}


def test_a_replica_has_its_place_its_time_left_and_its_slots():
    there = gateway(server(1, in_flight=3), server(1, port=20001), server(2, admin="drain"))
    jobs = [job(1, CHAT, end=NOW + 3600, record=record(CHAT, ports=(20000, 20001))), job(2, CHAT, end=NOW + 60)]
    _, chat = shown(jobs, there)
    first, second = chat["replicas"]
    assert {key: first[key] for key in ("job", "node", "gpus", "left")} == {"job": 1, "node": "n1", "gpus": [0], "left": 3600}
    assert (first["slots"], second["state"]) == ({"busy": 3, "all": 16}, "draining")


def test_a_ready_replica_that_haproxy_does_not_reach_is_not_called_ready():
    _, chat = shown([job(1, CHAT)], gateway(server(1, up=False)))
    assert chat["replicas"][0]["state"] == "not reached"


def test_a_stale_view_is_never_called_good():
    whole, _ = shown(*BOTH, stale="squeue gave no answer within 15 s")
    assert whole["headline"]["level"] == "unknown"
    assert whole["stale"] == {"since": NOW}


def test_everybody_sees_neither_addresses_nor_reasons_nor_users_and_operators_do():
    failures = [Failure(9, CHAT.revision, "n1", NOW - 60, "last words of a log")]
    status_now = seen(*BOTH, failures=failures, stale="HAProxy's socket /run/x is gone")
    status_now["troubles"] = ["chat: avoiding n1"]
    public = document(status_now, Trends(), NOW)
    users = [{"user": "alice", "requests": 3, "per_minute": 9}]
    private = for_operators(public, status_now, users)
    for secret in ("10.0.0.1", "last words", "/run/x", "avoiding", "alice"):
        assert secret not in json.dumps(public)
        assert secret in json.dumps(private)
    assert (public["view"], private["view"]) == ("everybody", "operators")


def test_what_operators_see_belongs_to_the_same_job_also_where_the_next_status_came_between():
    public = document(seen(*BOTH), Trends(), NOW)
    later = seen([job(2, CHAT, address="10.0.0.2"), job(3, CHAT)], gateway(server(2)))
    private = for_operators(public, later, None)
    assert [(replica["job"], replica["address"]) for replica in private["services"][0]["replicas"]] == [(1, ""), (2, "10.0.0.2")]


def test_the_charts_have_a_value_a_minute():
    _, chat = shown(*BOTH)
    assert {key: len(values) for key, values in chat["hour"].items() if isinstance(values, list)} == {
        "requests_per_s": KEPT,
        "tokens_per_s": KEPT,
        "first_token_s": KEPT,
        "busy_share": KEPT,
    }


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "2 h"), (86400, "24 h"), (172800, "2 d")]
)
def test_a_span_is_told_as_people_say_it(seconds, words):
    assert page.span(seconds) == words

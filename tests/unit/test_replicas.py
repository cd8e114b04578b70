"""The replicas planner: what is submitted, drained and ended."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ptolemy.record import DRAINING, STARTING
from ptolemy.replicas import plan
from values import job, server, service

NOW = 2000.0


def planned(services, jobs=(), servers=()):
    return plan({made.name: made for made in services}, jobs, servers, NOW)


def test_missing_replicas_are_submitted():
    assert planned([service(replicas=3)], [job(1, service(replicas=3))]).submit == {"chat": 2}


def test_waiting_and_starting_jobs_count_as_replicas():
    chat = service(replicas=2)
    result = planned([chat], [job(1, chat, STARTING), job(2, chat, STARTING, slurm="PENDING")])
    assert (result.submit, result.end) == ({}, ())


def test_a_waiting_surplus_is_ended_at_once_and_before_a_serving_one():
    chat = service(replicas=1)
    result = planned([chat], [job(1, chat, STARTING, slurm="PENDING"), job(2, chat)], [server(2)])
    assert result.end == (1,)


def test_a_serving_surplus_drains_until_it_is_idle():
    chat = service(replicas=1)
    jobs = [job(1, chat), job(2, chat)]
    assert planned([chat], jobs, [server(1), server(2)]).drain == {2}
    assert planned([chat], jobs, [server(1), server(2)]).end == ()
    assert planned([chat], jobs, [server(1), server(2, admin="drain", in_flight=1)]).end == ()
    assert planned([chat], jobs, [server(1), server(2, admin="drain")]).end == (2,)


def test_the_surplus_that_drains_already_is_the_one_that_goes():
    chat = service(replicas=1)
    result = planned([chat], [job(1, chat), job(2, chat)], [server(1, admin="drain", in_flight=1), server(2)])
    assert result.drain == {1}


def test_a_predecessor_serves_until_its_successor_does():
    old, new = service(context=1024), service(context=2048)
    predecessor, successor = job(1, old), job(2, new, STARTING)
    assert planned([new], [predecessor], [server(1)]).submit == {"chat": 1}
    assert planned([new], [predecessor, successor], [server(1)]).drain == frozenset()
    handed_over = planned([new], [predecessor, job(2, new)], [server(1), server(2)])
    assert handed_over.drain == {1}


def test_a_job_that_asks_to_drain_gets_a_successor_and_drains_once_that_serves():
    chat = service()
    leaving = job(1, chat, DRAINING)
    result = planned([chat], [leaving], [server(1)])
    assert result.submit == {"chat": 1}
    assert planned([chat], [leaving, job(2, chat)], [server(1, admin="drain"), server(2)]).end == (1,)


def test_jobs_of_a_service_that_is_gone_are_drained_and_ended():
    gone = service("gone")
    assert planned([], [job(1, gone)], [server(1, backend="svc_gone")]).drain == {1}
    assert planned([], [job(1, gone)], [server(1, backend="svc_gone", admin="drain")]).end == (1,)


def test_jobs_without_our_record_or_name_are_not_ours_to_end():
    chat = service(replicas=0)
    others = [job(1, chat, record=None), job(2, chat, name="quantize")]
    assert planned([chat], others).end == ()


def test_failing_jobs_are_retried_with_growing_pauses():
    chat = service()
    failed = [job(number, chat, slurm="FAILED", end=NOW - 1) for number in (1, 2, 3)]
    held = planned([chat], failed)
    assert held.submit == {}
    assert "next try" in held.notes[0]
    assert planned([chat], [replace(made, end=NOW - 30) for made in failed]).submit == {"chat": 1}


def test_a_new_revision_is_not_held_back_by_the_failures_of_the_old():
    old, new = service(context=1024), service(context=2048)
    assert planned([new], [job(1, old, slurm="FAILED", end=NOW)]).submit == {"chat": 1}


def test_cancelled_and_preempted_jobs_are_replaced_at_once():
    chat = service(replicas=2)
    ended = [job(1, chat, slurm="CANCELLED", end=NOW), job(2, chat, slurm="PREEMPTED", end=NOW)]
    assert planned([chat], ended).submit == {"chat": 2}


STATES = st.sampled_from(["PENDING", "RUNNING", "COMPLETING", "FAILED", "CANCELLED", "NODE_FAIL"])
SEEN = st.lists(
    st.tuples(STATES, st.sampled_from([1024, 2048]), st.sampled_from([STARTING, "ready", DRAINING]), st.booleans()), max_size=12
)


@given(st.integers(0, 4), SEEN)
def test_whatever_is_seen_no_serving_replica_is_given_up_before_enough_serve(wanted, seen):
    chat = service(replicas=wanted)
    jobs = [job(number, service(context=context), state, slurm) for number, (slurm, context, state, _) in enumerate(seen, 1)]
    jobs = [replace(made, record=replace(made.record, revision=chat.revision)) if made.id % 2 else made for made in jobs]
    servers = [server(number, up=up) for number, (slurm, _, state, up) in enumerate(seen, 1) if slurm == "RUNNING" and state == "ready"]
    result = planned([chat], jobs, servers)
    alive = [made for made in jobs if not made.ended]
    serving = {made.id for made in alive if made.ready and any(other.up and other.job_id == made.id for other in servers)}
    assert len(serving - result.drain) >= min(wanted, len(serving))
    assert set(result.end) <= result.drain <= {made.id for made in alive}
    assert result.submit.get("chat", 0) <= wanted


@given(st.integers(0, 5))
def test_submitting_what_is_missing_settles(wanted):
    chat = service(replicas=wanted)
    jobs = [job(number, chat, STARTING, slurm="PENDING") for number in range(1, planned([chat]).submit.get("chat", 0) + 1)]
    assert (planned([chat], jobs).submit, planned([chat], jobs).end) == ({}, ())

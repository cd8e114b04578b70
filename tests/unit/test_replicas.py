"""The replicas planner: what is submitted, drained, asked to end and cancelled."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ptolemy.failures import Failure
from ptolemy.record import DRAINING, FAILED, STARTING
from ptolemy.replicas import Order, Seen, plan, surge
from values import job, node, record, server, service

NOW = 2000.0


def planned(services, jobs=(), servers=(), targets=None, **seen):
    by_name = {made.name: made for made in services}
    nodes = {made.name: made for made in seen.pop("nodes", [node("n1"), node("n2")])}
    wanted = {name: made.min for name, made in by_name.items()} if targets is None else targets
    return plan(by_name, wanted, Seen(jobs, servers, nodes, now=NOW, **seen))


def orders(count, name="chat", **fields):
    return (Order(name, **fields),) * count


def test_missing_replicas_are_submitted():
    assert planned([service(size=3)], [job(1, service(size=3))]).submit == orders(2)


def test_waiting_and_starting_jobs_count_as_replicas():
    chat = service(size=2)
    result = planned([chat], [job(1, chat, STARTING), job(2, chat, STARTING, slurm="PENDING")])
    assert (result.submit, result.end) == ((), ())


def test_a_waiting_surplus_is_cancelled_at_once_and_before_a_serving_one():
    chat = service(size=1)
    result = planned([chat], [job(1, chat, STARTING, slurm="PENDING"), job(2, chat)], [server(2)])
    assert result.end == (1,)


def test_a_serving_surplus_drains_until_it_is_idle_and_is_then_asked_to_end():
    chat = service(size=1)
    jobs = [job(1, chat), job(2, chat)]
    assert planned([chat], jobs, [server(1), server(2)]).drain == {2}
    assert planned([chat], jobs, [server(1), server(2)]).leave == ()
    assert planned([chat], jobs, [server(1), server(2, admin="drain", in_flight=1)]).leave == ()
    idle = planned([chat], jobs, [server(1), server(2, admin="drain")])
    assert (idle.leave, idle.end) == ((2,), ())


def test_a_replica_that_was_asked_to_end_is_cancelled_only_after_some_patience():
    chat = service(size=0)
    gone = [job(1, chat, DRAINING)]
    patient = planned([chat], gone, asked={1: NOW - 59})
    assert (patient.leave, patient.end) == ((), ())
    assert planned([chat], gone, asked={1: NOW - 61}).end == (1,)


def test_the_surplus_that_drains_already_is_the_one_that_goes():
    chat = service(size=1)
    result = planned([chat], [job(1, chat), job(2, chat)], [server(1, admin="drain", in_flight=1), server(2)])
    assert result.drain == {1}


def test_a_predecessor_serves_until_its_successor_does():
    old, new = service(context=1024), service(context=2048)
    predecessor, successor = job(1, old), job(2, new, STARTING)
    assert planned([new], [predecessor], [server(1)]).submit == orders(1)
    assert planned([new], [predecessor, successor], [server(1)]).drain == frozenset()
    assert planned([new], [predecessor, job(2, new)], [server(1), server(2)]).drain == {1}


def test_a_rollout_takes_few_more_gpus_at_a_time_than_the_service_has():
    old, new = service(size=8, context=1024), service(size=8, context=2048)
    before = [job(number, old) for number in range(1, 9)]
    serving = [server(number) for number in range(1, 9)]
    assert planned([new], before, serving).submit == orders(surge(8))
    half_way = [*before[2:], job(9, new), job(10, new)]
    result = planned([new], half_way, [*serving[2:], server(9), server(10)])
    assert result.submit == orders(2)


def test_a_job_that_asks_to_drain_gets_no_request_and_a_successor():
    chat = service()
    leaving = planned([chat], [job(1, chat, DRAINING)], [server(1)])
    assert leaving.submit == orders(1)
    assert leaving.drain == {1}


def test_a_replica_that_is_being_preempted_drains_at_once_though_none_serves_yet():
    chat = service()
    result = planned([chat], [job(1, chat, preempted=True)], [server(1)])
    assert (result.drain, result.submit) == ({1}, orders(1))


def test_a_time_limit_that_comes_near_is_a_handover():
    chat = service(drain_before_end=100)
    # It waited 10 s in the queue and took 40 s to load: its successor needs as long, with a minute to spare.
    predecessor = job(1, chat, end=NOW + 100 + 10 + 40 + 60, submit=990, start=1000, record=record(chat, took=40))
    assert planned([chat], [replace(predecessor, end=predecessor.end + 1)], [server(1)]).submit == ()
    begun = planned([chat], [predecessor], [server(1)])
    assert (begun.submit, begun.drain) == (orders(1), frozenset())
    assert planned([chat], [predecessor, job(2, chat, STARTING)], [server(1)]).drain == frozenset()
    served = planned([chat], [predecessor, job(2, chat)], [server(1), server(2)])
    assert (served.drain, served.submit) == ({1}, ())


def test_where_many_end_at_once_the_first_are_handed_over_earlier():
    chat = service(size=4, drain_before_end=100)
    jobs = [job(number, chat, end=NOW + 100 + 4 * 70, submit=990, start=1000) for number in range(1, 5)]
    result = planned([chat], jobs, [server(number) for number in range(1, 5)])
    assert result.submit == orders(surge(4))
    assert planned([chat], [replace(made, end=made.end + 1) for made in jobs]).submit == ()


def test_a_replica_serves_half_of_its_time_before_it_is_replaced():
    chat = service(drain_before_end=300)
    short = job(1, chat, start=NOW - 29, end=NOW + 31)
    assert planned([chat], [short], [server(1)]).submit == ()
    assert planned([chat], [replace(short, start=NOW - 31)], [server(1)]).submit == orders(1)


def test_a_node_that_is_being_emptied_is_handed_over():
    chat = service()
    closed = [node("n1", closed=True), node("n2")]
    begun = planned([chat], [job(1, chat)], [server(1)], nodes=closed)
    assert (begun.submit, begun.drain) == (orders(1), frozenset())
    served = planned([chat], [job(1, chat), job(2, chat, host="n2")], [server(1), server(2)], nodes=closed)
    assert served.drain == {1}


def test_a_replica_that_has_been_down_for_long_gets_a_successor_and_may_come_back():
    chat = service()
    down = server(1, up=False, unchanged=60)
    assert planned([chat], [job(1, chat)], [replace(down, unchanged=59)]).submit == ()
    lost = planned([chat], [job(1, chat)], [down])
    assert (lost.submit, lost.drain) == (orders(1), frozenset())
    back = planned([chat], [job(1, chat), job(2, chat, STARTING)], [server(1)])
    assert (back.end, back.drain) == ((2,), {2})


def test_requeued_jobs_that_slurm_holds_are_released():
    chat = service(size=2)
    held = job(1, chat, slurm="PENDING", restart=1, reason="BeginTime")
    assert planned([chat], [held, replace(held, id=2, reason="Resources")]).release == (1,)


def test_extra_replicas_are_ordered_last_and_given_up_first():
    chat = service(min=1, max=4, opportunistic=2)
    assert planned([chat], targets={"chat": 4}).submit == (*orders(2), *orders(2, opportunistic=True))
    extra = record(chat, opportunistic=True)
    jobs = [job(1, chat, record=extra), job(2, chat), job(3, chat)]
    assert planned([chat], jobs, [server(1), server(2), server(3)], targets={"chat": 2}).drain == {1}


def test_an_extra_replica_serves_until_an_ordinary_one_does():
    chat = service(min=1, max=2, opportunistic=1)
    result = planned([chat], [job(1, chat, record=record(chat, opportunistic=True))], [server(1)], targets={"chat": 1})
    assert (result.submit, result.drain) == (orders(1), frozenset())


def test_a_service_that_is_confined_to_some_nodes_excludes_the_others():
    result = planned([service(nodes="n[2-3]")], nodes=[node("n1"), node("n2"), node("n3"), node("login", partition="cpu")])
    assert result.submit == orders(1, outside=frozenset(["n1"]))


def test_jobs_of_a_service_that_is_gone_are_drained_and_ended():
    gone = service("gone")
    assert planned([], [job(1, gone)], [server(1, backend="svc_gone")]).drain == {1}
    assert planned([], [job(1, gone)], [server(1, backend="svc_gone", admin="drain")]).leave == (1,)


def test_jobs_without_our_record_or_name_are_not_ours_to_end():
    chat = service(size=0)
    others = [job(1, chat, record=None), job(2, chat, name="quantize")]
    assert planned([chat], others) == planned([chat])


def test_a_failed_replica_is_left_to_end_by_itself_so_that_slurm_calls_it_failed():
    chat = service()
    assert planned([chat], [job(1, chat, FAILED, record=record(chat, FAILED, ports=()))]).end == ()


def failed(count, of, on="n1", at=NOW - 1):
    return [Failure(number, of.revision, on, at - 10 * (count - 1 - number), "no GPU") for number in range(count)]


def test_after_failures_the_next_try_waits():
    chat = service()
    held = planned([chat], failures=failed(3, chat))
    assert held.submit == ()
    assert "keep failing" in held.notes[0]
    assert planned([chat], failures=failed(3, chat, at=NOW - 30)).submit[0].service == "chat"


def test_the_next_try_avoids_a_node_on_which_replicas_keep_failing():
    chat = service()
    assert planned([chat], failures=failed(2, chat, at=NOW - 30)).submit == orders(1, avoid=frozenset(["n1"]))


def test_a_service_of_one_node_is_never_kept_from_it():
    result = planned([service(nodes="n1")], failures=failed(2, service(nodes="n1"), at=NOW - 30))
    assert result.submit == orders(1, outside=frozenset(["n2"]))


def test_a_waiting_job_that_is_kept_from_a_node_without_need_is_replaced():
    chat = service()
    waiting = job(1, chat, STARTING, slurm="PENDING", record=record(chat, STARTING, avoids=("n1",)))
    assert planned([chat], [waiting], failures=failed(2, chat, at=NOW - 30)).end == ()
    mended = planned([chat], [waiting], failures=failed(2, chat, at=NOW - 400))
    assert (mended.end, mended.submit) == ((1,), orders(1))


def test_a_new_revision_is_not_held_back_by_the_failures_of_the_old():
    old, new = service(context=1024), service(context=2048)
    assert planned([new], failures=failed(3, old)).submit == orders(1)


STATES = st.sampled_from(["PENDING", "RUNNING", "COMPLETING", "FAILED", "CANCELLED", "NODE_FAIL"])
SEEN = st.lists(
    st.tuples(
        STATES,
        st.sampled_from([1024, 2048]),
        st.sampled_from([STARTING, "ready", DRAINING]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["n1", "n2"]),
        st.sampled_from([NOW + 50, NOW + 90000]),
    ),
    max_size=12,
)


@given(st.integers(0, 6), st.integers(0, 3), SEEN, st.booleans())
def test_whatever_is_seen_no_serving_replica_is_given_up_before_enough_serve(target, opportunistic, seen, closed):
    chat = service(min=0, max=6, opportunistic=opportunistic, context=1024)
    jobs = [
        job(number, chat, state, slurm, host=host, end=end, record=record(service(context=context), state, opportunistic=extra))
        for number, (slurm, context, state, _, extra, host, end) in enumerate(seen, 1)
    ]
    servers = [server(number, up=made[3]) for number, made in enumerate(seen, 1) if made[0] == "RUNNING" and made[2] == "ready"]
    result = planned([chat], jobs, servers, targets={"chat": target}, nodes=[node("n1", closed=closed), node("n2")])
    alive = [made for made in jobs if not made.ended]
    serving = {made.id for made in alive if made.ready and any(other.up and other.job_id == made.id for other in servers)}
    assert len(serving - result.drain) >= min(target, len(serving))
    assert {*result.leave, *result.end} <= result.drain <= {made.id for made in alive}
    assert len(result.submit) + len(alive) - len(result.drain) <= max(target + surge(target), len(alive))
    assert len(result.submit) <= target


@given(st.integers(0, 6), st.integers(0, 3))
def test_submitting_what_is_missing_settles(target, opportunistic):
    chat = service(min=0, max=6, opportunistic=opportunistic)
    missing = planned([chat], targets={"chat": target}).submit
    jobs = [
        job(number, chat, slurm="PENDING", record=record(chat, STARTING, opportunistic=order.opportunistic))
        for number, order in enumerate(missing, 1)
    ]
    settled = planned([chat], jobs, targets={"chat": target})
    assert (settled.submit, settled.drain) == ((), frozenset())
    assert len(missing) == target

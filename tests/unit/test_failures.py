"""What failed replicas teach: how long to wait, which nodes to avoid, what to tell people."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptolemy.failures import FIRST_AVOIDANCE, FIRST_RETRY, LAST_RETRY, LOOP, MEMORY, Failure, lesson, remember
from ptolemy.record import DRAINING, FAILED, STARTING
from values import job, node, record, service

CHAT = service()
NODES = {name: node(name) for name in ("n1", "n2", "n3")}
NOW = 10_000.0


def failed(number=1, at=NOW, words="no GPU"):
    """A job that said why it failed."""
    return job(number, CHAT, slurm="FAILED", host="n1", start=at - 100, end=at, reason="NonZero", record=record(CHAT, FAILED, reason=words))


def failures(*at, where="n1", of=CHAT, words="no GPU"):
    return [Failure(int(moment), of.revision, where, moment, words) for moment in at]


def learnt(known, jobs=(), nodes=NODES, of=CHAT, now=10.0):
    places = [{made.name for made in nodes.values() if "gpu" in made.partitions and not made.closed}]
    return lesson(of, remember(known, jobs, now), places, now)


# Which jobs count


def test_a_failed_replica_is_remembered_with_its_last_words():
    (failure,) = remember((), [failed(7)], NOW)
    assert failure == Failure(7, CHAT.revision, "n1", NOW, "no GPU")


def test_a_replica_that_said_so_has_failed_before_its_job_ends():
    """Else the next one would be submitted at once, and to the same node."""
    lingering = replace(failed(7, words="no GPU"), state="RUNNING", end=NOW + 86_400)
    known = remember((), [lingering], NOW)
    assert known == (Failure(7, CHAT.revision, "n1", NOW, "no GPU"),)
    assert remember(known, [replace(failed(7), end=NOW + 3)], NOW + 4) == known
    assert remember((), [replace(lingering, restart=1)], NOW) == (), "of the run before"


def test_without_last_words_slurm_says_why():
    killed = replace(failed(), state="OUT_OF_MEMORY", record=record(CHAT, STARTING), reason="OutOfMemory")
    assert remember((), [killed], NOW)[0].reason == "OUT_OF_MEMORY (OutOfMemory)"


def test_last_words_of_an_earlier_run_are_not_this_run_s():
    again = replace(failed(), restart=1)
    assert remember((), [again], NOW)[0].reason == "FAILED (NonZero)"


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED", "NODE_FAIL", "TIMEOUT", "RUNNING", "PENDING"])
def test_what_slurm_or_people_ended_is_no_failure(state):
    assert remember((), [replace(failed(), state=state, record=record(CHAT, STARTING))], NOW) == ()


def test_a_replica_that_ended_at_once_without_being_asked_failed():
    quick = replace(failed(), state="COMPLETED", start=NOW - 5, record=record(CHAT, STARTING))
    assert len(remember((), [quick], NOW)) == 1
    assert remember((), [replace(quick, record=record(CHAT, DRAINING))], NOW) == ()
    assert remember((), [replace(quick, start=NOW - 500)], NOW) == ()


def test_somebody_s_job_without_a_record_teaches_nothing():
    assert remember((), [replace(failed(), record=None)], NOW) == ()


def test_failures_are_remembered_for_an_hour_though_slurm_forgets_them_sooner():
    known = remember((), [failed(1), failed(2, at=NOW + 60)], NOW + 60)
    assert remember(known, [], NOW + MEMORY - 1) == known
    assert [failure.job_id for failure in remember(known, [], NOW + MEMORY)] == [2]
    assert remember((), [failed(1)], NOW + MEMORY) == ()


def test_a_job_that_is_still_listed_counts_once_and_the_oldest_comes_first():
    jobs = [failed(9, at=NOW - 50), failed(3, at=NOW)]
    known = remember(remember((), jobs, NOW), jobs, NOW + 1)
    assert [failure.job_id for failure in known] == [9, 3]


# When to try again


def test_without_failures_nothing_waits_and_nothing_is_said():
    assert (learnt([]).retry_at, learnt([]).avoid, learnt([]).notes) == (0.0, frozenset(), ())


def test_the_pause_grows_with_each_failure():
    assert [pause_after(count) for count in range(1, 6)] == [5, 10, 20, 40, 80]


def pause_after(count):
    return learnt(failures(*range(10, 10 * count + 1, 10))).retry_at - 10 * count


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200))
def test_the_pause_is_bounded_and_never_shrinks(count):
    assert (FIRST_RETRY, LAST_RETRY) == (5, 300)
    assert FIRST_RETRY <= pause_after(count) <= pause_after(count + 1) <= LAST_RETRY


def test_a_replica_that_serves_ends_the_row():
    row = failures(100, 200, 300)
    assert learnt(row, [job(9, CHAT, start=301.0)]).retry_at == 0
    assert learnt(row, [job(9, CHAT, start=301.0)]).notes == ()
    assert learnt([*row, *failures(400)], [job(9, CHAT, start=301.0, host="n2")]).retry_at == 400 + FIRST_RETRY


def test_a_row_that_was_ended_stays_ended_when_that_replica_is_gone():
    known = remember(failures(100, 200, 300), [job(9, CHAT, start=301.0, host="n2")], 310.0)
    assert learnt(known).retry_at == 0
    assert learnt([*known, *failures(400, where="n3")]).retry_at == 400 + FIRST_RETRY


def test_replicas_that_fail_together_have_failed_once():
    together = [Failure(number, CHAT.revision, f"n{number}", 100 + number / 4, "no GPU") for number in range(16)]
    assert learnt(together).retry_at == together[-1].at + FIRST_RETRY


def test_a_replica_that_served_before_the_failures_or_does_not_serve_yet_ends_nothing():
    row = failures(100, 200)
    for other in (job(9, CHAT, start=50.0), job(9, CHAT, STARTING, start=301.0), job(9, CHAT, start=301.0, preempted=True)):
        assert learnt(row, [other]).retry_at == 200 + 2 * FIRST_RETRY


def test_failures_and_successes_of_other_revisions_do_not_count():
    other = service(context=1024)
    assert learnt(failures(10, 20, 30, of=other)) == learnt([])
    assert learnt(failures(10, 20), [job(9, other, start=301.0)]).retry_at == 20 + 2 * FIRST_RETRY


# Which nodes to avoid


def test_a_node_is_avoided_from_the_second_failure_on():
    assert learnt(failures(1)).avoid == frozenset()
    assert learnt(failures(1, 2)).avoid == {"n1"}
    assert learnt([*failures(1), *failures(2, where="n2")]).avoid == frozenset()


def test_only_a_success_on_the_node_itself_redeems_it():
    assert learnt(failures(1, 2), [job(9, CHAT, start=3.0, host="n2")]).avoid == {"n1"}
    assert learnt(failures(1, 2), [job(9, CHAT, start=3.0, host="n1")]).avoid == frozenset()
    assert learnt(failures(1, 2, 5), [job(9, CHAT, start=3.0, host="n1")]).avoid == frozenset()
    assert learnt(failures(1, 2, 5, 6), [job(9, CHAT, start=3.0, host="n1")]).avoid == {"n1"}


def test_a_node_is_tried_again_after_a_pause_that_doubles():
    for row, pause in ((failures(1, 2), FIRST_AVOIDANCE), (failures(1, 2, 3), 2 * FIRST_AVOIDANCE)):
        assert learnt(row, now=row[-1].at + pause - 1).avoid == {"n1"}
        assert learnt(row, now=row[-1].at + pause).avoid == frozenset()


def test_where_replicas_fail_on_every_usable_node_none_is_avoided():
    everywhere = [*failures(1, 2), *failures(3, 4, where="n2")]
    assert learnt(everywhere, nodes={"n1": node("n1"), "n2": node("n2")}).avoid == frozenset()
    assert learnt(everywhere).avoid == {"n1", "n2"}
    closed = {"n1": node("n1"), "n2": node("n2"), "n3": node("n3", closed=True), "n4": node("n4", partition="cpu")}
    assert learnt(everywhere, nodes=closed).avoid == frozenset()


def test_a_failure_that_never_had_a_node_blames_none():
    assert learnt(failures(1, 2, 3, where="")).avoid == frozenset()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["", "n1", "n2", "n3"])), max_size=12), st.integers(0, 50))
def test_a_usable_node_is_always_left(seen, started):
    known = [Failure(number, CHAT.revision, where, float(at), "x") for number, (at, where) in enumerate(sorted(seen))]
    assert not NODES.keys() <= learnt(known, [job(99, CHAT, start=float(started))]).avoid


# What people read


def test_a_crash_loop_is_told_once_with_where_it_began_and_its_words():
    assert learnt(failures(*range(10, 10 * LOOP, 10), where="")).notes == ()
    row = [*failures(10, words="model.gguf: no such file"), *failures(20, where="n2"), *failures(30, where="n3")]
    told = (f"chat: replicas of revision {CHAT.revision} keep failing, first on n1: model.gguf: no such file",)
    assert learnt(row).notes == told
    assert learnt([*row, *failures(40, where="n2", words="the same, at another time")], now=50.0).notes[0] == told[0]
    assert "first on no node" in learnt(failures(10, 20, 30, where="")).notes[0]


def test_an_avoided_node_is_told_with_its_own_words():
    known = [*failures(1, words="GPU fell off the bus"), *failures(2), *failures(3, where="n2", words="else")]
    assert learnt(known).notes == ("chat: avoiding n1, where replicas keep failing: GPU fell off the bus",)

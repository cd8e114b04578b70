"""How far a change has come: what counts as done, and what people read meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ptolemy import progress
from ptolemy.errors import ObservationError
from ptolemy.memory import Memory
from ptolemy.progress import Guest
from ptolemy.record import DRAINING, READY, STARTING
from ptolemy.status import describe
from values import config, gateway, job, server, service

NOW = 2000.0
OURS, THEIRS = (Guest(number, uid, user, name) for number, uid, user, name in ((1, 6030, "ptolemy", "ptolemy-chat"), (9, 1000, "eva", "x")))


def status(of, jobs, servers=(), targets=None, **fields):
    memory = Memory()
    memory.targets = {"chat": of.min} if targets is None else targets
    shown = describe(config(of), jobs, gateway(*servers), memory)
    return {"time": NOW, "observed_at": NOW, "stale_reason": "", "troubles": [], "services": shown, **fields}


def look(of, shown, settled=True):
    return progress.services(config(of), shown, NOW, settled=settled)


def test_a_service_with_its_replicas_is_done():
    chat = service(size=2)
    seen = look(chat, status(chat, [job(1, chat), job(2, chat)], [server(1), server(2)]))
    assert (seen.done, seen.lines) == (True, ["chat: 2 of 2 replicas ready"])


def test_what_is_missing_is_told_by_what_it_does():
    chat = service(size=4)
    jobs = [job(1, chat), job(2, chat, STARTING, host="n2"), job(3, chat, slurm="PENDING", reason="Resources"), job(4, chat)]
    seen = look(chat, status(chat, jobs, [server(1)]))
    assert not seen.done
    assert seen.lines == ["chat: 1 of 4 replicas ready, 1 not reached by HAProxy on n1, 1 starting on n2, 1 waiting (Resources)"]
    assert "Resources" in seen.next_step


def test_replicas_that_are_too_many_are_ready_but_not_settled():
    chat = service(size=1)
    shown = status(chat, [job(1, chat), job(2, chat)], [server(1), server(2, admin="drain", in_flight=3)])
    assert look(chat, shown, settled=False).done
    seen = look(chat, shown)
    assert (seen.done, seen.lines) == (False, ["chat: 1 of 1 replicas ready, 1 draining, still answering on n1"])


def test_a_predecessor_that_still_serves_is_not_settled():
    chat = service(size=1)
    old = replace(chat, slots=99)
    shown = status(chat, [job(1, old), job(2, chat)], [server(1), server(2)])
    assert look(chat, shown, settled=False).done
    assert not look(chat, shown).done


def test_an_extra_replica_may_wait_for_ever():
    chat = service(min=2, max=2, opportunistic=1)
    extra = replace(job(2, chat, slurm="PENDING", reason="Priority"), record=replace(job(2, chat).record, opportunistic=True))
    seen = look(chat, status(chat, [job(1, chat), extra], [server(1)]))
    assert seen.done
    assert seen.lines == ["chat: 1 of 2 replicas ready, 1 extra one waiting (Priority)"]


@pytest.mark.parametrize("change", [{"min": 0}, {"max": 3}, {"opportunistic": 1}, {"slots": 9}])
def test_nothing_is_believed_before_the_daemon_has_taken_the_file_up(change):
    chat = service(size=1)
    seen = look(replace(chat, **change), status(chat, [job(1, chat)], [server(1)]))
    assert not seen.done
    assert "has not taken the services file up yet" in seen.lines[0]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"stale_reason": "squeue failed"}, "STALE: squeue failed"),
        ({"time": NOW - 100}, "STALE: ptolemyd has said nothing"),
    ],
)
def test_a_stale_view_is_shown_and_is_no_success(fields, line):
    chat = service(size=1)
    seen = look(chat, status(chat, [job(1, chat)], [server(1)], **fields))
    assert not seen.done
    assert seen.lines[0].startswith(line)
    assert "systemctl status ptolemyd" in seen.next_step


def test_a_daemon_that_has_not_written_yet_is_no_success():
    seen = look(service(size=0), {})
    assert not seen.done
    assert seen.lines[0].startswith("STALE: ptolemyd has written no status")


def test_sleeping_and_stopped_services_are_done_and_told_apart():
    nap, off = service(min=0, max=3), service(size=0)
    assert look(nap, status(nap, [])).lines == ["chat: asleep, until somebody asks"]
    assert look(off, status(off, [])).lines == ["chat: stopped"]
    assert look(off, status(off, [])).done
    assert not look(off, status(off, [job(1, off)], [server(1, admin="drain")])).done


def test_the_daemons_troubles_are_shown():
    chat = service(size=1)
    assert look(chat, status(chat, [], troubles=["chat: avoiding n2"])).lines[-1] == "note: chat: avoiding n2"


# --------------------------------------------------------------------------------------------------------------- a node


def look_at_node(guests, shown, of, closed=True, **fields):
    return progress.node("n1", closed, guests, config(of), shown, NOW, **fields)


def test_a_node_is_empty_when_no_replica_is_left_whoever_else_is_there():
    chat = service(size=1)
    shown = status(chat, [job(2, chat, host="n2")], [server(2)])
    seen = look_at_node([THEIRS], shown, chat)
    assert (seen.done, seen.lines) == (True, ["n1: no replicas left", "n1: 1 other job left (eva)"])
    assert not look_at_node([THEIRS], shown, chat, all_jobs=True).done
    assert look_at_node([], shown, chat, all_jobs=True).done


def test_what_is_left_on_a_node_is_told_with_what_holds_it_up():
    chat = service(size=1)
    jobs = [job(1, chat), job(2, chat, slurm="PENDING", reason="Resources")]
    seen = look_at_node([OURS], status(chat, jobs, [server(1)]), chat)
    assert not seen.done
    assert seen.lines == ["n1: 1 replica left", "n1: job 1 (ptolemy-chat) ready", "chat: 1 of 1 replicas ready, 1 waiting (Resources)"]
    assert "chat (Resources)" in seen.next_step
    assert "scancel 1 on the gateway" in seen.next_step


def test_a_job_of_the_account_that_slurm_still_ends_is_left():
    chat = service(size=1)
    seen = look_at_node([OURS], status(chat, [], []), chat)
    assert (seen.done, seen.lines[1]) == (False, "n1: job 1 (ptolemy-chat) is ending")


def test_a_node_that_does_not_drain_is_never_done():
    chat = service(size=0)
    assert not look_at_node([], status(chat, []), chat, closed=False).done


def test_a_drained_replica_with_requests_says_so():
    chat = service(size=1)
    shown = status(chat, [job(1, chat, DRAINING), job(2, chat, READY, host="n2")], [server(1, admin="drain", in_flight=1), server(2)])
    assert look_at_node([OURS], shown, chat).lines[1] == "n1: job 1 (ptolemy-chat) draining, still answering"


def test_squeues_lines_are_read_whatever_a_job_is_called():
    text = "1|RUNNING|6030|ptolemy|ptolemy-chat\n2|PENDING|1000|eva|x\n3|COMPLETING|1000|eva|a|b\n"
    assert progress.parse_guests(text) == [OURS, Guest(3, 1000, "eva", "a|b")]
    with pytest.raises(ObservationError, match="no job: slurm is down"):
        progress.parse_guests("slurm is down\n")

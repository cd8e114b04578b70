"""The daemon: a failed observation takes nothing away and is told; what people see is true."""

from __future__ import annotations

import json
import logging
import os
import time

import pytest

from ptolemy import status
from ptolemy.clock import SteadyClock
from ptolemy.daemon import Daemon, lock
from ptolemy.errors import ObservationError, PtolemyError
from ptolemy.gateway import User
from values import gateway, job, record, server, service

CHAT = service()


class Source:
    """Stands for Slurm or HAProxy: answers what it is set to, remembers what it is asked to change."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def observe(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def jobs(self, expected):
        self.expected = expected
        return self.observe()

    def nodes(self):
        return {}

    def users(self):
        return [User("alice", 3, 9)]

    def __getattr__(self, verb):
        def change(*arguments):
            self.calls.append((verb, *arguments))
            return len(self.calls)  # as a job's id

        return change


@pytest.fixture
def daemon(tmp_path):
    fields = {key: CHAT.__dict__[key] for key in ("model", "model_path", "model_sha256", "min", "max", "partition")}
    site = {"user": "ptolemy", "uid": 6030, "status_file": str(tmp_path / "status.json"), "job_template": str(tmp_path / "replica.sh")}
    (tmp_path / "replica.sh").write_text("#!/bin/bash\n$sbatch_options\n")
    (tmp_path / "services.json").write_text(json.dumps({"site": site, "services": {"chat": fields}}))
    made = Daemon(str(tmp_path / "services.json"))
    made._slurm, made._haproxy = Source([]), Source(gateway())
    return made


def seen(daemon):
    return status.read(daemon.config.site.status_file)


def test_a_tick_submits_what_is_missing_and_says_so_in_one_sentence(daemon):
    assert daemon.tick() == "submit chat"
    assert seen(daemon)["last_change"]["sentence"] == "submit chat"
    daemon._slurm.answer = [job(1, CHAT, "starting")]
    assert daemon.tick() == ""


def test_while_slurm_gives_no_answer_nothing_is_removed_and_the_view_is_stale(daemon, caplog):
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT)], gateway(server(1))
    daemon.tick()
    daemon._slurm.answer = ObservationError("squeue gave no answer within 15 s")
    with caplog.at_level(logging.WARNING):
        assert daemon.tick() == ""
        daemon.tick()
    assert [message for message in caplog.messages if "squeue" in message] == ["squeue gave no answer within 15 s"]
    assert not daemon._haproxy.calls
    assert not daemon._slurm.calls
    shown = seen(daemon)
    assert shown["counters"]["skipped"] == 2
    assert "the view is stale since" in "\n".join(status.render(shown, time.time()))
    assert shown["services"][0]["servers"]


def test_a_restarted_haproxy_gets_its_servers_back_even_without_slurm(daemon):
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT)], gateway(server(1))
    daemon.tick()
    daemon._slurm.answer, daemon._haproxy.answer = ObservationError("away"), gateway()
    assert daemon.tick() == "add svc_chat/j1r0p20000"


def test_who_asks_how_much_is_told_to_the_accounts_group_only(daemon):
    os.umask(0o022)
    daemon._slurm.answer = [job(1, CHAT)]
    daemon.tick()
    path = daemon.config.site.users_file
    with open(path) as file:
        assert json.load(file)["users"] == [{"user": "alice", "requests": 3, "per_minute": 9}]
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert "alice" not in json.dumps(seen(daemon))


def test_a_failed_look_at_the_users_is_no_trouble(daemon):
    def fail():
        raise ObservationError("no socket")

    daemon._slurm.answer = [job(1, CHAT)]
    daemon._haproxy.users = fail
    daemon.tick()
    assert "no socket" not in str(seen(daemon)["troubles"]) and not seen(daemon)["stale_reason"]
    assert not os.path.exists(daemon.config.site.users_file)


def test_a_replica_tells_its_gpus_by_its_ports(daemon):
    two_gpus = record(CHAT, ports=(20000 + 3 * 16, 20000 + 3 * 16 + 1, 20000 + 5 * 16 + 64 * 16))
    daemon._slurm.answer = [job(1, CHAT, record=two_gpus), job(2, CHAT, "starting", record=record(CHAT, "starting", ports=()))]
    daemon.tick()
    assert [replica["gpus"] for replica in seen(daemon)["services"][0]["replicas"]] == [[3, 5], []]


def test_while_haproxy_gives_no_answer_no_job_is_touched(daemon):
    daemon._haproxy.answer = ObservationError("no socket")
    assert daemon.tick() == ""
    assert not daemon._slurm.calls


def test_slurm_must_account_for_what_it_showed_before_and_for_every_healthy_server(daemon):
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT)], gateway(server(2), server(3, up=False))
    daemon.tick()
    assert daemon._slurm.expected == {2}
    daemon.tick()
    assert daemon._slurm.expected == {1, 2}


def test_the_loop_turns_faster_while_a_replica_starts(daemon):
    daemon._slurm.answer = [job(1, CHAT)]
    daemon.tick()
    calm = daemon.pause
    daemon._slurm.answer = [job(1, CHAT, "starting")]
    daemon.tick()
    assert daemon.pause < calm


def test_a_second_daemon_is_refused_for_as_long_as_the_first_lives(tmp_path):
    first = lock(str(tmp_path))
    with pytest.raises(PtolemyError, match="another ptolemyd runs on this host"):
        lock(str(tmp_path))
    os.close(first)
    os.close(lock(str(tmp_path)))


def test_a_clock_that_jumps_is_told_and_touches_no_replica(daemon, caplog):
    wall = [time.time()]
    daemon._clock = SteadyClock(lambda: wall[0], time.monotonic)
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT, start=wall[0] - 60, end=wall[0] + 7200)], gateway(server(1))
    daemon.tick()
    for jump in (+7000, -20000):
        wall[0] += jump
        with caplog.at_level(logging.WARNING):
            assert daemon.tick() == ""
        assert "the clock was set by" in caplog.text
    assert not daemon._slurm.calls


def test_a_wrong_services_file_leaves_the_last_good_one_in_force(daemon, caplog):
    with open(daemon._path, "a") as file:
        file.write("}")
    daemon._slurm.answer = [job(1, CHAT)]
    with caplog.at_level(logging.WARNING):
        assert daemon.tick() == "add svc_chat/j1r0p20000"
    assert "the last good one stays in force" in caplog.text
    assert list(daemon.config.services) == ["chat"]


def test_status_shows_services_replicas_and_servers(daemon):
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT, end=time.time() + 600)], gateway(server(1, in_flight=2))
    daemon.tick()
    text = "\n".join(status.render(seen(daemon), time.time()))
    assert "chat: ready, 1 of 1 replicas ready, 2 requests running, 0 queued" in text
    assert "job 1 RUNNING on n1: ready" in text
    assert "j1r0p20000 10.0.0.1:20000 ready up, 2 of 8 slots busy" in text


def test_a_daemon_that_says_nothing_is_called_stale(daemon):
    daemon.tick()
    assert "ptolemyd has said nothing for" in next(status.render(seen(daemon), time.time() + 3600))


def test_wait_ends_when_every_replica_is_ready_and_gives_up_in_time(daemon, capsys):
    path = daemon.config.site.status_file
    daemon.tick()
    assert not status.wait(path, 0)
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT)], gateway(server(1))
    daemon.tick()
    assert status.wait(path, 5)
    assert "chat 1/1" in capsys.readouterr().out


def test_the_gateway_is_told_state_revision_slots_and_model_where_it_has_places_for_them(daemon):
    places = {"chat": "starting", "chat/revision": "unknown", "chat/slots": "0", "chat/about": '"model":"unknown"'}
    daemon._slurm.answer, daemon._haproxy.answer = [job(1, CHAT)], gateway(server(1), states=places)
    daemon.tick()
    told = [call[1:] for call in daemon._haproxy.calls if call[0] == "tell"]
    chat = daemon.config.services["chat"]
    assert told == [
        ("chat", "ready"),
        ("chat/revision", chat.revision),
        ("chat/slots", str(server(1).slots)),
        ("chat/about", json.dumps(chat.about, separators=(",", ":"))[1:-1]),
    ]
    daemon._haproxy.answer, daemon._haproxy.calls = gateway(server(1)), []
    daemon.tick()
    assert [call for call in daemon._haproxy.calls if call[0] == "tell"] == []

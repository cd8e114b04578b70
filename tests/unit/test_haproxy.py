"""The HAProxy adapter: its answers become values, commands are those that were measured, a failed socket is an error."""

from __future__ import annotations

import socket
import threading

import pytest

from ptolemy.errors import ChangeError, ObservationError
from ptolemy.gateway import Gate, User
from ptolemy.haproxy import HAProxy, parse, parse_users
from values import endpoint

INFO = "Name: HAProxy\nPid: 42\nUptime_sec: 7\n"
STAT = (
    "# pxname,svname,qcur,scur,slim,stot,econ,eresp,hrsp_5xx,rtime,status,type,\n"
    "stats,BACKEND,0,0,900,9,,,,,UP,1,\n"
    "svc_chat,hold,0,1,1,9,,,,,UP,2,\n"
    "svc_chat,j7r0p20000,0,3,8,9,1,2,3,40,UP,2,\n"
    "svc_chat,j8r0p20000,0,1,8,9,,,,,DOWN,2,\n"
    "svc_chat,j9r0p20000,0,0,8,9,,,,,MAINT,2,\n"
    "svc_chat,BACKEND,5,4,900,9,,,,,UP,1,\n"
)
STATE = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_time_since_last_change srv_port\n"
    "2 svc_chat 1 hold 0.0.0.0 2 0 100 9 0\n"
    "2 svc_chat 1000 j7r0p20000 10.0.0.1 2 0 100 9 20000\n"
    "2 svc_chat 1001 j8r0p20000 10.0.0.2 0 8 100 9 20000\n"
    "2 svc_chat 1002 j9r0p20000 10.0.0.3 0 1 100 9 20000\n"
    "3 other 1 j1r0p1 10.0.0.9 2 0 100 9 1\n"
)


def test_an_observation_holds_our_servers_and_the_queue():
    seen = parse(INFO, STAT, STATE, "0x1 svc_chat 1\n0x2 svc_gone 1\n0x3 svc_chat/j7r0p20000 1\n")
    # The one that `hold` has waits, too.
    assert (seen.pid, dict(seen.queued), dict(seen.arrived)) == (42, {"svc_chat": 6}, {"svc_chat": 9})
    assert [(server.name, server.admin, server.up, server.in_flight, server.slots, server.id) for server in seen.servers] == [
        ("j7r0p20000", "ready", True, 3, 8, 1000),
        ("j8r0p20000", "drain", False, 1, 8, 1001),
        ("j9r0p20000", "maint", False, 0, 8, 1002),
    ]
    assert seen.servers[0].job_id == 7
    # It refused one connection, broke two answers off, and answered three with 500 or more.
    assert [(server.requests, server.errors, server.response_ms, server.weight) for server in seen.servers[:2]] == [
        (9, 6, 40, 100),
        (9, 0, 0, 100),
    ]
    assert [server.listed for server in seen.servers] == [True, False, False]
    assert seen.awake == {"svc_chat": True}
    assert parse(INFO, STAT, STATE, "0x1 svc_chat unknown\n").awake == {"svc_chat": None}
    assert parse(INFO, STAT, STATE, "Unknown map identifier.\n").awake == {}


def test_a_batch_request_that_is_through_the_gate_counts_once():
    # 9 came, 4 without the gate; 3 wait before it; of the 2 that are through, one runs and one waits.
    stat = (
        "# pxname,svname,qcur,scur,slim,stot,econ,eresp,hrsp_5xx,rtime,status,type,\n"
        "batch_chat,gate,0,2,6,2,,,,,no check,2,\n"
        "batch_chat,BACKEND,3,5,900,5,,,,,UP,1,\n"
        "svc_chat,j7r0p20000,0,3,8,9,,,,,UP,2,\n"
        "svc_chat,BACKEND,1,4,900,6,,,,,UP,1,\n"
    )
    seen = parse(INFO, stat, STATE.splitlines()[0] + "\n" + STATE.splitlines()[1], "", "0x1 chat ready\n")
    assert (dict(seen.queued), dict(seen.arrived)) == ({"svc_chat": 4}, {"svc_chat": 9})
    assert dict(seen.gates) == {"svc_chat": Gate(width=6, waiting=3, arrived=5, interactive=2, interactive_arrived=4)}
    assert seen.states == {"chat": "ready"}


def test_users_are_read_with_the_busiest_first_whatever_a_version_puts_between():
    text = (
        "# table: users, type: string, size:102400, used:3\n"
        "0x55d0: key=alice use=1 exp=599999 gpc0=12 gpc0_rate(60000)=9 conn_cur=1\n"
        "0x55d1: key=webui/7f%2Fa use=2 exp=599999 shard=0 gpc0=12 gpc0_rate(60000)=4 conn_cur=5\n"
        "0x55d2: key=broken use=1 conn_cur=\n"
    )
    assert parse_users(text) == [User("webui/7f%2Fa", 5, 4), User("alice", 1, 9)]
    assert parse_users("No such table\n") == []


@pytest.fixture
def fake(tmp_path):
    """An admin socket that gives canned answers and remembers the commands."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "admin.sock"))
    listener.listen()
    commands, answers = [], {}

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                command = connection.recv(65536).decode().strip()
                commands.append(command)
                connection.sendall(next((answer for start, answer in answers.items() if command.startswith(start)), "").encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield HAProxy(str(tmp_path / "admin.sock"), "awake.map"), commands, answers
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_a_server_is_added_checked_and_made_ready(fake):
    haproxy, commands, answers = fake
    answers["add server"] = "New server registered."
    haproxy.add(endpoint(7, address="fd00::1"), 1000)
    added, *ready = commands[0].split("; ")
    assert added.startswith("add server svc_chat/j7r0p20000 [fd00::1]:20000 id 1000 check ")
    assert added.endswith(" maxconn 8 weight 100")
    haproxy.ready("svc_chat", "j7r0p20000")
    assert ready == commands[1].split("; ")
    assert ready == [
        "add map awake.map svc_chat/j7r0p20000 1",
        "enable health svc_chat/j7r0p20000",
        "set server svc_chat/j7r0p20000 state ready",
    ]


def test_a_server_that_is_removed_is_no_longer_listed(fake):
    haproxy, commands, answers = fake
    answers["del server"] = "Server deleted."
    haproxy.remove("svc_chat", "j7r0p20000")
    assert commands[1:] == ["del server svc_chat/j7r0p20000", "del map awake.map svc_chat/j7r0p20000"]


def test_a_refusal_is_an_error_that_says_what_haproxy_said(fake):
    haproxy, _, answers = fake
    answers["add server"] = "Already exists a server with the same name in backend."
    with pytest.raises(ChangeError, match="Already exists"):
        haproxy.add(endpoint(7), 1000)
    answers["del server"] = "Server still has connections attached to it, cannot remove it."
    with pytest.raises(ChangeError, match="still has connections"):
        haproxy.remove("svc_chat", "j7r0p20000")


def test_an_answer_that_cannot_be_read_is_a_failed_observation(fake):
    haproxy, _, answers = fake
    answers["show info"] = "nonsense"
    with pytest.raises(ObservationError, match="cannot be read"):
        haproxy.observe()


def test_a_socket_that_is_gone_is_a_failed_observation(tmp_path):
    with pytest.raises(ObservationError, match=r"admin\.sock"):
        HAProxy(str(tmp_path / "admin.sock")).observe()

"""How much the instances of ComfyUI have to do: what is not known is not idle, and pictures are waited for until they are fetched."""

from __future__ import annotations

import http.server
import threading
import time
from dataclasses import replace

import pytest

from ptolemy import asking, backends
from ptolemy.comfyui import remaining
from ptolemy.controller import CONNECTIONS, endpoints
from ptolemy.memory import Memory
from ptolemy.prompts import COLLECT, DEAD_AFTER, Prompts, fetch
from ptolemy.replicas import Seen, plan
from values import config, gateway, job, record, server, service

DRAW = service("draw", size=2, kind="comfyui", slots=4)
BACKEND = "svc_draw"


def drawing(*servers, **fields):
    return gateway(*servers, backends=(BACKEND,), **fields)


class Instances:
    """Answers in place of ComfyUI's instances, at once."""

    def __init__(self, **counts):
        self.counts, self.asked = counts, []

    def __call__(self, address):
        self.asked.append(address)
        return self.counts.get("n" + address.rpartition(":")[2])


def filled(asks, seen, now, of=DRAW):
    """What is known a moment after ``now``: the answers come by themselves."""
    asks.fill(config(of), seen, now)
    deadline = time.monotonic() + 5
    while any(it.asked and not it.asked.done() for it in asks._instances.values()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return [it.prompts for it in asks.fill(config(of), seen, now).servers]


def test_other_kinds_are_not_asked():
    asked = Instances()
    seen = gateway(server())
    assert Prompts(asked).fill(config(service()), seen, 1.0) is seen
    assert asked.asked == []


def test_an_instances_prompts_are_its_load_whatever_haproxy_counts():
    asks = Prompts(Instances(n20000=7, n20001=0))
    seen = drawing(server(1, 20000, BACKEND, in_flight=30, slots=CONNECTIONS), server(2, 20001, BACKEND, in_flight=5, slots=CONNECTIONS))
    asks.fill(config(DRAW), seen, 0.0)
    assert filled(asks, seen, 100.0) == [7, 0]
    memory = Memory()
    memory.learn(config(DRAW), [], asks.fill(config(DRAW), seen, 100.1), 100.1)
    assert (memory.loads["draw"].last.busy, memory.loads["draw"].last.slots) == (7, 8)


def test_an_instance_that_never_answered_is_not_idle_and_a_dead_one_has_nothing():
    asks = Prompts(Instances())
    assert filled(asks, drawing(server(1, 20000, BACKEND)), 100.0) == [1]
    assert filled(asks, drawing(server(1, 20000, BACKEND)), 200.0) == [1]
    # A busy one may fail a health check or two.
    assert filled(asks, drawing(server(1, 20000, BACKEND, up=False, unchanged=2.0)), 201.0) == [1]
    assert filled(asks, drawing(server(1, 20000, BACKEND, up=False, unchanged=DEAD_AFTER)), 202.0) == [0]


def test_an_instance_that_gives_no_answer_keeps_what_it_had():
    instances = Instances(n20000=3)
    asks, seen = Prompts(instances), drawing(server(1, 20000, BACKEND))
    assert filled(asks, seen, 100.0) == [3]
    instances.counts.clear()
    assert filled(asks, seen, 200.0) == [3]


def test_a_picture_may_be_fetched_before_its_instance_counts_as_idle():
    instances = Instances(n20000=1)
    asks, seen = Prompts(instances), drawing(server(1, 20000, BACKEND))
    assert filled(asks, seen, 100.0) == [1]
    instances.counts["n20000"] = 0
    assert filled(asks, seen, 100.0 + COLLECT / 2) == [1]
    assert filled(asks, seen, 100.0 + COLLECT + 1) == [0]


def test_each_instance_is_asked_once_a_second():
    instances = Instances(n20000=0)
    asks, seen = Prompts(instances), drawing(server(1, 20000, BACKEND))
    for tick in range(8):
        filled(asks, seen, 100.0 + tick / 4)
    assert len(instances.asked) == 2


def test_a_drained_instance_is_kept_until_its_queue_is_empty():
    jobs = [job(number, DRAW) for number in (1, 2)]

    def planned(**fields):
        there = [server(1, backend=BACKEND, admin="drain", **fields), server(2, backend=BACKEND, prompts=0)]
        leave = plan({"draw": DRAW}, {"draw": 1}, Seen(jobs, there, now=2000.0)).leave
        return list(leave), [change.verb for change in backends.plan([], drawing(there[0]))]

    assert planned(prompts=2) == ([], [])
    assert planned(prompts=0) == ([1], ["remove"])
    # A websocket that nobody uses holds up no replica; HAProxy forgets the server when it has ended.
    assert planned(prompts=0, in_flight=3) == ([1], [])


def test_haproxy_gives_an_instance_as_many_connections_as_come():
    jobs = [job(1, DRAW, record=record(DRAW, slots=4))]
    assert [endpoint.slots for endpoint in endpoints(config(DRAW), jobs)] == [CONNECTIONS]
    assert [endpoint.slots for endpoint in endpoints(config(service()), [job(1, service(), record=record(service(), slots=4))])] == [4]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"exec_info": {"queue_remaining": "3"}}', b'{"exec_info": {"queue_remaining": -1}}'])
def test_an_answer_that_is_none_is_told_from_an_empty_queue(body):
    with pytest.raises(ValueError, match=r"queue_remaining|Expecting"):
        remaining(body)


def test_an_instance_is_asked_over_http_and_silence_is_no_answer():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/prompt" else 404)
            self.end_headers()
            self.wfile.write(b'{"exec_info": {"queue_remaining": 3}}')

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.handle_request)
        thread.start()
        assert fetch(f"127.0.0.1:{web.server_port}") == 3
        thread.join()
    assert fetch(f"127.0.0.1:{web.server_port}") is None
    assert asking.PATIENCE < 5


def test_a_service_of_pictures_wakes_with_its_first_request_and_grows_with_its_queue():
    elastic = replace(DRAW, min=0, max=3, target_load=0.5)
    memory = Memory()
    memory.learn(config(elastic), [], drawing(queued=0), 1.0)
    assert memory.targets["draw"] == 0
    memory.learn(config(elastic), [], drawing(queued=1, arrived=1), 2.0)
    assert memory.targets["draw"] == 1
    full = server(1, backend=BACKEND, prompts=6, slots=4)
    for second in range(30):
        memory.learn(config(elastic), [job(1, elastic)], drawing(full, arrived=7), 3.0 + second)
    assert memory.targets["draw"] == 3

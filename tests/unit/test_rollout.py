"""Rollouts: the steps as changes to the services file, the canary's replica, its share, how it is judged."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import replace

import pytest

from ptolemy import backends, controller, rollout
from ptolemy.canary import Trial
from ptolemy.config import Canary, parse
from ptolemy.errors import ConfigError, PtolemyError
from ptolemy.gateway import WEIGHT
from ptolemy.golden import SMOKE, cases, examine
from ptolemy.memory import Memory
from ptolemy.replicas import Seen, plan
from ptolemy.status import describe, render
from values import SITE, config, gateway, job, node, record, server, service

PATH = "services.json"
OLD, NEW = service("chat", 2), replace(service("chat", 2), model_sha256="1" * 64, model="new")


def entry(**fields):
    place = {"model": "demo", "model_path": "/models/demo.gguf", "model_sha256": "0" * 64}
    return {**place, "min": 2, "max": 2, "partition": "gpu", **fields}


def raw(chat=None, **others):
    return {"site": {"user": "ptolemy", "uid": 6030}, "services": {"chat": chat or entry(), **others}}


WANTED = raw(entry(model="new", model_sha256="1" * 64))


def on_trial(share=0.0, **fields):
    return replace(config(OLD), canaries={"chat": Canary(NEW, share, **fields)})


# ---------------------------------------------------------------------------------------------------------------- the file


def test_a_rollout_leads_to_the_file_that_site_yml_writes():
    begun = rollout.begin(raw(), PATH, "chat", WANTED, 100.4)
    assert parse(begun, PATH).canaries["chat"] == Canary(NEW, asked_at=100.0)
    shared = rollout.share(begun, PATH, "chat", 0.1, 200)
    assert parse(shared, PATH).canaries["chat"] == Canary(NEW, 0.1, 100.0, 200.0)
    assert rollout.promote(shared, PATH, "chat") == WANTED


def test_a_rollout_that_was_interrupted_goes_on_with_its_canary():
    shared = rollout.share(rollout.begin(raw(), PATH, "chat", WANTED, 100), PATH, "chat", 0.1, 200)
    assert rollout.begin(shared, PATH, "chat", WANTED, 300) == shared
    other = raw(entry(model="newer", model_sha256="2" * 64))
    assert parse(rollout.begin(shared, PATH, "chat", other, 300), PATH).canaries["chat"].share == 0
    assert rollout.begin(shared, PATH, "chat", raw(), 300) == raw(), "the inventory has returned to what is there"


def test_a_rollout_is_undone_before_and_after_its_promotion():
    begun = rollout.begin(raw(), PATH, "chat", WANTED, 100)
    assert rollout.undo(begun, PATH, "chat", NEW.revision, None) == raw()
    assert rollout.undo(rollout.promote(begun, PATH, "chat"), PATH, "chat", NEW.revision, raw()["services"]["chat"]) == raw()


def test_a_size_that_scale_yml_set_survives():
    scaled = raw(entry(min=4, max=4))
    assert rollout.promote(rollout.begin(scaled, PATH, "chat", WANTED, 1), PATH, "chat")["services"]["chat"]["max"] == 4
    assert rollout.revert(scaled, PATH, "chat", entry(model_sha256="3" * 64))["services"]["chat"]["min"] == 4


@pytest.mark.parametrize(
    ("present", "wanted", "told"),
    [
        (raw(), raw(other=entry()), "ptolemy_services.other, too: run site.yml"),
        (raw(), {**WANTED, "site": {**WANTED["site"], "llama_cpp": "b2"}}, "llama_cpp .of all services., too"),
        (raw(other=entry()), raw(other=entry(context=4096)), "ptolemy_services.other"),
        (raw(), {**WANTED, "services": {}}, "no such service in ptolemy_services"),
        ({**raw(), "services": {}}, WANTED, "site.yml brings it up"),
        (raw(entry(min=0, max=0)), WANTED, "is stopped"),
        (raw(), raw(entry(kind="embedding")), "give the new one a name of its own"),
    ],
)
def test_what_is_no_rollout_of_one_service_is_refused(present, wanted, told):
    with pytest.raises(ConfigError, match=told):
        rollout.begin(present, PATH, "chat", wanted, 1)


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="rollout_share"):
        rollout.share(rollout.begin(raw(), PATH, "chat", WANTED, 1), PATH, "chat", share, 2)


@pytest.mark.parametrize(
    ("canaries", "told"),
    [
        ([], "canaries: must be an object"),
        ({"chat": {"service": entry()}}, "must be another revision"),
        ({"gone": {"service": entry(context=512)}}, "must be another revision of a service that is there"),
        ({"chat": {"service": entry(context=512), "share": 1}}, "share: must be below 1"),
        ({"chat": {"service": entry(context=512), "speed": 1}}, "canaries.chat.speed: unknown key"),
        ({"chat": {"service": entry(context="x")}}, "canaries.chat.service.context"),
        ({"chat": 7}, "canaries.chat: must be an object"),
    ],
)
def test_a_wrong_canary_in_the_file_is_named(canaries, told):
    with pytest.raises(ConfigError, match=told):
        parse({**raw(), "canaries": canaries}, PATH)


# ------------------------------------------------------------------------------------------------------------- the replica


def planned(jobs, servers=(), canaries=None, of=OLD):
    nodes = {name: node(name) for name in ("n1", "n2")}
    return plan({"chat": of}, {"chat": 2}, Seen(jobs, servers, nodes, now=2000.0), on_trial().canaries if canaries is None else canaries)


def test_a_canary_is_one_replica_beside_the_others():
    jobs, servers = [job(1, OLD), job(2, OLD)], [server(1), server(2)]
    (order,) = planned(jobs, servers).submit
    assert order.canary
    result = planned([*jobs, job(3, NEW)], servers)
    assert (result.submit, result.drain, result.end) == ((), frozenset(), ())


def test_a_canary_that_is_undone_leaves_and_the_others_stay():
    result = planned([job(1, OLD), job(2, OLD), job(3, NEW)], [server(1), server(2), server(3, in_flight=1)], canaries={})
    assert (result.submit, result.drain, result.end) == ((), {3}, ())


def test_a_canary_that_is_promoted_is_the_first_of_the_new_replicas():
    result = planned([job(1, OLD), job(2, OLD), job(3, NEW)], [server(1), server(2), server(3)], canaries={}, of=NEW)
    assert len(result.submit) == 1 and not result.submit[0].canary
    assert result.drain == {2}


def test_a_canary_without_a_share_is_not_reached_and_one_with_a_share_has_its_weight():
    jobs = [job(1, OLD), job(2, OLD), job(3, NEW)]
    assert [it.name for it in controller.endpoints(on_trial(), jobs)] == ["j1r0p20000", "j2r0p20000"]
    weights = [it.weight for it in controller.endpoints(on_trial(0.1), jobs)]
    assert weights == [WEIGHT, WEIGHT, 22], "22 of 222 are a tenth"
    weights = [it.weight for it in controller.endpoints(on_trial(0.8), jobs)]
    assert weights == [12, 12, WEIGHT], "100 of 124 are four fifths"


def test_the_weights_of_servers_follow():
    jobs = [job(1, OLD), job(3, NEW)]
    changes = backends.plan(controller.endpoints(on_trial(0.5), jobs), gateway(server(1), server(3, weight=11)))
    assert list(map(str, changes)) == ["weigh svc_chat/j3r0p20000 (100)"]
    assert backends.plan(controller.endpoints(on_trial(0.5), jobs), gateway(server(1), server(3))) == ()


def test_the_canarys_job_runs_the_canarys_revision(tmp_path):
    template = tmp_path / "replica.sh"
    template.write_text("$spec")
    site = replace(SITE, job_template=str(template))
    submitted = []

    class Slurm:
        def submit(self, text):
            submitted.append(json.loads(text)["revision"])
            return 7

    orders = planned([job(1, OLD)], [server(1)])
    controller.apply_replicas(orders, replace(on_trial(), site=site), Slurm(), Memory(), 0.0, controller.Applied())
    assert submitted == [OLD.revision, NEW.revision]


# ------------------------------------------------------------------------------------------------------------ how it fares


def status_of(cluster, jobs, servers=(), now=2000.0):
    memory, seen = Memory(), gateway(*servers)
    memory.learn(cluster, jobs, seen, now)
    rows = describe(cluster, jobs, seen, memory)
    return {"time": now, "observed_at": now, "stale_reason": "", "troubles": [], "services": rows, "last_change": {"sentence": "", "at": 0}}


def test_a_canary_has_started_when_its_replica_is_ready():
    cluster = on_trial(asked_at=1500.0)
    waiting = status_of(cluster, [job(1, OLD), job(3, NEW, "starting", "PENDING", reason="Resources")])
    look = Trial(cluster, waiting, "chat").started(waiting, 2000.0)
    assert not look.done and "waits for Slurm (Resources)" in look.next_step
    ready = status_of(cluster, [job(1, OLD), job(3, NEW)])
    trial = Trial(cluster, ready, "chat")
    assert trial.started(ready, 2000.0).done
    assert trial.endpoints() == ["http://10.0.0.1:20000"]
    assert not trial.started(ready, 2100.0).done, "the daemon is silent"


def test_a_failed_canary_ends_the_wait_with_its_reason_but_not_one_of_an_earlier_rollout():
    failed = job(3, NEW, slurm="FAILED", end=1600.0, record=record(NEW, "failed", reason="no such tensor"), host="n2")
    cluster = on_trial(asked_at=1500.0)
    status = status_of(cluster, [job(1, OLD), failed])
    with pytest.raises(PtolemyError, match=r"job 3.* failed on n2: no such tensor"):
        Trial(cluster, status, "chat")
    assert any("failed on n2" in line for line in render(status, 2000.0))
    later = on_trial(asked_at=1700.0)
    Trial(later, status_of(later, [job(1, OLD), failed]), "chat")


def watched(on_canary, on_others=None, shared_at=1900.0, seconds=60.0):
    cluster = on_trial(0.1, shared_at=shared_at)
    others = server(1, **(on_others or {"requests": 1000, "response_ms": 100}))
    status = status_of(cluster, [job(1, OLD), job(3, NEW)], [others, server(3, **on_canary)])
    return Trial(cluster, status, "chat").watched(status, 2000.0, seconds, 0.01, 2.0)


def test_a_canary_that_does_well_is_watched_to_the_end():
    assert watched({"requests": 100, "errors": 1, "response_ms": 190}).done
    assert not watched({"requests": 100}, seconds=101.0).done
    assert not watched({"requests": 100, "up": False}).done
    assert watched({"requests": 3, "response_ms": 900}).done, "three answers say little"


@pytest.mark.parametrize(
    ("on_canary", "told"),
    [
        ({"requests": 100, "errors": 2}, "2 of the canary's 100 requests"),
        ({"requests": 100, "response_ms": 201}, "201 ms to the first byte"),
    ],
)
def test_a_canary_that_does_worse_ends_the_watch(on_canary, told):
    with pytest.raises(PtolemyError, match=told):
        watched(on_canary)


# ----------------------------------------------------------------------------------------------------------- golden sets


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"expect": "Air travel"}, " air travel\n", "air travel, I think"),
        ({"matches": r"\b42\b"}, "It is 42.", "It is 421."),
        ({"json": {"prime": False}}, '{"prime": false, "why": "7 x 13"}', '{"prime": true}'),
        ({"json": {"a": 1}}, '{"a": 1}', "[1]"),
    ],
)
def test_an_answer_is_judged(check, right, wrong):
    (case,) = cases([{"ask": "?", **check}], "golden")
    assert case.right(right) and not case.right(wrong)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "must be a list"),
        ([{"ask": "?"}], r"golden\[0\]: needs one of expect"),
        ([{"ask": "?", "expect": "a", "matches": "a"}], "needs one of"),
        ([{"expect": "a"}], "needs either ask"),
        ([{"ask": "?", "expect": 42}], "expect: must be a text"),
        ([{"ask": "?", "matches": "("}], "no regular expression"),
        ([{"ask": "?", "expect": "a", "answer": "a"}], "answer: unknown key"),
        ([{"ask": "?", "expect": "a", "max_tokens": 0}], "max_tokens"),
    ],
)
def test_a_wrong_question_is_named(given, told):
    with pytest.raises(ConfigError, match=told):
        cases(given, "golden")


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the last message, in capitals; 500 where that is ``boom``."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        answer = json.dumps({"choices": [{"message": {"content": said.upper()}}]}).encode()
        self.send_response(500 if said == "boom" or self.headers["Authorization"] != "Bearer k" else 200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_endpoint_is_examined(echo):
    questions = cases([{"ask": "a", "expect": "a"}, {"ask": "b", "expect": "c"}], "golden")
    report = examine(echo, "k", "chat", questions, 2, 5.0)
    assert (report.asked, report.right, report.score) == (2, 1, 0.5)
    assert report.wrong == ["'b': wanted 'c', got 'B'"]
    assert 0 < report.latency < 5
    assert examine(echo, "k", "chat", [SMOKE], 1, 5.0).score == 1
    with pytest.raises(PtolemyError, match="answered 500"):
        examine(echo, "k", "chat", cases([{"ask": "boom", "expect": "x"}], "golden"), 1, 5.0)

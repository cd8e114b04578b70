"""One whole tick: what an observation of Slurm and HAProxy comes to, and what a forged or failed one does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ptolemy import controller
from ptolemy.errors import ChangeError
from ptolemy.memory import Memory
from values import SITE, config, gateway, job, record, server, service

CHAT = service(size=2)


def names(jobs, **kwargs):
    return [made.name for made in controller.endpoints(config(CHAT), jobs, **kwargs)]


def test_each_published_port_of_a_ready_replica_is_an_endpoint():
    ready = job(7, CHAT, record=record(CHAT, ports=(20000, 20001), slots=32))
    found = controller.endpoints(config(CHAT), [ready])
    assert [(made.name, made.where, made.slots) for made in found] == [
        ("j7r0p20000", "10.0.0.1:20000", 32),
        ("j7r0p20001", "10.0.0.1:20001", 32),
    ]


@pytest.mark.parametrize(
    "implausible",
    [
        job(1, CHAT, "starting"),
        job(1, CHAT, "draining"),
        job(1, CHAT, slurm="COMPLETING"),
        job(1, CHAT, restart=1),  # the comment survived a requeue
        job(1, CHAT, address=""),
        job(1, CHAT, name="ptolemy-other"),
        job(1, service("unknown")),
        job(1, CHAT, record=None),
        job(1, CHAT, record=record(CHAT, ports=(22,))),
        job(1, CHAT, record=record(CHAT, slots=0)),
    ],
    ids=["starting", "draining", "ending", "requeued", "no address", "other name", "unknown service", "no record", "odd port", "no slots"],
)
def test_an_implausible_record_is_no_endpoint(implausible):
    assert names([implausible]) == []


def decided(services, jobs, seen, now=0.0):
    memory = Memory()
    memory.learn(services, jobs, seen, now)
    return controller.decide(services, jobs, {}, seen, memory, now)


def test_a_name_service_that_fails_takes_no_server_away():
    decision = decided(config(CHAT), [job(1, CHAT, address=""), job(2, CHAT)], gateway(server(1), server(2)))
    assert not decision.backends


def test_a_service_without_a_backend_is_said():
    decision = decided(config(CHAT), [], gateway(backends=()))
    assert decision.notes == ("chat: HAProxy has no backend svc_chat; run site.yml",)


def test_while_slurm_is_silent_a_restarted_haproxy_gets_its_servers_back_and_loses_none():
    known = [job(1, CHAT), job(2, CHAT)]
    restarted = controller.restore(config(CHAT), known, gateway(server(9)))
    assert [str(change) for change in restarted] == ["add svc_chat/j1r0p20000", "add svc_chat/j2r0p20000"]


class FakeHAProxy:
    def __init__(self, refuse=()):
        self.calls, self._refuse = [], refuse

    def __getattr__(self, verb):
        def change(*arguments):
            if verb in self._refuse:
                raise ChangeError(f"{verb} refused")
            self.calls.append((verb, arguments[-1] if verb != "add" else arguments[0].name))

        return change


def test_changes_are_applied_in_order_and_a_refusal_does_not_stop_the_others():
    seen = gateway(server(3), server(4, admin="drain"))
    jobs = [job(1, CHAT), job(3, CHAT, slurm="COMPLETING"), job(4, CHAT, slurm="COMPLETING")]
    plan = decided(config(CHAT), jobs, seen).backends
    haproxy, applied = FakeHAProxy(refuse=("drain",)), controller.Applied()
    controller.apply_backends(plan, haproxy, applied)
    assert haproxy.calls == [("add", "j1r0p20000"), ("remove", "j4r0p20000")]
    assert applied.failed == ["drain refused"]
    assert applied.done == ["add svc_chat/j1r0p20000", "remove svc_chat/j4r0p20000"]


class FakeSlurm:
    def __init__(self, refuse=False):
        self.scripts, self.ended, self._refuse = [], [], refuse

    def submit(self, script):
        if self._refuse:
            raise ChangeError("sbatch refused")
        self.scripts.append(script)
        return len(self.scripts)

    def cancel(self, job_ids):
        self.ended += job_ids

    def leave(self, job_ids):
        if self._refuse:
            raise ChangeError("scancel refused")


def apply(slurm, tmp_path, wanted, jobs=(), memory=None):
    template = tmp_path / "replica.sh"
    template.write_text("#!/bin/bash\n$sbatch_options\nexport PYTHONPATH=$lib\n# $service $revision\n$spec\n")
    site = replace(SITE, job_template=str(template), max_submissions=3)
    given, applied = controller.Config(site, {"chat": service(size=wanted)}), controller.Applied()
    memory = memory or Memory()
    memory.learn(given, jobs, gateway(), 0)
    decision = controller.decide(given, jobs, {}, gateway(), memory, 0)
    controller.apply_replicas(decision.replicas, given, slurm, memory, 0, applied)
    return applied


def test_one_tick_submits_a_bounded_number_of_jobs(tmp_path):
    slurm = FakeSlurm()
    applied = apply(slurm, tmp_path, wanted=10)
    assert len(slurm.scripts) == 3
    assert applied.done == ["submit chat"] * 3
    assert "#SBATCH --job-name=ptolemy-chat" in slurm.scripts[0]


def test_after_one_refusal_sbatch_is_not_asked_again_in_that_tick(tmp_path):
    applied = apply(FakeSlurm(refuse=True), tmp_path, wanted=10)
    assert applied.failed == ["sbatch refused"]


def test_a_job_that_was_submitted_must_be_in_the_next_answer_of_slurm(tmp_path):
    memory = Memory()
    apply(FakeSlurm(), tmp_path, wanted=2, memory=memory)
    assert memory.expected(gateway()) == {1, 2}


def test_an_idle_surplus_is_asked_to_end_once_and_again_where_that_was_refused(tmp_path):
    memory = Memory()
    assert apply(FakeSlurm(refuse=True), tmp_path, 0, [job(1, CHAT)], memory).failed == ["scancel refused"]
    assert apply(FakeSlurm(), tmp_path, 0, [job(1, CHAT)], memory).done == ["ask to end 1"]
    assert apply(FakeSlurm(), tmp_path, 0, [job(1, CHAT)], memory).done == []

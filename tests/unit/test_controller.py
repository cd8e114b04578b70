"""One whole tick: what an observation of Slurm and HAProxy comes to, and what a forged or failed one does not."""

from __future__ import annotations

import pytest

from ptolemy import controller
from ptolemy.errors import ChangeError
from values import SITE, config, gateway, job, record, server, service

CHAT = service(replicas=2)


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


def test_a_held_removal_submits_no_replacements_either():
    seen = gateway(server(1), server(2))
    decision = controller.decide(config(CHAT), [], seen, now=0)
    assert not decision.replicas.submit
    assert not decision.backends.changes
    assert "held" in decision.notes[0]
    assert controller.decide(config(CHAT), [], seen, 0, decision.backends.suspected).replicas.submit == {"chat": 2}


def test_a_service_without_a_backend_is_said():
    decision = controller.decide(config(CHAT), [], gateway(backends=()), now=0)
    assert decision.notes == ("chat: HAProxy has no backend svc_chat; run site.yml",)


def test_while_slurm_is_silent_a_restarted_haproxy_gets_its_servers_back_and_loses_none():
    known = [job(1, CHAT), job(2, CHAT)]
    restarted = controller.restore(config(CHAT), known, gateway(server(9)))
    assert [str(change) for change in restarted.changes] == ["add svc_chat/j1r0p20000", "add svc_chat/j2r0p20000"]


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
    plan = controller.decide(
        config(CHAT), [job(1, CHAT), job(3, CHAT, slurm="COMPLETING"), job(4, CHAT, slurm="COMPLETING")], seen, 0
    ).backends
    haproxy, applied = FakeHAProxy(refuse=("drain",)), controller.Applied()
    controller.apply_backends(plan, haproxy, applied)
    assert haproxy.calls == [("add", "j1r0p20000"), ("ready", "j1r0p20000"), ("remove", "j4r0p20000")]
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


def apply(slurm, tmp_path, wanted):
    template = tmp_path / "replica.sh"
    template.write_text("#!/bin/bash\n$sbatch_options\nexport PYTHONPATH=$lib\n# $service $revision\n$spec\n")
    site = type(SITE)(**{**SITE.__dict__, "job_template": str(template), "max_submissions": 3})
    given, applied = controller.Config(site, {"chat": service(replicas=wanted)}), controller.Applied()
    decision = controller.decide(given, [], gateway(), 0)
    controller.apply_replicas(decision.replicas, given, slurm, applied)
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

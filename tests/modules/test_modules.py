"""The modules, through the real `ansible -m`, against the lab's Slurm and HAProxy."""

from __future__ import annotations

import pytest

SYNC = ("-m", "haproxy_slurm_backends")


def test_the_jobs_are_listed_with_what_they_publish(cluster):
    result = cluster.ansible("-m", "slurm_jobs_info")
    ready = [job for job in result["jobs"] if job["ready"]]
    assert {job["record"]["service"] for job in ready} == {"demo", "demo-b"}
    assert all(job["address"] and job["record"]["ports"] and job["record"]["slots"] == 4 for job in ready)
    assert not result["changed"]


def test_an_unknown_account_is_said(cluster):
    assert "there is no account 'nobody-here'" in cluster.ansible("-m", "slurm_jobs_info", "-a", "user=nobody-here")["msg"]


@pytest.fixture
def alone(cluster):
    """HAProxy without ptolemyd, and one server short."""
    cluster.run("head", "systemctl", "stop", "ptolemyd")
    name = sorted(cluster.servers("demo"))[0]
    cluster.haproxy(f"set server svc_demo/{name} state maint")
    cluster.until(lambda: "deleted" in cluster.haproxy(f"del server svc_demo/{name}"), "the server is deleted")
    yield name
    cluster.run("head", "systemctl", "start", "ptolemyd")


def test_check_mode_plans_and_changes_nothing(cluster, alone):
    result = cluster.ansible(*SYNC, "--check", "--diff")
    assert result["changed"]
    assert result["changes"] == [f"add svc_demo/{alone}"]
    assert f"svc_demo/{alone} ready" in result["diff"]["after"]
    assert f"svc_demo/{alone}" not in result["diff"]["before"]
    assert alone not in cluster.servers("demo")


def test_one_run_brings_haproxy_in_step_and_the_next_changes_nothing(cluster, alone):
    assert cluster.ansible(*SYNC)["changes"] == [f"add svc_demo/{alone}"]
    cluster.until(lambda: cluster.servers("demo")[alone]["srv_op_state"] == "2", "the server is up")
    again = cluster.ansible(*SYNC)
    assert (again["changed"], again["changes"]) == (False, [])


def test_without_slurm_it_fails_and_changes_nothing(cluster, alone):
    before = cluster.servers("demo-b").keys()
    cluster.run("head", "systemctl", "stop", "slurmctld")
    try:
        result = cluster.ansible(*SYNC)
    finally:
        cluster.run("head", "systemctl", "start", "slurmctld")
    assert result["failed"]
    assert "squeue" in result["msg"]
    assert cluster.servers("demo-b").keys() == before
    assert alone not in cluster.servers("demo")


def test_a_missing_services_file_is_named(cluster):
    assert "/none.json: No such file" in cluster.ansible(*SYNC, "-a", "services_file=/none.json")["msg"]

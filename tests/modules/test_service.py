"""ptolemy_service, ptolemy_wait and slurm_node through the real `ansible -m`: what is asked happens, or nothing does."""

from __future__ import annotations

import json

import pytest

FILE = "/etc/ptolemy/services.json"


def services_file(cluster):
    return cluster.run("head", "stat", "-c", "%a %U %G", FILE) + cluster.run("head", "cat", FILE)


def service(cluster, *arguments, **options):
    return cluster.ansible("-m", "ptolemy_service", "-a", json.dumps(options), *arguments)


def test_a_service_is_stopped_and_gets_its_size_back(cluster):
    before = services_file(cluster)
    try:
        stopped = service(cluster, name="nap", state="stopped")
        assert (stopped["changed"], stopped["after"]["nap"]["max"]) == (True, 0)
        cluster.until(lambda: cluster.service("nap")["state"] == "off", "ptolemyd takes it up")
        assert not service(cluster, name="nap", replicas=0)["changed"]
    finally:
        back = service(cluster, name="nap", min=0, max=3, opportunistic=1)
    assert back["changed"]
    assert services_file(cluster) == before


def test_check_mode_shows_the_new_size_and_changes_nothing(cluster):
    before = services_file(cluster)
    result = service(cluster, "--check", "--diff", name="demo", replicas=3)
    assert (result["changed"], result["before"]["demo"]["max"], result["after"]["demo"]["max"]) == (True, 2, 3)
    assert "demo: min 3, max 3" in result["diff"]["after"]
    assert services_file(cluster) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dem", "replicas": 3}, "dem: no such service in /etc/ptolemy/services.json (did you mean 'demo'?); there are: demo,"),
        ({"name": "demo", "min": 3}, "demo.min: 3 is more than max, 2; give keys that fit together, as min and max. Nothing was changed."),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(cluster, options, message):
    before = services_file(cluster)
    assert message in service(cluster, **options)["msg"]
    assert services_file(cluster) == before


def test_a_wait_that_is_in_vain_says_why(cluster):
    open_node = cluster.ansible("-m", "ptolemy_wait", "-a", "until=empty node=n1 timeout=0")
    assert "n1: Slurm may start jobs on it, for it does not drain" in open_node["msg"]
    assert "Slurm has no node 'n7'; there are: n1, n2" in cluster.ansible("-m", "ptolemy_wait", "-a", "until=empty node=n7")["msg"]


def test_without_the_rights_slurms_administrator_is_told_what_to_run(cluster):
    result = cluster.ansible("-m", "slurm_node", "-a", "name=n1", "--become", "--become-user=nobody")
    assert "Ask Slurm's administrator to run: scontrol update NodeName=n1 State=DRAIN 'Reason=maintenance (Ptolemy)'" in result["msg"]

"""The playbooks of daily operation, as an administrator runs them."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from cluster_host import playbook, unharmed

FETCH = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


def test_services_are_scaled_until_the_inventorys_sizes_are_applied_again(cluster):
    before = cluster.run("head", "cat", "/etc/ptolemy/services.json")
    size = {"demo": 3}
    try:
        scaled = playbook("scale", scale=size)
        assert cluster.service("demo")["replicas_ready"] == 3
        assert scaled.changed == 1
        assert re.search(r"^\d\d:\d\d:\d\d demo: 3 of 3 replicas ready$", scaled.shown, re.MULTILINE)
        assert "These sizes hold until" in scaled.shown
        assert playbook("scale", scale=size).changed == 0
    finally:
        restored = playbook("scale")
    assert restored.changed == 1
    assert len(cluster.service("demo")["replicas"]) == 2
    assert cluster.run("head", "cat", "/etc/ptolemy/services.json") == before


def test_a_drained_node_is_empty_when_the_playbook_returns_and_no_request_is_lost(cluster):
    node = cluster.service("demo")["replicas"][0]["host"]
    jobs = ("squeue", "--noheader", f"--nodelist={node}")
    try:
        with cluster.load(clients=16, pause=0.2) as load:
            drained = playbook("drain_node", node=node)
            assert cluster.run("head", *jobs) == ""
        unharmed(load)
        assert drained.changed == 1
        assert f"{node}: no replicas left" in drained.shown
        cluster.until_ready()
        assert playbook("drain_node", node=node).changed == 0
    finally:
        resumed = playbook("drain_node", node=node, state="resume")
    assert resumed.changed == 1
    state = ("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
    # `*`: slurmctld has not heard from it for a moment.
    cluster.until(lambda: cluster.run("head", *state).split()[0].rstrip("*") in ("idle", "mixed", "allocated"), "the node is in use again")


@pytest.mark.bookworm
def test_a_model_is_quantised_by_a_job(cluster, tmp_path):
    wish = {"model": "demo-f16", "types": "Q5_0", "quantize_cpus": 1, "quantize_entries": str(tmp_path / "entries.yml")}
    try:
        shown = playbook("quantize", **wish).shown
        entry = yaml.safe_load((tmp_path / "entries.yml").read_text())["demo-q5_0"]
        made = entry["source"].removeprefix("file://")
        sums = [cluster.run(node, "sha256sum", made, check=False) for node in ("n1", "n2")]
        assert any(line.startswith(entry["sha256"]) for line in sums)
        assert entry["sha256"] in shown
    finally:
        for node in ("n1", "n2"):
            cluster.run(node, "sh", "-c", "rm -f /var/lib/ptolemy/models/*q5_0* /var/lib/ptolemy/models/.*q5_0*")


def test_a_replica_serves_the_copy_of_its_model_that_lies_in_the_nodes_cache(cluster):
    host = cluster.service("demo")["replicas"][0]["host"]
    shown = cluster.run(host, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "--model /var/cache/ptolemy-models/" in shown


def test_the_status_is_shown_as_lines(cluster):
    status = playbook("status")
    assert re.search(r"^ +demo: ready, 2 of 2 replicas ready", status.shown, re.MULTILINE)
    assert status.changed == 0


def test_the_status_is_shown_as_json(cluster):
    shown = json.loads(cluster.run("head", "ptolemy", "status", "--json"))
    assert [row["service"] for row in shown["services"]] == [row["service"] for row in cluster.status()["services"]]


def test_prometheus_is_told_what_ptolemyd_sees(cluster):
    text = cluster.run("head", "python3", "-c", FETCH, "http://127.0.0.1:9177/metrics")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['ptolemy_replicas_ready{service="demo"}'] == samples['ptolemy_replicas_wanted{service="demo"}'] == "2"
    assert float(samples['ptolemy_queue_oldest_wait_seconds{service="demo",tier="batch"}']) >= 0
    assert samples["ptolemy_stale"] == "0"

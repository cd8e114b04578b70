"""Every alert fires in its rule test and not before, by the promtool of the lab's own Prometheus; and those files are what runs there."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import yaml

from cluster_host import ROOT

RULES = ROOT / "roles" / "monitoring" / "files" / "rules"
TESTS = Path(__file__).parent / "alerts.yml"


def test_every_alert_fires_in_its_rule_test(shared):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(RULES, "rules")
        archive.add(TESTS, "alerts.yml")
    script = 'cd "$(mktemp -d)" && tar x && promtool check rules rules/*.yml && promtool test rules alerts.yml'
    command = ["podman", "exec", "-i", f"{shared.prefix}-head", "sh", "-c", script]
    done = subprocess.run(command, input=packed.getvalue(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_the_rules_that_run_are_those_and_none_fails(shared, prometheus):
    groups = prometheus.get("rules")["groups"]
    written = [rule for path in RULES.glob("*.yml") for it in yaml.safe_load(path.read_text())["groups"] for rule in it["rules"]]
    wanted = {rule.get("alert") or rule["record"] for rule in written}
    assert {rule["name"] for group in groups for rule in group["rules"]} == wanted

    def evaluated():
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return all(rule["health"] == "ok" for rule in rules)

    shared.until(evaluated, "every rule evaluated without an error")


def test_nothing_fires_in_a_healthy_lab_but_for_a_full_disk_of_the_machine(cluster, prometheus):
    names = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"}
    assert names <= {"DiskAlmostFull"}

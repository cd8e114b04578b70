"""Tuning a service, as an administrator does: a job measures, a file says what was found, and the gateway applies it."""

from __future__ import annotations

import re

import pytest
import yaml

from cluster_host import playbook, try_playbook, unharmed

# Few and short trials: there are two cores for everything.
QUICKLY = {
    "service": "demo", "tune_minutes": 0.6, "tune_prompt_tokens": 48, "tune_shared_tokens": 24, "tune_answer_tokens": 8,
    "tune_streamed": False, "tune_servers": [1, 2], "tune_slots": [4, 16],
}  # fmt: skip


def requests_of(evidence, ending):
    """Requests a second of the setting whose name ends so."""
    (line,) = [line for line in evidence.splitlines() if re.match(rf".*{re.escape(ending)}  ", line)]
    return float(line.split(ending)[1].split()[0])


@pytest.mark.trixie
def test_what_was_tuned_is_no_worse_than_the_present_setting_and_the_gateway_applies_it(cluster, tmp_path):
    file, path = tmp_path / "tuned.yml", "/etc/ptolemy/services.json"
    before, services = cluster.service("demo"), cluster.run("head", "cat", path)
    with cluster.load(clients=1, services=("demo",), least=20) as load:
        shown = playbook("tune", **QUICKLY, tune_file=str(file)).shown
    unharmed(load)
    print(shown)
    assert [row["job"] for row in cluster.service("demo")["replicas"]] == [row["job"] for row in before["replicas"]]
    assert cluster.run("head", "cat", path) == services
    assert re.search(r"^\d\d:\d\d:\d\d 1 x 4, .* requests/s", shown, re.MULTILINE), "no progress was shown"
    assert cluster.run("head", "squeue", "--noheader", "--states=running,pending", "--name=tune-demo") == ""

    tuned = yaml.safe_load(file.read_text())["ptolemy_tuned"]["demo"]
    evidence = tuned["evidence"]
    assert "48 tokens in, 24 of them shared by all, 8 out, not streamed" in evidence
    assert len(re.findall(r"^\d x \d+, --cache-ram 0", evidence, re.MULTILINE)) >= 2
    if (tuned["servers_per_gpu"], tuned["slots"]) != (1, 4):
        name = f"{tuned['servers_per_gpu']} x {tuned['slots']}, --cache-ram 0{', --kv-unified' * ('--kv-unified' in tuned['flags'])}"
        assert requests_of(evidence, f"{name}, again") >= requests_of(evidence, "1 x 4, --cache-ram 0, again (present)")

    try:
        playbook("gateway", "--extra-vars", f"@{file}")
        cluster.until(lambda: _runs(cluster.service("demo"), tuned), "replicas of the tuned revision")
        cluster.until_ready()
        slots = [row["slots"] for row in cluster.service("demo")["servers"]]
        assert slots == [tuned["slots"]] * (2 * tuned["servers_per_gpu"])
    finally:
        cluster.write("head", path, services)
    status, refused = try_playbook("validate", "--extra-vars", f"@{file}", lab_demo_model="demo-q4")
    assert status != 0
    assert re.search(r'ptolemy_tuned\.demo\.instead_of\.model: .* was "demo", which is "demo-q4" now', refused), refused


def _runs(service, tuned):
    return len(service["servers"]) == 2 * tuned["servers_per_gpu"] and all(row["slots"] == tuned["slots"] for row in service["servers"])


def test_a_load_that_nobody_knows_is_asked_for_by_name(cluster, tmp_path):
    status, shown = try_playbook("tune", service="nap", tune_answer_tokens=8, tune_file=str(tmp_path / "tuned.yml"))
    assert status != 0
    assert "-e tune_prompt_tokens=N" in shown
    assert not (tmp_path / "tuned.yml").exists()

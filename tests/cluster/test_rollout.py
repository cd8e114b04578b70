"""Rollouts, as an administrator runs them: a good one under load, and those that must not get far."""

from __future__ import annotations

import hashlib
import json
import random
import re

import pytest
from gguf import GGUFReader

from cluster_host import ROOT, playbook, try_playbook, unharmed

RELEASE = ROOT / "demo/release"
QUICKLY = {"service": "demo", "rollout_watch": 10, "rollout_share": 0.3}


def catalogue(name, path, sha256=None):
    """The lab's models and one more."""
    models = {}
    for line in (RELEASE / "SHA256SUMS").read_text().splitlines():
        digest, file = line.split()
        if file.endswith(("q8_0.gguf", "q4_0.gguf")):
            models["demo-q4" if "q4" in file else "demo"] = {"file": file, "source": str(RELEASE / file), "sha256": digest}
    models[name] = {"file": path.name, "source": str(path), "sha256": sha256 or hashlib.sha256(path.read_bytes()).hexdigest()}
    return {entry: {**model, "licence": "Apache-2.0"} for entry, model in models.items()}


def spoilt(path):
    """The release with the rows of each of its matrices in another order: it loads, and talks nonsense."""
    data = bytearray((RELEASE / "ptolemy-demo-q8_0.gguf").read_bytes())
    chance = random.Random(1)
    for tensor in GGUFReader(RELEASE / "ptolemy-demo-q8_0.gguf").tensors:
        row = tensor.n_bytes // (len(tensor.data) if tensor.data.ndim > 1 else 1)
        rows = [data[at : at + row] for at in range(tensor.data_offset, tensor.data_offset + tensor.n_bytes, row)]
        chance.shuffle(rows)
        data[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = b"".join(rows)
    path.write_bytes(data)
    return path


def unknown_architecture(path):
    """The release, said to be of an architecture that llama.cpp does not know."""
    path.write_bytes((RELEASE / "ptolemy-demo-q8_0.gguf").read_bytes().replace(b"llama", b"lxama"))
    return path


@pytest.fixture(autouse=True)
def tidy(shared):
    """What a test brought to the nodes beside the lab's models goes again."""
    ours = "find /var/lib/ptolemy/models -type f ! -name '*ptolemy-demo*' -delete"
    yield
    for node in ("n1", "n2"):
        shared.run(node, "sh", "-c", ours)


def test_a_rollout_and_its_rollback_under_load_lose_nothing(cluster):
    before, services = cluster.service("demo"), cluster.run("head", "cat", "/etc/ptolemy/services.json")
    with cluster.load(clients=8, services=("demo",), pause=0.2) as load:
        shown = playbook("rollout", **QUICKLY, lab_demo_model="demo-q4").shown
        after = cluster.service("demo")
        rolled_back = playbook("rollback", service="demo")
    unharmed(load)
    timeline = re.findall(r"^\d\d:\d\d:\d\d .*", shown, re.MULTILINE)
    print(*timeline, sep="\n")
    assert any("canary of revision" in line for line in timeline)
    assert any("the canary has answered" in line for line in timeline)
    assert re.search(r"the canary answered 36 questions, score (0\.[89]\d*|1)", shown)
    assert (after["model"], after["revision"] != before["revision"], after["canary"]) == ("demo-q4", True, None)
    assert all(replica["revision"] == after["revision"] for replica in after["replicas"])
    now = cluster.service("demo")
    assert (now["model"], now["revision"], len(now["replicas"])) == ("demo", before["revision"], 2)
    assert cluster.run("head", "cat", "/etc/ptolemy/services.json") == services
    assert rolled_back.changed


@pytest.mark.trixie
def test_a_rollout_without_a_change_changes_nothing(cluster):
    rollout = playbook("rollout", **QUICKLY)
    assert rollout.changed == 0, rollout.shown


@pytest.mark.trixie
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (spoilt, r"of 36 answers were right, .*; 0.85 is the least"),
        (unknown_architecture, r"failed on n[12]: llama-server on port \d+ ended 2 times.*lxama"),
    ],
    ids=["spoilt weights", "a file that does not start"],
)
def test_a_rollout_that_fails_leaves_the_old_revision_serving(cluster, tmp_path, make, reason):
    before, services = cluster.service("demo"), cluster.run("head", "cat", "/etc/ptolemy/services.json")
    models = catalogue("bad", make(tmp_path / f"{make.__name__}.gguf"))
    with cluster.load(clients=4, services=("demo",), least=100, pause=0.2) as load:
        status, shown = try_playbook("rollout", **QUICKLY, ptolemy_models=models, lab_demo_model="bad")
    unharmed(load)
    assert status != 0
    assert re.search(reason, shown), shown
    assert f"{before['revision']} serves, as before" in shown
    assert {row["job"] for row in cluster.service("demo")["replicas"]} == {row["job"] for row in before["replicas"]}
    assert cluster.run("head", "cat", "/etc/ptolemy/services.json") == services


@pytest.mark.trixie
def test_a_file_with_another_checksum_never_gets_to_a_replica(cluster, tmp_path):
    path = tmp_path / "wrong.gguf"
    path.write_bytes((RELEASE / "ptolemy-demo-q4_0.gguf").read_bytes()[:-1] + b"x")
    digest = hashlib.sha256((RELEASE / "ptolemy-demo-q4_0.gguf").read_bytes()).hexdigest()
    status, shown = try_playbook("rollout", **QUICKLY, ptolemy_models=catalogue("wrong", path, digest), lab_demo_model="wrong")
    assert status != 0
    assert digest in shown and "wrong.gguf" in shown
    assert cluster.service("demo")["canary"] is None
    assert cluster.run("n1", "sh", "-c", "ls -A /var/lib/ptolemy/models | grep wrong.gguf$", check=False) == ""


@pytest.mark.trixie
def test_a_service_that_does_not_fit_into_its_gpu_gets_no_canary(cluster):
    status, shown = try_playbook(
        "rollout", **QUICKLY, lab_demo_model="demo-q4", ptolemy_gpu_memory=dict.fromkeys(("gpu", "scavenge"), "500M")
    )
    assert status != 0
    assert re.search(r"ptolemy_services\.demo: needs .* of a GPU's", shown), shown
    assert cluster.service("demo")["canary"] is None


@pytest.mark.trixie
def test_a_rollout_that_was_interrupted_holds_site_yml_back_and_is_undone(cluster):
    """As after Ctrl-C: the canary is there, and no playbook."""
    before = cluster.service("demo")
    path = "/etc/ptolemy/services.json"
    raw = json.loads(cluster.run("head", "cat", path))
    entry = {**raw["services"]["demo"], "context": 512}
    try:
        cluster.write("head", path, json.dumps({**raw, "canaries": {"demo": {"service": entry, "asked_at": 1}}}))
        cluster.until(lambda: len(cluster.service("demo")["replicas"]) == 3, "the canary's job")
        assert "a rollout is going on" in cluster.run("head", "ptolemy", "status")
        status, shown = try_playbook("gateway")
        assert status != 0 and "A rollout of demo is going on" in shown
    finally:
        playbook("rollback", service="demo")
    assert {row["job"] for row in cluster.service("demo")["replicas"]} == {row["job"] for row in before["replicas"]}

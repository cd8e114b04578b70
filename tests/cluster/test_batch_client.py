"""The researchers' client through the gateway, killed again and again while replicas are cancelled under it."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from cluster_host import ROOT, THOROUGH
from demo.categories import LABELS as CATEGORIES

pytestmark = pytest.mark.trixie

ROWS = int(os.environ.get("PTOLEMY_TEST_BATCH_ROWS", "2000"))  # 50,000 for the whole measure
KILLS = 10 if THOROUGH else 3
LABELS = ("travel", "office supplies", "office", "fees")
WAIT = 3600 if THOROUGH else 600


@pytest.fixture(scope="module")
def interpreter() -> str:
    """The client's environment."""
    made = subprocess.run([ROOT / "client" / "bootstrap"], check=True, capture_output=True, text=True, timeout=600)
    return f"{made.stdout.strip()}/bin/python"


def answered(ledger: Path) -> dict[int, str]:
    """The answers that a killed client has left."""
    if not ledger.exists():
        return {}
    db = sqlite3.connect(ledger)
    try:
        return dict(db.execute("SELECT id, answer FROM answers WHERE state = 1").fetchall())
    except sqlite3.OperationalError:
        return {}  # killed before the tables were made
    finally:
        db.close()


def environment_of(cluster) -> dict[str, str]:
    """What a client needs to know of the gateway."""
    return {
        **os.environ,
        "PTOLEMY_URL": cluster.base_url,
        "PTOLEMY_API_KEY": cluster.api_key,
        "PYTHONPATH": str(ROOT / "client/src"),
    }


def done(log: str) -> int:
    """The rows that a client's last progress event tells of."""
    events = [json.loads(line) for line in Path(log).read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return max((event["done"] for event in events if event["event"] == "progress"), default=0)


def test_a_killed_client_and_cancelled_replicas_lose_no_row(cluster, interpreter, tmp_path):
    with (tmp_path / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "description"])
        writer.writerows((number, f"Invoice {number}, train to Köln") for number in range(ROWS))
    (tmp_path / "labels.yml").write_text(json.dumps(list(LABELS)))
    environment = environment_of(cluster)
    command = [interpreter, "-m", "ptolemy_client", "classify", "data.csv", "--text", "description", "--labels", "labels.yml"]
    command += ["-o", "out.csv", "--model", "demo", "--json"]
    ledger = tmp_path / "out.csv.ledger"
    chance = random.Random(1)
    deadline = time.monotonic() + WAIT
    known: dict[int, str] = {}
    for kill in range(KILLS + 1):
        with (tmp_path / f"log{kill}").open("w") as log:
            client = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if kill == KILLS:
            assert client.wait(max(deadline - time.monotonic(), 1)) == 0, (tmp_path / log.name).read_text()[-2000:]
            break
        # The moments are spread over the run by what was answered, not by the clock.
        target = min(len(known) + chance.randint(1, ROWS // KILLS), ROWS - 1)
        while client.poll() is None and done(log.name) < target and time.monotonic() < deadline:
            time.sleep(0.05)
        if kill % 2 == 0:
            cluster.run("head", "scancel", str(cluster.jobs("demo")[0]))
        client.send_signal(signal.SIGKILL)
        client.wait(30)
        now = answered(ledger)
        assert {number: now.get(number) for number in known} == known, "a recorded answer changed, or is gone"
        known = now
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(number) for number in range(ROWS)]
    assert {row["ptolemy_status"] for row in rows} == {"ok"}
    assert {row["ptolemy_label"] for row in rows} <= set(LABELS)
    assert all(0 <= float(row["ptolemy_confidence"]) <= 1 for row in rows)
    final = answered(ledger)
    assert {number: final[number] for number in known} == known, "an answer that was recorded was asked for again"
    told = json.loads((tmp_path / "out.provenance.json").read_text())
    assert told["rows"] == {**told["rows"], "answered": ROWS, "failed": 0, "empty": 0, "distinct_requests": ROWS}
    model = told["model"]["at_end"]
    assert len(model["sha256"]) == 64
    assert model["revision"] == cluster.service("demo")["revision"]


def test_held_out_rows_get_the_right_labels(cluster, interpreter, tmp_path):
    """As many as the model gets right without the client (test_demo_model.py)."""
    (tmp_path / "labels.yml").write_text(json.dumps(list(CATEGORIES)))
    command = [interpreter, "-m", "ptolemy_client", "classify", str(ROOT / "demo/release/held-out.csv")]
    command += ["--text", "text", "--labels", "labels.yml", "-o", "out.csv", "--model", "demo"]
    subprocess.run(command, cwd=tmp_path, env=environment_of(cluster), check=True, capture_output=True, timeout=300)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["ptolemy_label"] for row in rows)
    assert right / len(rows) >= 0.95, f"{right} of {len(rows)}"

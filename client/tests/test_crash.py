"""The client is killed at any moment, as often as you like: nothing is lost, and nothing is asked again once its answer was recorded."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from hashlib import blake2b

import pytest

from ptolemy_client.errors import BatchError
from ptolemy_client.ledger import Ledger
from ptolemy_client.reading import Options, open_table
from ptolemy_client.sources import digest
from ptolemy_client.writing import replaced

ROWS, DISTINCT = 3000, 2500
KILLS = 8
NAMES = ("travel", "office", "other")
COMMAND = ("classify", "data.csv", "--text", "text", "--labels", "labels.yml", "-o", "out.parquet", "--quiet", "--concurrency", "40")


def expected(prompt: str) -> str:
    """The stub's label of a prompt."""
    return NAMES[blake2b(prompt.encode()).digest()[0] % len(NAMES)]


def recorded(path) -> set[str]:
    """The prompts whose answer is in the ledger that a killed process left."""
    if not path.exists():
        return set()
    with sqlite3.connect(path) as db:
        try:
            found = {row[0] for row in db.execute("SELECT body FROM requests JOIN answers USING (id)")}
        except sqlite3.OperationalError:
            found = set()  # killed before the tables were made
    db.close()
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_random_moments_loses_and_repeats_nothing(make_site, seed):
    site = make_site("--delay", "0.02", "--slots", "20", "--refuse", "0.02", "--broken", "0.02")
    texts = [f"row {number % DISTINCT}" for number in range(ROWS)]
    site.write_rows(texts)
    chance = random.Random(seed)
    kills = 0
    known: set[str] = set()
    counted = 0  # lines of the gateway's log that earlier runs made
    while True:
        run = subprocess.Popen(site.argv(*COMMAND), cwd=site.path, env=site.environment, stderr=subprocess.PIPE, text=True)
        if kills < KILLS:
            # Not a fixed time from the start: the moments spread over the whole of what is left to do.
            threshold = counted + chance.randint(0, 300)
            deadline = time.monotonic() + 60
            while run.poll() is None and time.monotonic() < deadline:
                if site.log.exists() and site.log.read_bytes().count(b"\n") > threshold:
                    break
                time.sleep(0.001)
            run.send_signal(signal.SIGKILL)
            kills += 1
        stderr = run.communicate(timeout=120)[1]
        asked = site.asked()
        again = known & set(asked[counted:])
        assert not again, f"asked again after their answers were recorded: {sorted(again)[:5]}"
        counted = len(asked)
        known = recorded(site.path / "out.parquet.ledger")
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, stderr
    assert kills == KILLS
    rows = site.output()
    assert [(row["n"], row["text"]) for row in rows] == [(str(number), text) for number, text in enumerate(texts)]
    wrong = [row for row in rows if (row["ptolemy_label"], row["ptolemy_status"]) != (expected(row["text"]), "ok")]
    assert wrong == []
    # What a kill may cost: requests under way, and answers of the last moments before it.
    assert len(asked) - DISTINCT <= KILLS * 700
    assert set(asked) == set(texts)


def test_a_finished_run_asks_nothing_when_it_is_started_again(site):
    site.write_rows(["a", "b", "a"])
    site.classify()
    before = Counter(site.asked())
    site.classify()
    assert Counter(site.asked()) == before == Counter(["a", "b"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_the_same_command_goes_on(make_site, number):
    site = make_site("--delay", "0.05", "--slots", "4")
    site.write_rows([f"row {number}" for number in range(300)])
    run = subprocess.Popen(site.argv(*COMMAND), cwd=site.path, env=site.environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while (not site.log.exists() or site.log.read_bytes().count(b"\n") < 50) and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(number)
    stderr = run.communicate(timeout=60)[1]
    assert run.returncode == 130, stderr
    assert "run the same command again" in stderr
    assert not (site.path / "out.parquet").exists()
    known, counted = recorded(site.path / "out.parquet.ledger"), len(site.asked())
    assert known
    site.run(*COMMAND)
    assert not known & set(site.asked()[counted:])
    assert all(row["ptolemy_status"] == "ok" for row in site.output())


@pytest.mark.parametrize("crash", range(3))
def test_an_output_is_there_as_a_whole_or_not_at_all(tmp_path, crash):
    path = tmp_path / "out.csv"
    path.write_text("the old one")

    def write() -> None:
        with replaced(path) as part, part.open("w") as file:
            for step in range(3):
                if step == crash:
                    raise RuntimeError(step)
                file.write(f"{step}\n")
                file.flush()

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_an_input_that_became_shorter_is_noticed(tmp_path, site):
    site.write_rows(["a", "b"])
    with pytest.raises(BatchError, match="was changed while the run was under way"):
        _write_after_change(site, tmp_path)


def _write_after_change(site, tmp_path) -> None:
    from ptolemy_client.labels import Label, Labels
    from ptolemy_client.ledger import ANSWERED, Answer
    from ptolemy_client.tasks import Classify
    from ptolemy_client.writing import write

    task = Classify(
        "stub", Labels([Label("x"), Label("y")]), many=False, probabilities=False, constraint="grammar", prefix="ptolemy_", parameters={}
    )
    ledger = Ledger(tmp_path / "ledger")
    try:
        ledger.index([[(digest(text), text) for text in "ab"]], "x")
        ledger.record([Answer(number, ANSWERED, '["x"]', None, 1, 0, 0) for number in (1, 2)])
        site.write_rows(["a"])
        write(tmp_path / "out.csv", open_table(tmp_path / "data.csv", Options()), ledger, task, "ptolemy_")
    finally:
        ledger.close()

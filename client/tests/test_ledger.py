"""Whatever moment the program dies at, the ledger tells the truth."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptolemy_client.errors import BatchError
from ptolemy_client.ledger import ANSWERED, FAILED, Answer, Ledger
from ptolemy_client.sources import digest

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PROMPTS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), min_size=1, max_size=40)


def request(prompt: str | None) -> tuple[bytes, str] | None:
    return None if prompt is None else (digest(prompt), prompt)


def answer(number: int, text: str, state: int = ANSWERED) -> Answer:
    return Answer(number, state, text if state == ANSWERED else None, None if state == ANSWERED else text, 1, 10, 1)


def fill(ledger: Ledger, prompts: list[str | None], name: str = "input") -> None:
    rows = [request(prompt) for prompt in prompts]
    ledger.index([rows[first : first + 3] for first in range(0, len(rows), 3)], name)


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


@quick
@given(prompts=PROMPTS, page=st.integers(1, 5))
def test_each_distinct_prompt_is_pending_once_and_answered_for_all_its_rows(tmp_path, prompts, page):
    path = tmp_path / "ledger"
    path.unlink(missing_ok=True)
    ledger = Ledger(path)
    fill(ledger, prompts)
    asked, after = [], 0
    while some := ledger.page(after, page):
        asked += some
        after = some[-1].id
    bodies = [request.body for request in asked]
    assert sorted(bodies) == sorted({prompt for prompt in prompts if prompt})
    assert {request.body: request.copies for request in asked} == {body: prompts.count(body) for body in bodies}
    ledger.record([answer(request.id, request.body.upper()) for request in asked])
    assert [result.answer for result in ledger.results()] == [prompt and prompt.upper() for prompt in prompts]
    assert [result.row for result in ledger.results()] == list(range(len(prompts)))
    counts = ledger.counts()
    assert (counts.pending, counts.rows_answered, counts.empty) == (0, len(prompts) - prompts.count(None), prompts.count(None))
    ledger.close()


def copy(path: Path, target: Path) -> None:
    """What is on the disk when the power fails now."""
    for suffix in ("", "-wal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
        if path.with_name(path.name + suffix).exists():
            shutil.copy(path.with_name(path.name + suffix), target.with_name(target.name + suffix))


@quick
@given(
    batches=st.lists(st.lists(st.integers(1, 30), max_size=8, unique=True), min_size=1, max_size=6),
    crash=st.integers(0, 5),
    lost=st.floats(0, 1),
)
def test_a_crash_at_any_write_loses_nothing_recorded_and_keeps_batches_whole(tmp_path, batches, crash, lost):
    """The write-ahead log is cut off somewhere behind the last commit that returned, or in the middle of the one under way."""
    path, found = tmp_path / "ledger", tmp_path / "after"
    for name in ("ledger", "ledger-wal"):
        (tmp_path / name).unlink(missing_ok=True)
    ledger = Ledger(path)
    fill(ledger, [f"prompt {number}" for number in range(30)])
    crash = min(crash, len(batches) - 1)
    safe = 0
    for number, batch in enumerate(batches[: crash + 1]):
        safe = path.with_name("ledger-wal").stat().st_size
        ledger.record([answer(request, f"{number}") for request in batch])
    copy(path, found)
    ledger.close()
    wal = found.with_name("after-wal")
    size = wal.stat().st_size
    os.truncate(wal, safe + int((size - safe) * lost))
    after = Ledger(found)
    stored = {result.request: result.answer for result in after.results() if result.answer is not None}
    pending = {request.id for request in after.page(0, 100)}
    after.close()
    before, whole = {}, {}
    for number, batch in enumerate(batches[: crash + 1]):
        before = dict(whole)
        whole.update(dict.fromkeys(batch, f"{number}"))
    assert stored in (before, whole)
    assert pending == set(range(1, 31)) - set(stored)


def test_an_index_that_was_interrupted_is_made_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger")

    def dying():
        yield [request("a"), request("b")]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.index(dying(), "input")
    assert ledger.meta("indexed") is None
    fill(ledger, ["a", "c", "a"])
    assert [one.body for one in ledger.page(0, 9)] == ["a", "c"]
    assert [(one.row, one.request is None) for one in ledger.results()] == [(0, False), (1, False), (2, False)]
    ledger.close()


def test_a_corrected_input_keeps_the_answers_of_prompts_that_stay(ledger):
    fill(ledger, ["a", "b", "c"])
    ledger.record([answer(1, "A"), answer(2, "B")])
    fill(ledger, ["new", "b", "a", "a"], "corrected")
    assert [one.body for one in ledger.page(0, 9)] == ["new"]
    assert [one.answer for one in ledger.results()] == [None, "B", "A", "A"]


def test_failed_requests_are_pending_again_only_when_told(ledger):
    fill(ledger, ["a", "b"])
    ledger.record([answer(1, "A"), answer(2, "it broke", FAILED)])
    assert ledger.page(0, 9) == []
    assert ledger.errors(5) == [("it broke", 1)]
    assert ledger.forget_failed() == 1
    assert [one.body for one in ledger.page(0, 9)] == ["b"]


def test_chosen_rows_restrict_everything(ledger):
    fill(ledger, ["a", "b", "a", "c", None])
    ledger.choose([2, 3, 4])
    assert [(one.body, one.copies) for one in ledger.page(0, 9)] == [("a", 1), ("c", 1)]
    assert [one.row for one in ledger.results()] == [2, 3, 4]
    ledger.record([answer(1, "A")])
    counts = ledger.counts()
    assert (counts.rows, counts.distinct, counts.answered, counts.rows_answered, counts.empty) == (3, 2, 1, 1, 1)
    ledger.choose(None)
    assert ledger.counts().rows_answered == 2


def test_a_second_process_is_refused(ledger):
    program = "import sys; from pathlib import Path; from ptolemy_client.ledger import Ledger; Ledger(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(ledger.path)], capture_output=True, text=True, timeout=60, check=False)
    assert "another ptolemy-batch is working on it" in done.stderr


def test_a_killed_process_leaves_all_that_it_recorded(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from ptolemy_client.ledger import *\n"
        "ledger = Ledger(Path(sys.argv[1])); ledger.index([[(b'%d' % n, str(n)) for n in range(5000)]], 'x')\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; ledger.record([Answer(n, 1, str(n), None, 1, 0, 0)]); print(n, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "ledger")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    last = 0
    for line in writer.stdout:
        last = int(line)
        if last == 50:
            writer.send_signal(signal.SIGKILL)
    writer.wait(30)
    writer.stdout.close()
    ledger = Ledger(tmp_path / "ledger")
    answered = ledger.counts().answered
    ledger.close()
    assert answered in {last, last + 1}  # the last one may have been recorded and not told


@pytest.mark.parametrize(("content", "message"), [(b"not a database at all" * 50, "this is no ledger")])
def test_a_file_that_is_no_ledger_is_an_error(tmp_path, content, message):
    (tmp_path / "ledger").write_bytes(content)
    with pytest.raises(BatchError, match=message):
        Ledger(tmp_path / "ledger")


def test_a_directory_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(BatchError, match="choose another place"):
        Ledger(tmp_path / "nowhere" / "ledger")


@quick
@given(texts=st.lists(st.text(st.characters(blacklist_categories=("Cs",))), min_size=1, max_size=8, unique=True))
def test_prompts_answers_and_errors_come_back_as_they_are(tmp_path, texts):
    path = tmp_path / "ledger"
    path.unlink(missing_ok=True)
    ledger = Ledger(path)
    fill(ledger, texts)
    assert [one.body for one in ledger.page(0, 99)] == texts
    kept = [json.dumps([text, 0.5]) for text in texts]
    ledger.record([answer(number, text) for number, text in enumerate(kept, 1)])
    assert [one.answer for one in ledger.results()] == kept
    ledger.close()

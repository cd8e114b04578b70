"""The gateway's benchmark still works, and leaves nothing behind; what it measures here says nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, str(ROOT / "bench" / "gateway" / "run.py"), "--quick", "--peers", "nginx"]


def left(mark: str) -> list[str]:
    """The command lines of processes whose environment holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture
def marked(tmp_path: Path) -> Any:
    mark = f"PTOLEMY_BENCH_TEST={tmp_path}"
    yield os.environ | dict([mark.split("=", 1)])
    assert left(mark) == [], "the benchmark left processes behind"


def test_a_quick_run_writes_its_page(tmp_path: Path, marked: dict[str, str]) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- gateway: begin -->\nold\n<!-- gateway: end -->\nafter\n")
    done = subprocess.run([*RUN, "--page", str(page)], env=marked, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    ours = [line.split(" | ") for line in text.splitlines() if "| **Ptolemy** |" in line]
    rates, (one, _, _, *counts), crowd = ours[0], ours[1], ours[-1]
    assert rates[-1] == "0 |" and int(rates[1].replace(",", "")) > 0, text
    assert one == "| 1" and re.fullmatch(r"\d+", counts[-2]) and counts[-1] == "0 |", text
    assert [crowd[0], *crowd[2:5]] == ["| 400", "400", "400", "0"], text
    for plot in ("gateway-rates.svg", "gateway-latency.svg"):
        assert "Ptolemy" in (tmp_path / plot).read_text()


def test_a_run_that_is_ended_leaves_nothing_behind(marked: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "progress").open("w+") as progress:
        run = subprocess.Popen(RUN, env=marked, stdout=progress, stderr=progress)
        deadline = time.monotonic() + 120
        try:
            while "requests/s" not in (tmp_path / "progress").read_text():
                assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "progress").read_text()
                time.sleep(0.1)
            run.send_signal(signal.SIGTERM)
            assert run.wait(30) == 143
        finally:
            run.kill()
            run.wait(10)


def test_a_page_without_a_place_for_the_tables_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing here\n")
    done = subprocess.run([*RUN, "--page", str(tmp_path / "page.md")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "page.md: has no markers" in done.stderr

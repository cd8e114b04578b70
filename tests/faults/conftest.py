"""Faults on the lab's real parts, under load: each writes a row of the table in docs/reliability.md, and must keep its promise.

lab/verify tests/faults                                   as CI runs them
PTOLEMY_TEST_THOROUGH=1 lab/verify tests/faults --table docs/reliability.md    more kills, longer outages, and the page
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster_host import THOROUGH, Cluster, cluster, shared  # noqa: F401
from turns import my_turn

TOKENS = 16  # an answer lasts long enough to be caught in the middle
LEAST = 1000 if THOROUGH else 200  # requests; the load goes on for as long as the fault does
BEGIN, END = "<!-- made by tests/faults: begin -->\n", "<!-- made by tests/faults: end -->\n"


@dataclass
class Row:
    """One line of the table."""

    fault: str
    promise: str
    sent: int
    answered: int
    failed: int
    cut: int
    notes: list[str]

    def cells(self) -> list[str]:
        numbers = (f"{number:,}" for number in (self.sent, self.answered, self.failed, self.cut))
        return [self.fault, self.promise, *numbers, "; ".join(self.notes)]


HEAD = ["fault", "may be lost", "sent", "answered", "failed", "streams cut", "seen"]


class Faults:
    """Runs a load around a fault, and holds the outcome against what is promised."""

    def __init__(self, of: Cluster, rows: list[Row]) -> None:
        self._cluster, self._rows = of, rows

    def planned(self, fault: str, **load):
        """Nothing may fail, and no stream may be cut."""
        return self._fault(fault, "nothing", 0, load)

    def loss(self, fault: str, endpoints: int = 1, **load):
        """Nothing that had not begun may fail; at most the streams then running on the lost endpoints are cut."""
        slots = self._cluster.service("demo")["servers"][0]["slots"]
        return self._fault(fault, f"at most {endpoints * slots} streams", endpoints * slots, load)

    @contextlib.contextmanager
    def _fault(self, fault: str, promise: str, most_cut: int, load_options):
        notes: list[str] = []
        with my_turn(), self._cluster.load(**{"tokens": TOKENS, "least": LEAST, **load_options}) as load:
            yield notes
        row = self.record(fault, promise, load, notes)
        assert not load.result.errors, load.result.errors
        assert row.cut <= most_cut, load.result.cut
        assert row.answered + row.cut == row.sent

    def record(self, fault: str, promise: str, load, notes: list[str]) -> Row:
        """Add a row to the table."""
        result = load.result
        row = Row(fault, promise, load.sent, result.answered, result.errors.total(), result.cut.total(), notes)
        self._rows.append(row)
        print(" | ".join(row.cells()))
        return row


ROWS: list[Row] = []
MEASURED: list[str] = []


@pytest.fixture
def measured():
    """Takes a sentence with a figure, for the page and for the end of the run."""
    return MEASURED.append


@pytest.fixture
def faults(cluster):  # noqa: F811
    return Faults(cluster, ROWS)


def pytest_addoption(parser):
    parser.addoption("--table", metavar="FILE", help="write the table of faults into this page, between its markers")


def pytest_terminal_summary(terminalreporter, config):
    if not ROWS and not MEASURED:
        return
    table = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in ROWS)]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in table) + "".join(f"\n- {sentence}" for sentence in MEASURED) + "\n"
    terminalreporter.section("faults")
    terminalreporter.write(text)
    path = config.getoption("--table")
    if path:
        page = Path(path).read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        Path(path).write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")

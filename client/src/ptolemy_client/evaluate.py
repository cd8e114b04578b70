"""Labels against the truth: accuracy, precision and recall of each label, and the confusion matrix."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from rich.console import Console
from rich.table import Table as Grid

from .charts import confusion_png
from .errors import BatchError, unknown_column
from .reading import Options, open_table

MISSING = "(none)"  # failed or empty rows: wrong answers, too


@dataclass(frozen=True)
class Score:
    """Of one label: how often it is the truth, how often it was given, how often both."""

    truth: int
    given: int
    both: int

    @property
    def precision(self) -> float:
        """Of the rows with this label, the share that is right; 0 where no row has it."""
        return self.both / self.given if self.given else 0.0

    @property
    def recall(self) -> float:
        """Of the rows that should have this label, the share that has it; 0 where there is none."""
        return self.both / self.truth if self.truth else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.both / (self.truth + self.given) if self.truth + self.given else 0.0


@dataclass(frozen=True)
class Evaluation:
    """How often each pair (truth, given) occurs.

    Attributes:
        pairs: as said; rows without a truth are not among them.
        unjudged: rows without a truth.
    """

    pairs: Counter[tuple[str, str]]
    unjudged: int

    @property
    def rows(self) -> int:
        """Rows that were judged."""
        return sum(self.pairs.values())

    @property
    def accuracy(self) -> float:
        """The share of right rows."""
        return sum(number for (truth, given), number in self.pairs.items() if truth == given) / self.rows

    @property
    def names(self) -> list[str]:
        """All labels that occur, most frequent truth first."""
        truths: Counter[str] = Counter()
        for (truth, given), number in self.pairs.items():
            truths[truth] += number
            truths[given] += 0
        return sorted(truths, key=lambda name: (name == MISSING, -truths[name], name))

    def score(self, name: str) -> Score:
        """The score of a label."""
        return Score(
            sum(number for (truth, _), number in self.pairs.items() if truth == name),
            sum(number for (_, given), number in self.pairs.items() if given == name),
            self.pairs[name, name],
        )

    def matrix(self) -> list[list[int]]:
        """Rows are truths, columns are given labels, in the order of ``names``."""
        names = self.names
        return [[self.pairs[truth, given] for given in names] for truth in names]


def compare(path: Path, truth: str, given: str) -> Evaluation:
    """Read two columns of an output.

    Raises:
        BatchError: the file or a column is missing, or no row has a truth.
    """
    table = open_table(path, Options())
    for flag, name in (("--truth", truth), ("--predicted", given)):
        if name not in table.schema.names:
            raise unknown_column(name, table.schema.names, flag)
    pairs: Counter[tuple[str, str]] = Counter()
    unjudged = 0
    for batch in table.batches([truth, given]):
        for right, said in zip(batch.column(truth).to_pylist(), batch.column(given).to_pylist()):
            if isinstance(said, list):
                raise BatchError(f"{path}: {given!r} holds lists; only one label a row can be judged")
            if right is None or not str(right).strip():
                unjudged += 1
            else:
                pairs[str(right).strip(), MISSING if said in {None, ""} else str(said)] += 1
    if not pairs:
        raise BatchError(f"{path}: no row has a value in {truth!r}")
    return Evaluation(pairs, unjudged)


def evaluate(arguments: argparse.Namespace) -> int:
    """The command ``evaluate``; returns its exit status."""
    found = compare(arguments.output, arguments.truth, arguments.predicted or "ptolemy_label")
    png = arguments.png or arguments.output.with_name(f"{arguments.output.stem}.confusion.png")
    names = found.names
    confusion_png(png, names, found.matrix(), f"{found.rows:,} rows, accuracy {found.accuracy:.1%}")
    if arguments.json:
        labels = {name: _facts(found.score(name)) for name in names}
        print(json.dumps({"rows": found.rows, "unjudged": found.unjudged, "accuracy": found.accuracy, "labels": labels, "png": str(png)}))
        return 0
    console = Console()
    console.print(f"accuracy {found.accuracy:.4f} over {found.rows:,} rows; {found.unjudged:,} rows have no truth", highlight=False)
    console.print(_grid(found, names))
    console.print(f"confusion matrix: {png}", highlight=False, markup=False)
    return 0


def _facts(score: Score) -> dict[str, float]:
    return {"truth": score.truth, "given": score.given, "precision": score.precision, "recall": score.recall, "f1": score.f1}


def _grid(found: Evaluation, names: Sequence[str]) -> Grid:
    grid = Grid("label", box=None, pad_edge=False)
    for title in ("rows", "given", "precision", "recall", "F1"):
        grid.add_column(title, justify="right")
    for name in names:
        score = found.score(name)
        numbers = (f"{score.truth:,}", f"{score.given:,}", f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}")
        grid.add_row(name, *numbers)
    return grid

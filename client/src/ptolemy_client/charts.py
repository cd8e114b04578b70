"""Pictures: how often each label was given, and which labels were taken for which."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Sequence

from .errors import BatchError
from .writing import replaced

_MOST = 40  # labels in a picture; the rarest are left out
_COLOR = "#2563eb"


def bars_png(path: Path, labels: Counter[str]) -> None:
    """Draw the labels' counts.

    Raises:
        BatchError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    shown = labels.most_common(_MOST)[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([_short(name) for name, _ in shown], [number for _, number in shown], color=_COLOR)
    axes.bar_label(bars, labels=[f"{number:,}" for _, number in shown], padding=3)
    axes.set_xlabel("rows")
    axes.set_title(f"{sum(labels.values()):,} rows, {len(labels)} labels" + (f", the {_MOST} most frequent" if len(labels) > _MOST else ""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    with replaced(path) as part:
        figure.savefig(part, format="png", dpi=120)


def confusion_png(path: Path, names: Sequence[str], matrix: Sequence[Sequence[int]], title: str) -> None:
    """Draw a confusion matrix: a row for each true label, a column for each predicted one.

    Raises:
        BatchError: the picture cannot be written, or has too many labels to be read.
    """
    from matplotlib.figure import Figure

    if len(names) > 2 * _MOST:
        raise BatchError(f"{len(names)} labels are too many for a picture of a confusion matrix")
    size = 2.5 + 0.5 * len(names)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    shares = [[value / max(sum(row), 1) for value in row] for row in matrix]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(names))
    axes.set_xticks(places, [_short(name) for name in names], rotation=45, ha="right")
    axes.set_yticks(places, [_short(name) for name in names])
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(title)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            if value:
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, f"{value:,}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="share of the true label's rows", shrink=0.8)
    with replaced(path) as part:
        figure.savefig(part, format="png", dpi=120)


def _short(name: str) -> str:
    # A dollar sign would begin a formula.
    return (name if len(name) <= 40 else name[:39] + "…").replace("$", r"\$")

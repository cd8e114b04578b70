"""What is said at the end of a run."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Optional

from rich.table import Table as Grid

from .charts import bars_png
from .display import Display, duration
from .errors import BatchError
from .session import Outcome, Plan

_BARS = 40  # columns of the longest bar
_SHOWN = 30  # labels


def tell(plan: Plan, outcome: Outcome, ledger: Path, display: Display) -> None:
    """Print the summary, and draw the labels' counts beside the output."""
    counts = outcome.counts
    picture = None
    if outcome.labels:
        picture = plan.out.with_name(f"{plan.out.stem}.labels.png")
        try:
            bars_png(picture, outcome.labels)
        except BatchError as error:
            print(f"ptolemy-batch: {error}", file=sys.stderr)  # the output itself is there
            picture = None
    remaining = estimate(outcome)
    display.event(
        "summary", out=str(plan.out), rows=counts.rows, of=outcome.total, answered=counts.rows_answered, failed=counts.rows_failed,
        empty=counts.empty, distinct=counts.distinct, seconds=round(outcome.seconds, 3), labels=dict(outcome.labels.most_common()),
        errors=dict(outcome.errors), estimate_seconds=remaining,
    )  # fmt: skip
    rate = f", {outcome.progress.requests / outcome.seconds:,.1f} requests/s" if outcome.seconds else ""
    asked = f"{outcome.progress.requests:,} asked now in {duration(outcome.seconds)}{rate}"
    lines = [
        f"{plan.out}: {counts.rows:,} rows" + (f" of {outcome.total:,}" if outcome.partial else ""),
        f"  {counts.rows_answered:,} answered, {counts.rows_failed:,} failed, {counts.empty:,} empty",
        f"  {counts.distinct:,} distinct, {asked}",
    ]
    lines += [f"  {number:,} requests failed: {error[:200]}" for error, number in outcome.errors]
    if counts.failed:
        lines.append("  the same command with --retry-failed asks these again")
    if remaining is not None:
        lines.append(f"  all {outcome.total:,} rows would take about {duration(remaining)} more, at this speed")
    if display.shows:
        for line in lines:
            display.console.print(line, highlight=False, markup=False)
        if outcome.labels:
            display.console.print(_bars(outcome.labels))
        files = ", ".join(str(path.name) for path in (picture, ledger) if path)
        display.console.print(f"  beside it: {plan.out.stem}.provenance.json, {files}", highlight=False, markup=False)


def estimate(outcome: Outcome) -> Optional[float]:
    """Seconds that the rest of the input would take, where only some rows were asked; it supposes as many doubles in the rest."""
    counts, done = outcome.counts, outcome.progress.requests
    if not outcome.partial or not done or not outcome.seconds:
        return None
    share = counts.distinct / counts.rows
    return (outcome.total - counts.rows) * share * outcome.seconds / done


def _bars(labels: Counter[str]) -> Grid:
    grid = Grid.grid(padding=(0, 1))
    most, total = max(labels.values()), sum(labels.values())
    for name, number in labels.most_common(_SHOWN):
        grid.add_row(f"  {name}", f"[cyan]{'█' * max(round(_BARS * number / most), 1)}[/]", f"{number:,} ({100 * number / total:.1f} %)")
    if len(labels) > _SHOWN:
        grid.add_row(f"  and {len(labels) - _SHOWN} more", "", "")
    return grid

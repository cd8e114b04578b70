"""What people see while a run goes on: a bar on a terminal, plain lines elsewhere, or JSON events for programs."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import Any, Iterator, Optional

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from .ledger import Counts
from .runner import Progress

WINDOW = 20.0  # seconds over which rates are measured
LINES_EVERY = 10.0


class Display:
    """One of the three kinds.

    Args:
        json_events: print JSON objects on standard output, and nothing else.
        quiet: print only what is wrong.
    """

    def __init__(self, json_events: bool = False, quiet: bool = False) -> None:
        self._json, self._quiet = json_events, quiet
        self.console = Console(stderr=True, soft_wrap=True)
        self._live = self.console.is_terminal and not json_events and not quiet
        self.interval = 0.2 if self._live else 1.0
        self._bar: Optional[Bar] = None

    @property
    def shows(self) -> bool:
        """Whether it prints words for people."""
        return not self._json and not self._quiet

    def step(self, text: str) -> None:
        """Say what is being done."""
        if self._json:
            self.event("step", text=text)
        elif not self._quiet:
            self.console.print(text, highlight=False, markup=False)

    def event(self, name: str, **facts: Any) -> None:
        """Print an event, where events are wanted."""
        if self._json:
            print(json.dumps({"event": name, "time": round(time.time(), 3), **facts}, ensure_ascii=False), flush=True)

    @contextmanager
    def running(self, counts: Counts, progress: Progress) -> Iterator[None]:
        """Show a run's progress until it is over; ``update`` is called meanwhile."""
        self._counts, self._progress = counts, progress
        self._marks = [(time.monotonic(), 0, 0, 0)]
        self._told = time.monotonic()
        if self._live:
            self._bar = Bar(SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), console=self.console, transient=True)
            self._task = self._bar.add_task("", total=max(counts.rows, 1))
            self._bar.start()
        try:
            yield
        finally:
            if self._bar:
                self._bar.stop()
                self._bar = None
            if not self._quiet:
                self._tell()

    def update(self) -> None:
        """Show where it is now."""
        now = time.monotonic()
        if self._bar:
            facts = self._facts()
            self._bar.update(self._task, completed=facts["done"], description=_line(facts))
        elif now - self._told >= LINES_EVERY and not self._quiet:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        facts = self._facts()
        if self._json:
            self.event("progress", **facts)
        else:
            print(_line(facts), file=sys.stderr, flush=True)

    def _facts(self) -> dict[str, Any]:
        counts, progress = self._counts, self._progress
        now = time.monotonic()
        tokens = progress.tokens_in + progress.tokens_out
        self._marks.append((now, progress.requests, progress.rows, tokens))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
            del self._marks[0]
        began, requests, rows, before = self._marks[0]
        span = max(now - began, 1e-3)
        per_second = (progress.requests - requests) / span
        pending = counts.pending - progress.requests
        return {
            "done": counts.rows_answered + counts.rows_failed + counts.empty + progress.rows,
            "rows": counts.rows,
            "rows_per_second": round((progress.rows - rows) / span, 1),
            "tokens_per_second": round((tokens - before) / span, 1),
            "distinct": counts.distinct,
            # Rows that need no request of their own: another row has the same prompt.
            "cached": counts.rows - counts.empty - counts.distinct,
            "failed": counts.rows_failed + progress.failed,
            "retries": progress.retries,
            "active": progress.active,
            "limit": progress.limit,
            "eta_seconds": round(pending / per_second) if per_second else None,
            "problem": progress.problem,
        }


def _line(facts: dict[str, Any]) -> str:
    eta = facts["eta_seconds"]
    parts = [
        f"{facts['done']:,} of {facts['rows']:,} rows",
        f"{facts['rows_per_second']:,.1f} rows/s",
        f"{facts['tokens_per_second']:,.0f} tokens/s",
        f"{facts['distinct']:,} distinct",
        f"{facts['cached']:,} cached",
        f"{facts['failed']:,} failed",
        f"{facts['active']} at once",
        f"{duration(eta)} left" if eta is not None else "no estimate yet",
    ]
    if facts["problem"] and facts["rows_per_second"] == 0:
        parts.append(facts["problem"][:120])
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

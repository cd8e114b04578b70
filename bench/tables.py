"""What the benchmarks' tables have in common: percentiles, and a place in a page of docs/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def has_markers(page: Path, name: str) -> bool:
    """Whether the page has a place for what ``write_between`` writes."""
    return bool(_between(name).search(page.read_text(encoding="utf-8")))


def write_between(page: Path, name: str, words: str) -> None:
    """Replace what stands between the page's markers of that name.

    Raises:
        ValueError: the page has no such markers.
    """
    before = page.read_text(encoding="utf-8")
    if not has_markers(page, name):
        raise ValueError(f"{page}: no markers '<!-- {name}: begin -->' and '<!-- {name}: end -->'")
    page.write_text(_between(name).sub(lambda found: found[1] + words + "\n" + found[2], before), encoding="utf-8")


def _between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: begin[^>]*-->\n).*?(<!-- {name}: end -->)", re.DOTALL)

"""The plot of ``ptolemy usage``: GPU hours of each day, stacked by service, as SVG that needs no library and no network."""

from __future__ import annotations

import datetime
import math
from html import escape
from typing import Iterator, Sequence

from .usage import Use, summed

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 900, 360, 60, 50, 40
COLORS = ("#2563eb", "#f59e0b", "#059669", "#db2777", "#7c3aed", "#64748b")  # the last one: all other services
FONT = "font-family='system-ui, sans-serif'"


def gpu_hours(rows: Sequence[Use], first: datetime.date) -> str:
    """The SVG of a month.

    Args:
        rows: of that month.
        first: its first day.
    """
    names = [use.service for use in summed(rows, "service")]
    shown = names[: len(COLORS) - 1]
    days = ((first + datetime.timedelta(days=31)).replace(day=1) - first).days
    hours = [[0.0] * len(COLORS) for _ in range(days)]
    for row in rows:
        at = shown.index(row.service) if row.service in shown else len(COLORS) - 1
        hours[int(row.day[8:]) - 1][at] += row.gpu_hours
    most = _round_up(max(map(sum, hours)))
    legend = [*shown, *(["others"] if len(names) > len(shown) else [])]
    parts = [*_frame(most, f"GPU hours a day, {first:%Y-%m}"), *_bars(hours, most), *_legend(legend)]
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' {FONT}>" + "".join(parts) + "</svg>\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10 ...; 1 where nothing was used."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most


def _frame(most: float, title: str) -> Iterator[str]:
    yield f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/><text x='{LEFT}' y='24' font-size='16'>{escape(title)}</text>"
    for tick in (0.0, most / 2, most):
        y = _y(tick, most)
        yield f"<line x1='{LEFT}' x2='{WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e2e8f0'/>"
        yield f"<text x='{LEFT - 8}' y='{y + 4:.1f}' font-size='12' text-anchor='end'>{tick:g}</text>"


def _bars(hours: Sequence[Sequence[float]], most: float) -> Iterator[str]:
    step = (WIDTH - LEFT) / len(hours)
    for day, values in enumerate(hours):
        x, below = LEFT + step * day, 0.0
        for value, color in zip(values, COLORS):
            if value:
                top, bottom = _y(below + value, most), _y(below, most)
                yield f"<rect x='{x + 2:.1f}' y='{top:.1f}' width='{step - 4:.1f}' height='{bottom - top:.1f}' fill='{color}'/>"
                below += value
        yield f"<text x='{x + step / 2:.1f}' y='{HEIGHT - BOTTOM + 18}' font-size='11' text-anchor='middle'>{day + 1}</text>"


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = float(WIDTH)
    for number, name in reversed(list(enumerate(names))):
        color = COLORS[-1] if name == "others" else COLORS[number]
        x -= 30 + 7 * len(name)
        yield f"<rect x='{x:.0f}' y='14' width='12' height='12' fill='{color}'/>"
        yield f"<text x='{x + 17:.0f}' y='24' font-size='12'>{escape(name)}</text>"

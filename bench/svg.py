"""A few lines of SVG: panels with a common time axis. Plain text, so that a plot needs no library and its changes can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Sequence

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
FONT = "font-family='Inter, Segoe UI, Helvetica, Arial, sans-serif'"


def text(x: float, y: float, words: str, size: float = 12, color: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    """One line of text."""
    style = f"font-size='{size:g}' fill='{color}' text-anchor='{anchor}' font-weight='{weight}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(words)}</text>"


@dataclass
class Panel:
    """A chart over the hours of a day.

    Attributes:
        top, height, left, width: its place.
        most: the value at its upper edge.
        ticks: values with a line and a number.
        title: stands above it.
    """

    top: float
    height: float
    left: float
    width: float
    most: float
    ticks: Sequence[float]
    title: str
    parts: list[str] = field(default_factory=list)

    def x(self, hour: float) -> float:
        """Where an hour is."""
        return self.left + self.width * hour / 24.0

    def y(self, value: float) -> float:
        """Where a value is."""
        return self.top + self.height * (1.0 - min(value, self.most) / self.most)

    def frame(self, hours: bool = False) -> None:
        """Grid, numbers and title; the hours under it where wanted."""
        right = self.left + self.width
        for tick in self.ticks:
            y = self.y(tick)
            self.parts.append(f"<line x1='{self.left:.1f}' x2='{right:.1f}' y1='{y:.1f}' y2='{y:.1f}' stroke='{GRID}'/>")
            self.parts.append(text(self.left - 8, y + 4, f"{tick:g}", 11, FAINT, "end"))
        for hour in range(0, 25, 2):
            x = self.x(hour)
            self.parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{self.top:.1f}' y2='{self.top + self.height:.1f}' stroke='{GRID}'/>")
            if hours:
                self.parts.append(text(x, self.top + self.height + 18, f"{hour}:00", 11, FAINT, "middle"))
        self.parts.append(text(self.left, self.top - 10, self.title, 13, INK, weight="600"))

    def band(self, start: float, end: float, color: str, words: str) -> None:
        """A marked time with its name."""
        x, width = self.x(start), max(self.x(end) - self.x(start), 2)
        self.parts.append(
            f"<rect x='{x:.1f}' y='{self.top:.1f}' width='{width:.1f}' height='{self.height:.1f}' fill='{color}' opacity='0.13'/>"
        )
        if words:
            self.parts.append(text(x + 5, self.top + 14, words, 11, color, weight="600"))

    def steps(self, values: Sequence[float], color: str, fill: float = 0.0, stroke: float = 1.6) -> None:
        """A line that stays and jumps, with the area under it filled to some degree."""
        points: list[str] = []
        last = None
        for index, value in enumerate(values):
            if value != last:
                x = self.x(index * 24.0 / len(values))
                points += [f"H{x:.1f}", f"V{self.y(value):.1f}"] if points else [f"M{x:.1f},{self.y(value):.1f}"]
                last = value
        path = " ".join([*points, f"H{self.x(24):.1f}"])
        if fill:
            close = f"V{self.y(0):.1f} H{self.left:.1f} Z"
            self.parts.append(f"<path d='{path} {close}' fill='{color}' opacity='{fill:g}'/>")
        if stroke:
            self.parts.append(f"<path d='{path}' fill='none' stroke='{color}' stroke-width='{stroke:g}'/>")

    def line(self, values: Sequence[float], color: str, stroke: float = 1.5) -> None:
        """A line through the values."""
        points = " ".join(f"{self.x((index + 0.5) * 24.0 / len(values)):.1f},{self.y(value):.1f}" for index, value in enumerate(values))
        self.parts.append(f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='{stroke:g}' stroke-linejoin='round'/>")

    def level(self, value: float, color: str, words: str, above: bool = True) -> None:
        """A dashed line with its name at the right end."""
        y = self.y(value)
        self.parts.append(
            f"<line x1='{self.left:.1f}' x2='{self.left + self.width:.1f}' y1='{y:.1f}' y2='{y:.1f}'"
            f" stroke='{color}' stroke-width='1.6' stroke-dasharray='6 4'/>"
        )
        self.parts.append(text(self.left + self.width - 6, y + (-6 if above else 15), words, 11.5, color, "end", "600"))


def key(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """A legend in one line, from the right edge ``x`` to the left."""
    parts = []
    for color, words in reversed(entries):
        x -= 6.3 * len(words)
        parts += [text(x, y, words, 11.5, INK), f"<rect x='{x - 17:.1f}' y='{y - 8:.1f}' width='12' height='8' rx='2' fill='{color}'/>"]
        x -= 34
    return "".join(parts)


def document(width: int, height: int, title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole picture on a white card."""
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' {FONT} role='img'>"
        f"<title>{escape(title)}</title><rect width='{width}' height='{height}' rx='8' fill='#ffffff'/>"
    )
    return "\n".join([head, text(64, 38, title, 19, weight="700"), text(64, 60, subtitle, 12.5, FAINT), *parts, "</svg>", ""])

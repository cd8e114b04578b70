"""The two plots of a run, with the pieces of bench/svg.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import svg
from names import BATCH, DIRECT, LITELLM, NGINX, OURS, SMALL
from results import Results, cpu_per_thousand, per_second
from tables import percentile

COLORS = {OURS: "#2563eb", BATCH: "#60a5fa", SMALL: "#93c5fd", NGINX: "#16a34a", LITELLM: "#ea580c", DIRECT: "#475569"}
LEFT, WIDTH = 200.0, 700.0
POINTS = 200  # of a curve


def rates(found: Results) -> str:
    """Requests/s as bars, on a logarithmic scale: the peers are two orders of magnitude apart."""
    top, parts = 110.0, list[str]()
    values = [per_second(one) for kind in found.rates.values() for one in kind.values()]
    low, high = math.floor(math.log10(min(values))), math.log10(max(values) * 1.1)
    for kind, peers in found.rates.items():
        parts.append(svg.text(64, top - 10, f"{kind.capitalize()} requests a second", 13, weight="600"))
        for name, one in peers.items():
            width = WIDTH * (math.log10(per_second(one)) - low) / (high - low)
            parts.append(svg.text(LEFT - 8, top + 15, name, 12, anchor="end"))
            parts.append(f"<rect x='{LEFT}' y='{top:.1f}' width='{width:.1f}' height='20' rx='2' fill='{COLORS[name]}'/>")
            cost = "" if name == DIRECT else f", {1000 * cpu_per_thousand(one):,.0f} µs of CPU each"
            parts.append(svg.text(LEFT + width + 6, top + 15, f"{per_second(one):,.0f}{cost}", 12))
            top += 28
        top += 40
    title = "Requests a second through each gateway, by bench/gateway"
    return svg.document(1100, int(top), title, "64 connections, bodies of 1 kB, instant stub servers; logarithmic scale", parts)


def latency(found: Results) -> str:
    """How late tokens came at the most streams: a share of tokens over milliseconds."""
    streams = max(found.latency)
    samples = {name: sample.token for name, sample in found.latency[streams].items() if sample.token}
    left, top, width, height = 64.0, 110.0, 1000.0, 320.0
    low = math.floor(math.log10(max(min(map(min, samples.values())), 0.01)))
    high = math.ceil(math.log10(max(percentile(values, 0.999) for values in samples.values())))

    def x(value: float) -> float:
        return left + width * (min(max(math.log10(max(value, 1e-6)), low), high) - low) / (high - low)

    parts = [svg.text(left, top - 10, f"Share of tokens that had come, {streams} streams at once", 13, weight="600")]
    for share in (0.0, 0.25, 0.5, 0.75, 0.99):
        y = top + height * (1 - share)
        parts.append(f"<line x1='{left}' x2='{left + width}' y1='{y:.1f}' y2='{y:.1f}' stroke='{svg.GRID}'/>")
        parts.append(svg.text(left - 8, y + 4, f"{share:.0%}", 11, svg.FAINT, "end"))
    for power in range(low, high + 1):
        parts.append(f"<line x1='{x(10**power):.1f}' x2='{x(10**power):.1f}' y1='{top}' y2='{top + height}' stroke='{svg.GRID}'/>")
        parts.append(svg.text(x(10**power), top + height + 18, f"{10**power:g} ms", 11, svg.FAINT, "middle"))
    for name, values in samples.items():
        parts.append(_curve(sorted(values), name, x, top, height))
    parts.append(svg.key(left + width, top - 10, [(COLORS[name], name) for name in samples]))
    title = "From the server's write of a token to the client's read, by bench/gateway"
    subtitle = "Each of 8 stub servers writes the tokens of its 32 slots together, 23 times a second; logarithmic scale"
    return svg.document(1100, int(top + height + 50), title, subtitle, parts)


def _curve(values: Sequence[float], name: str, x: Callable[[float], float], top: float, height: float) -> str:
    shares = [number / POINTS for number in range(POINTS + 1)]
    points = " ".join(f"{x(values[int(share * (len(values) - 1))]):.1f},{top + height * (1 - share):.1f}" for share in shares)
    return f"<polyline points='{points}' fill='none' stroke='{COLORS[name]}' stroke-width='2' stroke-linejoin='round'/>"

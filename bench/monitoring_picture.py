#!/usr/bin/env python3
"""Draws the overview dashboard of the last minutes, out of a lab's own Prometheus, without Grafana: docs/monitoring.svg.

make lab LAB_MONITORING=yes
. .lab/env && .venv/bin/python tests/load/chat_load.py --requests 20000 --clients 16      # or whatever shall be seen
.venv/bin/python bench/monitoring_picture.py --minutes 15
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Mapping, Sequence
from urllib.parse import urlencode

import svg

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "roles" / "monitoring" / "files" / "dashboards" / "overview.json"
COLORS = ("#2563eb", "#d97706", "#059669", "#b91c1c", "#7c3aed", "#0e7490")
POINTS = 120
LEFT, TOP, WIDTH, HEIGHT, ACROSS, DOWN = 64, 104, 460, 120, 548, 196
UNITS = {"percentunit": (100.0, " %"), "s": (1.0, " s"), "reqps": (1.0, " a second")}
ASK = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"

Lines = Sequence[tuple[str, Sequence[tuple[float, float]]]]


def series(prefix: str, expression: str, start: float, end: float) -> list[dict[str, Any]]:
    """What the Prometheus on the head of a lab has for an expression; it listens on that host's loopback."""
    query = {"query": expression, "start": f"{start:.0f}", "end": f"{end:.0f}", "step": f"{(end - start) / POINTS:.1f}"}
    url = f"http://127.0.0.1:9090/api/v1/query_range?{urlencode(query)}"
    command = ["podman", "exec", f"{prefix}-head", "python3", "-c", ASK, url]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def named(legend: str, labels: Mapping[str, str]) -> str:
    """The legend with the labels' values in it, as Grafana would show it."""
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def upper(most: float) -> float:
    """A round number that is not below the greatest value."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= most)


def chart(panel: Mapping[str, Any], lines: Lines, colors: dict[str, str], place: int, start: float, end: float) -> str:
    """One panel with its lines: grid, numbers, minutes, legend. ``colors`` are those that names have; new ones are added."""
    left, top = LEFT + place % 2 * ACROSS, TOP + place // 2 * DOWN
    scale, unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1.0, ""))
    edge = upper(max((value * scale for _, points in lines for _, value in points), default=0.0))
    parts = [svg.text(left, top - 10, panel["title"] + (f", {unit.strip()}" if unit.strip() in ("%", "s") else unit), 13, weight="600")]
    for share in (0.0, 0.5, 1.0):
        y = top + HEIGHT * (1 - share)
        parts.append(f"<line x1='{left}' x2='{left + WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='{svg.GRID}'/>")
        parts.append(svg.text(left - 8, y + 4, f"{edge * share:g}", 11, svg.FAINT, "end"))
    for minutes in range(0, round((end - start) / 60) + 1, 5):
        x = left + WIDTH * (1 - minutes * 60 / (end - start))
        parts.append(svg.text(x, top + HEIGHT + 16, f"-{minutes} min" if minutes else "now", 10.5, svg.FAINT, "middle"))
    x = float(left)
    for name, points in lines:
        # A service has one colour in all panels.
        color = colors.setdefault(name.removeprefix("svc_"), COLORS[len(colors) % len(COLORS)])
        path = " ".join(
            f"{left + WIDTH * (at - start) / (end - start):.1f},{top + HEIGHT * (1 - value * scale / edge):.1f}" for at, value in points
        )
        parts.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='1.6' stroke-linejoin='round'/>")
        parts.append(f"<rect x='{x:.1f}' y='{top + HEIGHT + 26}' width='10' height='7' rx='2' fill='{color}'/>")
        parts.append(svg.text(x + 15, top + HEIGHT + 33, name, 11))
        x += 15 + 6.2 * len(name) + 18
    return "\n".join(parts)


def main() -> None:
    """Ask and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", default="ptolemy-lab", help="of the lab's containers (default: ptolemy-lab)")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "monitoring.svg")
    given = parser.parse_args()
    end = time.time()
    start = end - given.minutes * 60
    panels = [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] == "timeseries"]
    parts: list[str] = []
    colors: dict[str, str] = {}
    for place, panel in enumerate(panels):
        lines = []
        for target in panel["targets"]:
            for found in series(given.prefix, target["expr"], start, end):
                points = [(float(at), float(value)) for at, value in found["values"]]
                known = [(at, value) for at, value in points if math.isfinite(value)]
                if known:
                    lines.append((named(target["legendFormat"], found["metric"]), known))
        parts.append(chart(panel, sorted(lines), colors, place, start, end))
    words = "The lab's Prometheus: two services of a fixed size, two that sleep until somebody asks"
    height = TOP + DOWN * math.ceil(len(panels) / 2)
    given.into.write_text(svg.document(1100, height, "Ptolemy: overview", words, parts), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The tables and the plot of docs/performance.md, out of the lines that run.py wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ceiling
import svg
from loads import LOADS
from tables import write_between

MARKER, PLOT = "gpu", "performance.svg"
Row = Mapping[str, Any]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COLORS = {"short": "#2563eb", "classify": "#7c3aed", "chat": "#059669"}


def write(page: Path, results: Path) -> None:
    """The tables into the page, the plot beside it."""
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    (page.parent / PLOT).write_text(plot(rows), encoding="utf-8")
    write_between(page, MARKER, "\n".join(tables(rows)))


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """All of it in Markdown: for each kind of GPU a table for each load and the conversations, and what did not start."""
    for gpu in dict.fromkeys(row["gpu"] for row in rows):
        yield f"\n### {gpu}"
        yield from _tables([row for row in rows if row["gpu"] == gpu])
    yield "\nOne letter a card. Seconds and milliseconds are p50 / p99."


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    runs = [row for row in rows if row["kind"] == "run"]
    single = dict.fromkeys(_card(row) for row in runs if row["setup"]["gpus"] == 1)
    cards = {name: chr(ord("A") + number) for number, name in enumerate(single)}
    cards |= {_card(row): f"{row['setup']['gpus']} cards" for row in runs if row["setup"]["gpus"] > 1}
    for name, load in LOADS.items():
        found = [row for row in runs if row["load"] == name]
        if not found:
            continue
        yield f"\n**{load.words[0].upper()}{load.words[1:]}**\n"
        if load.turns > 1:
            yield from _talks(found, cards)
            continue
        yield "| | card | requests/s | tokens/s | of the default | of the ceiling | first, s | between, ms | GPU busy | errors |"
        yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        for model in dict.fromkeys(row["model"] for row in found):
            best = _ceiling(rows, name, model)
            if best:
                yield f"| {_model(model)}ceiling: llama-batched-bench | | {best:.1f} | {best * load.out:,.0f} | | 1.00 | | | | |"
            for row in (row for row in found if row["model"] == model):
                yield _line(row, cards, base(found, row), best * row["setup"]["gpus"])
    failed = [f"{row['setup']['name']} ({row['why'].splitlines()[-1]})" for row in rows if row["kind"] == "failed"]
    if failed:
        yield f"\nDid not start: {'; '.join(failed)}."


def base(rows: Sequence[Row], row: Row) -> float:
    """Requests/s of llama-server's defaults with 64 slots and the same model: on the same card, or else the mean of all."""
    mine = [one for one in rows if one["model"] == row["model"] and one["setup"]["plain"] and one["setup"]["slots"] == 64]
    same = [one["per_second"] for one in mine if _card(one) == _card(row)] or [one["per_second"] for one in mine]
    return sum(same) / len(same) if same else 0.0


def _line(row: Row, cards: Mapping[str, str], default: float, best: float) -> str:
    setup = row["setup"]
    gap = f"{1000 * row['gap'][0]:.0f} / {1000 * row['gap'][1]:.0f}" if row["gap"][1] else ""
    cells = [
        setup["name"],
        cards[_card(row)],
        f"{row['per_second']:.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['per_second'] / default / setup['gpus']:.2f}" if default else "",
        f"{row['per_second'] / best:.2f}" if best else "",
        f"{row['first'][0]:.2f} / {row['first'][1]:.2f}",
        gap,
        f"{row['busy']:.0f} %",
        str(sum(row["errors"].values())),
    ]
    return f"| {' | '.join(cells)} |"


def _talks(rows: Sequence[Row], cards: Mapping[str, str]) -> Iterator[str]:
    yield (
        "| to a server by | card | conversations | for slots | requests/s | tokens in the cache already | first token, s | between, ms"
        " | whole answer, s | GPU busy | errors |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        cells = [
            row["setup"]["name"],
            cards[_card(row)],
            f"{row['slots'] * row['people']:.0f}",
            str(row["slots"]),
            f"{row['per_second']:.1f}",
            f"{100 * row['cached'] / row['prompt']:.0f} %",
            f"{row['first'][0]:.2f} / {row['first'][1]:.2f}",
            f"{1000 * row['gap'][0]:.0f} / {1000 * row['gap'][1]:.0f}",
            f"{row['whole'][0]:.2f} / {row['whole'][1]:.2f}",
            f"{row['busy']:.0f} %",
            str(sum(row["errors"].values())),
        ]
        yield f"| {' | '.join(cells)} |"


def _ceiling(rows: Sequence[Row], load: str, model: str) -> float:
    """Requests/s of the engine with its own flags, at best; 0 where that was not measured."""
    found = [row for row in rows if row["kind"] == "ceiling" and not row["flags"]]
    return max((ceiling.per_second(row["rows"], LOADS[load]) for row in found if (row["load"], row["model"]) == (load, model)), default=0.0)


def _model(name: str) -> str:
    return "" if name == "8b" else f"{name}, "


def _card(row: Row) -> str:
    gpus = row["setup"]["gpus"]
    return str(row["machine"]) if gpus == 1 else f"{row['machine']} and others, {gpus} in all"


def plot(rows: Sequence[Row]) -> str:
    """Requests/s of each setup as a share of the ceiling, for each kind of GPU."""
    top, left, width = 110.0, 300.0, 700.0
    parts = []
    for gpu in dict.fromkeys(row["gpu"] for row in rows):
        mine = [row for row in rows if row["gpu"] == gpu]
        began = top + 22
        parts.append(svg.text(left, top, gpu, 13))
        for share in SHARES:
            parts.append(svg.text(left + width * share, began - 6, f"{share:.0%}", 11, svg.FAINT, "middle"))
        bars, top = _bars(mine, began, left, width)
        for share in SHARES:
            x = left + width * share
            parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{began:.1f}' y2='{top:.1f}' stroke='{svg.GRID}'/>")
        parts += bars
        top += 30
    parts.append(svg.key(left + width, 84, [(color, LOADS[load].words.split(":", maxsplit=1)[0]) for load, color in COLORS.items()]))
    title = "Requests a second on one GPU, as a share of the engine's own ceiling"
    return svg.document(1100, int(top), title, "8B in Q4_K_M, random weights, by bench/gpu; where there are two cards, their mean", parts)


def _bars(rows: Sequence[Row], top: float, left: float, width: float) -> tuple[list[str], float]:
    """A bar for each setup and load, and where the last of them ends."""
    runs = [row for row in rows if row["kind"] == "run" and row["load"] in COLORS and row["model"] == "8b" and row["setup"]["gpus"] == 1]
    parts = []
    for name in dict.fromkeys(row["setup"]["name"] for row in runs):
        parts.append(svg.text(left - 10, top + 15, name, 12, anchor="end"))
        for load, color in COLORS.items():
            best = _ceiling(rows, load, "8b")
            mine = [row["per_second"] for row in runs if row["setup"]["name"] == name and row["load"] == load]
            if mine and best:
                mean = sum(mine) / len(mine)
                size = width * min(mean / best, 1.1)
                parts.append(f"<rect x='{left}' y='{top:.1f}' width='{size:.1f}' height='11' rx='2' fill='{color}'/>")
                parts.append(svg.text(left + size + 6, top + 10, f"{mean:.1f}/s", 10.5))
                top += 14
        top += 10
    return parts, top

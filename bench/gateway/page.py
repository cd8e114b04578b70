"""The tables and plots of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plots
from crowd import Crowd
from names import DIRECT, LITELLM, NGINX, OURS, SMALL
from results import Results, added, cpu_per_thousand, per_second, ratio
from tables import percentile, write_between

MARKER = "gateway"
RATE_PLOT, LATENCY_PLOT = "gateway-rates.svg", "gateway-latency.svg"
BOLD = {OURS: f"**{OURS}**"}


def write(page: Path, text: str, found: Results) -> None:
    """The tables into the page, the plots beside it."""
    (page.parent / RATE_PLOT).write_text(plots.rates(found), encoding="utf-8")
    (page.parent / LATENCY_PLOT).write_text(plots.latency(found), encoding="utf-8")
    write_between(page, MARKER, text)


def tables(found: Results) -> str:
    """All of it in Markdown."""
    head = f"{'; '.join(found.versions)}; load of the machine before the run {found.load:.1f}."
    return "\n".join([_verdict(found), "", *_rates(found), "", *_latency(found), "", *_crowds(found), "", head])


def _verdict(found: Results) -> str:
    parts = []
    for kind, rates in found.rates.items():
        than = [f"{ratio(rates[OURS], rates[peer]):.2f} of {peer}'s" for peer in (NGINX,) if peer in rates]
        than += [f"{ratio(rates[OURS][:1], rates[peer][:1]):.0f} times {peer}'s" for peer in (LITELLM,) if peer in rates]
        if than:
            parts.append(f"{kind} requests/s {' and '.join(than)}")
        if SMALL in rates and NGINX in rates:
            parts.append(f"with buffers of 64 kB {ratio(rates[SMALL], rates[NGINX]):.2f} of {NGINX}'s")
    streams = max(found.latency)
    ours, direct = found.latency[streams][OURS], found.latency[streams][DIRECT]
    numbers = [f"{added(ours.token, direct.token, share):.2f}" for share in (0.5, 0.99)]
    parts.append(f"{numbers[0]} ms added to a token at the median of {streams} streams and {numbers[1]} at p99")
    crowds = found.crowds[OURS]
    failed = ", ".join(str(one.failed) for one in crowds)
    parts.append(f"{crowds[0].offered:,} requests at once, {len(crowds)} times: {failed} failed")
    return f"**Ptolemy**: {'; '.join(parts)}."


def _rates(found: Results) -> list[str]:
    kinds = list(found.rates)
    lines = [
        "| | " + " | ".join(f"{kind} requests/s | CPU s / 1,000" for kind in kinds) + " | failed |",
        "|---|" + "--:|--:|" * len(kinds) + "--:|",
    ]
    for name in found.rates[kinds[0]]:
        cells = []
        for kind in kinds:
            rates = found.rates[kind][name]
            cells += [f"{per_second(rates):,.0f}", "–" if name == DIRECT else f"{cpu_per_thousand(rates):.2f}"]
        failed = sum(rate.failed for kind in kinds for rate in found.rates[kind][name])
        lines.append(f"| {BOLD.get(name, name)} | {' | '.join(cells)} | {failed} |")
    return lines


def _latency(found: Results) -> list[str]:
    lines = [
        "| streams | | first byte, ms, p50 / p99 | added | token, ms, p50 / p99 | added | CPU s / 100,000 tokens | whole | failed |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for streams, samples in found.latency.items():
        direct = samples[DIRECT]
        for name, sample in samples.items():
            cells = []
            for mine, base in ((sample.first, direct.first), (sample.token, direct.token)):
                cells.append(" / ".join(f"{percentile(mine, share):.2f}" for share in (0.5, 0.99)) if mine else "–")
                more = [f"{added(mine, base, share):+.2f}" for share in (0.5, 0.99)] if mine and base else ["–"]
                cells.append("–" if name == DIRECT else " / ".join(more))
            cpu = "–" if name == DIRECT or not sample.tokens else f"{1e5 * sample.cpu / sample.tokens:.1f}"
            lines.append(f"| {streams} | {BOLD.get(name, name)} | {' | '.join(cells)} | {cpu} | {sample.streams} | {sample.failed} |")
    return lines


def _crowds(found: Results) -> list[str]:
    lines = [
        "| at once | | open together | answered | failed | in | waited for a slot, p50 / max | out of turn | CPU s | peak memory |",
        "|--:|---|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for name, crowds in found.crowds.items():
        lines += [_crowd(BOLD.get(name, name), one) for one in crowds]
    return lines


def _crowd(name: str, one: Crowd) -> str:
    waits = ", ".join(f"{_tier(one, tier)}{p50:.1f} / {worst:.1f} s" for tier, (p50, worst) in one.waits.items())
    disorder = ", ".join(f"{_tier(one, tier)}{100 * share:.1f} %" for tier, share in one.disorder.items())
    cells: Sequence[str] = [
        f"{one.offered:,}",
        name,
        f"{one.open:,}",
        f"{one.answered:,}",
        f"{one.failed:,}",
        f"{one.seconds:.0f} s",
        waits or "–",
        disorder or "–",
        f"{one.cpu:.1f}",
        f"{one.memory / 1e6:,.0f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def _tier(one: Crowd, tier: str) -> str:
    return f"{tier} " if len(one.waits) > 1 else ""

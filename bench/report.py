"""The scaling simulation's table and plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Sequence

import day
import svg

if TYPE_CHECKING:
    from scaling_sim import Result

Sizes = Mapping[str, Mapping[int, "Result"]]
EQUAL = 0.005  # seconds by which two waits may differ and be called equal
CHAT, CLASSIFY, FIXED, OTHERS, NAIVE = "#2563eb", "#ea580c", "#475569", "#cbd5e1", "#94a3b8"
LABELS = {"naive": "no smoothing, hysteresis or delay", "HPA": "Kubernetes' HPA rule"}


def equal_size(result: Result, sizes: Mapping[int, Result]) -> int:
    """The smallest fixed number of replicas whose p95 queue wait over the day is no longer than ``result``'s.

    Raises:
        ValueError: the next smaller number was not tried, so nobody knows.
    """
    found = min(count for count, size in sizes.items() if size.all_waits[1] <= result.all_waits[1] + EQUAL)
    if found > 1 and found - 1 not in sizes:
        raise ValueError(f"{found} replicas are enough, but {found - 1} were not tried")
    return found


def tables(results: Mapping[str, Mapping[str, Result]], sizes: Sizes, limits: Mapping[str, int], options: Mapping[str, Any]) -> str:
    """Markdown: the day as a whole, then each service."""
    ours = results["Ptolemy"]
    equal = {name: equal_size(ours[name], sizes[name]) for name in limits}
    rows = [("**Ptolemy**", [ours[name] for name in limits])]
    rows.append(
        (f"fixed, equal p95 wait: {equal['chat']} chat, {equal['classify']} classify", [sizes[name][equal[name]] for name in limits])
    )
    rows += [(LABELS[peer], [found[name] for name in limits]) for peer, found in results.items() if peer in LABELS]
    rows.append((f"always max: {limits['chat']} chat, {limits['classify']} classify", [sizes[name][limits[name]] for name in limits]))
    total = sum(result.gpu_hours for result in ours.values())
    peer = sum(sizes[name][equal[name]].gpu_hours for name in limits)
    saved = f"{peer - total:.0f} of {peer:.0f} GPU-hours saved ({100 * (1 - total / peer):.0f} %)"
    lines = [
        f"**{saved}** against fixed sizing at equal p95 queue wait.",
        "",
        "| | GPU-hours | p95 wait, chat / batch | p99 wait, chat / batch | longest wait, chat / batch | refused | scale changes |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for label, both in rows:
        waits = [" / ".join(_seconds(result.all_waits[index]) for result in both) for index in (1, 2, 3)]
        hours, refused, changes = (sum(values) for values in zip(*((r.gpu_hours, r.refused, r.changes) for r in both)))
        lines.append(f"| {label} | {hours:.1f} | {' | '.join(waits)} | {refused:.0f} | {changes or '–'} |")
    lines += [
        "",
        *_chat(results, sizes, equal["chat"], limits["chat"]),
        "",
        *_batch(results, sizes, equal["classify"], limits["classify"]),
        "",
    ]
    answered = sum(result.answered for result in ours.values())
    lines.append(
        f"Seed {options['seed']}; {answered:,} requests answered, {ours['chat'].answered:,} of them chat; models load in"
        f" {options['load_seconds'][0]:g} to {options['load_seconds'][1]:g} s; other people use up to 48 of the 64 GPUs."
        f" While `classify` woke from 0, its first requests waited {ours['classify'].bare} s without any replica."
    )
    return "\n".join(lines)


def _chat(results: Mapping[str, Mapping[str, Result]], sizes: Sizes, equal: int, most: int) -> Sequence[str]:
    lines = [
        "| `chat` | GPU-hours | wait p50 / p95 / p99 / max | the same in the lecture | answered within, p50 / p95 / p99 | changes |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    rows = [("**Ptolemy**", results["Ptolemy"]["chat"])]
    rows += [
        (f"fixed, {count}" + (" (equal p95)" if count == equal else ""), sizes["chat"][count])
        for count in sorted({equal - 1, equal, most})
        if count
    ]
    rows += [(LABELS[peer], found["chat"]) for peer, found in results.items() if peer in LABELS]
    for label, result in rows:
        lecture = _list(result.waits["lecture"])
        answers = " / ".join(map(_seconds, result.all_answers[:3]))
        lines.append(f"| {label} | {result.gpu_hours:.1f} | {_list(result.all_waits)} | {lecture} | {answers} | {result.changes or '–'} |")
    return lines


def _batch(results: Mapping[str, Mapping[str, Result]], sizes: Sizes, equal: int, most: int) -> Sequence[str]:
    lines = ["| `classify`, 500,000 rows | GPU-hours | wait p50 / p95 / p99 / max | the batch took | changes |", "|---|--:|--:|--:|--:|"]
    rows = [("**Ptolemy**", results["Ptolemy"]["classify"])]
    rows += [
        (f"fixed, {count}" + (" (equal p95)" if count == equal else ""), sizes["classify"][count])
        for count in sorted({1, equal - 1, equal, most})
    ]
    rows += [(LABELS[peer], found["classify"]) for peer, found in results.items() if peer in LABELS]
    for label, result in rows:
        minutes = (result.finished - day.BATCH_AT) / 60
        lines.append(f"| {label} | {result.gpu_hours:.1f} | {_list(result.all_waits)} | {minutes:.0f} min | {result.changes or '–'} |")
    return lines


def _list(waits: Sequence[float]) -> str:
    return " / ".join(map(_seconds, waits[:4]))


def _seconds(value: float) -> str:
    return "0" if value < EQUAL else f"{value:.1f} s" if value < 60 else f"{value / 60:.0f} min"


def plot(results: Mapping[str, Mapping[str, Result]], sizes: Sizes, others: Sequence[float], arrivals: Sequence[float]) -> str:
    """The day as a picture: load, replicas of both services, queue, the cluster's GPUs."""
    ours = results["Ptolemy"]
    equal = {name: equal_size(result, sizes[name]) for name, result in ours.items()}
    left, width = 64.0, 1000.0
    lecture = (day.LECTURE_AT / day.HOUR, (day.LECTURE_AT + day.LECTURE_LASTS) / day.HOUR)
    batch = (day.BATCH_AT / day.HOUR, ours["classify"].finished / day.HOUR)
    total = sum(result.gpu_hours for result in ours.values())
    fixed = sum(sizes[name][equal[name]].gpu_hours for name in equal)

    load = svg.Panel(110, 110, left, width, 45, (0, 15, 30, 45), "Chat requests a second")
    chat = svg.Panel(270, 120, left, width, 9, (0, 2, 4, 6, 8), "Replicas of chat")
    classify = svg.Panel(440, 120, left, width, 17, (0, 4, 8, 12, 16), "Replicas of classify")
    queue = svg.Panel(610, 120, left, width, 40, (0, 10, 20, 30, 40), "Age of the oldest waiting request, seconds")
    gpus = svg.Panel(780, 120, left, width, 64, (0, 16, 32, 48, 64), "The cluster's 64 GPUs")
    for panel in (load, chat, classify, queue, gpus):
        panel.frame(hours=panel is gpus)
        first = panel is load
        panel.band(*lecture, CHAT, "lecture, 200 students" if first else "")
        panel.band(*batch, CLASSIFY, "500,000 rows" if first else "")
    load.line(arrivals, CHAT, 1.1)
    for panel, name, color in ((chat, "chat", CHAT), (classify, "classify", CLASSIFY)):
        panel.steps(ours[name].minutes["replicas"], color, fill=0.25)
        panel.level(equal[name], FIXED, f"fixed sizing with the same p95 wait: {equal[name]}")
        panel.parts.append(
            svg.text(
                left + width,
                panel.top - 10,
                f"{ours[name].gpu_hours:.0f} instead of {sizes[name][equal[name]].gpu_hours:.0f} GPU-hours",
                12,
                color,
                "end",
                "600",
            )
        )
    queue.line(results["naive"]["chat"].minutes["oldest"], NAIVE, 1.0)
    queue.line(ours["classify"].minutes["oldest"], CLASSIFY, 1.8)
    queue.line(ours["chat"].minutes["oldest"], CHAT, 1.8)
    queue.parts.append(
        svg.key(
            left + width, queue.top - 10, [(CHAT, "chat"), (CLASSIFY, "classify"), (NAIVE, "chat without smoothing, hysteresis, delay")]
        )
    )
    stack = [list(others)]
    for name in ("chat", "classify"):
        stack.append([below + more for below, more in zip(stack[-1], ours[name].minutes["replicas"])])
    for values, color in ((stack[2], CLASSIFY), (stack[1], CHAT), (stack[0], OTHERS)):
        gpus.steps(values, color, fill=1.0, stroke=0)
    gpus.parts.append(svg.key(left + width, gpus.top - 10, [(OTHERS, "other people's jobs"), (CHAT, "chat"), (CLASSIFY, "classify")]))
    subtitle = (
        f"{total:.0f} GPU-hours instead of {fixed:.0f} ({100 * (1 - total / fixed):.0f} % less) at the same p95 queue wait;"
        f" {sum(result.answered for result in ours.values()):,} requests, none refused"
    )
    parts = [part for panel in (load, chat, classify, queue, gpus) for part in panel.parts]
    return svg.document(1100, 940, "A day of load on 64 GPUs, by bench/scaling_sim.py", subtitle, parts)

#!/usr/bin/env python3
"""How long people wait for the first token of a chat while a batch asks for every slot, and what the batch loses by it.

Runs against any gateway; the services must be otherwise idle. On the lab (it adds the two keys that it needs, and revokes them):

    make lab && .venv/bin/python bench/fairness.py --lab --page docs/benchmarks.md

Elsewhere, with two keys of the gateway: one of the tier interactive that may speak for others (`ptolemy keys add … --speaks`), one
of another user, interactive too (it asks for the tier batch by header where the table says so):

    PTOLEMY_CHAT_KEY=… PTOLEMY_BATCH_KEY=… python bench/fairness.py --base-url https://gateway/v1 --service chat

Chats come at random times (Poisson), however slow the answers are, each from one of 20 people. The batch is a closed loop. The same
loads take turns, round after round, so that a drift of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tables import percentile, write_between

PEOPLE = 20
WARM_UP = 5.0  # seconds at the start of a turn that are not counted; ptolemyd sees within one of them that somebody chats
ALONE, BATCH_ALONE, QUEUE, USERS, TIERS = "chats alone", "batch alone", "one queue, no tiers", "fair by user, no tiers", "tiers"
TURNS = (ALONE, BATCH_ALONE, QUEUE, USERS, TIERS)
WORDS = "paper train hotel invoice toner licence coffee repair rental books postage fuel seminar laptop taxi cleaning print lunch".split()


@dataclass
class Seen:
    """What one kind of turn showed, all rounds together.

    Attributes:
        first_token: seconds from a chat's request to its first token.
        queued: milliseconds that the gateway says a chat waited in its queues.
        rows: rows of the batch that were answered.
        seconds: counted time.
        failed: answers other than 200, of both loads.
    """

    first_token: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0
    failed: int = 0

    def wait(self, quantile: float) -> float:
        """Seconds to the first token."""
        return percentile(self.first_token, quantile)

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


@dataclass(frozen=True)
class Loads:
    """Both loads of one run. Tokens are words here: the demo model's and a real one's do not differ much for these."""

    base_url: str
    chat_key: str
    batch_key: str
    service: str
    chats_per_second: float
    rows_at_once: int
    chat_tokens: tuple[int, int] = (400, 48)
    row_tokens: tuple[int, int] = (160, 16)

    async def turn(self, kind: str, seconds: float, seed: int, seen: Seen) -> None:
        """Send what ``kind`` says for ``seconds``, then wait for the answers."""
        chance = random.Random(seed)  # the same arrivals in every kind of turn of a round
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
            begin = time.monotonic() + WARM_UP
            end = begin + seconds
            running = []
            if kind != ALONE:
                running = [
                    asyncio.ensure_future(self._rows(session, kind, number, begin, end, seen)) for number in range(self.rows_at_once)
                ]
            at = begin - WARM_UP
            while kind != BATCH_ALONE:
                at += chance.expovariate(self.chats_per_second)
                if at >= end:
                    break
                await asyncio.sleep(max(at - time.monotonic(), 0))
                running.append(asyncio.ensure_future(self._chat(session, kind, chance.randrange(2**32), at >= begin, seen)))
            await asyncio.gather(*running)
            seen.seconds += seconds

    async def _chat(self, session: aiohttp.ClientSession, kind: str, seed: int, counted: bool, seen: Seen) -> None:
        headers = {"Authorization": f"Bearer {self.chat_key}", "X-OpenWebUI-User-Id": f"person-{seed % PEOPLE}"}
        if kind == QUEUE:  # the batch's own user: HAProxy's queue is then first come, first served
            headers = {"Authorization": f"Bearer {self.batch_key}"}
        began = time.monotonic()
        async with session.post(self._url, json=self._body(self.chat_tokens, seed, stream=True), headers=headers) as answer:
            first = 0.0
            async for line in answer.content:
                if not first and line.startswith(b"data:"):
                    first = time.monotonic() - began
            if answer.status != 200:
                seen.failed += 1
            elif counted:
                seen.first_token.append(first)
                seen.queued.append(float(answer.headers["x-ptolemy-queue-ms"]))

    async def _rows(self, session: aiohttp.ClientSession, kind: str, number: int, begin: float, end: float, seen: Seen) -> None:
        headers = {"Authorization": f"Bearer {self.batch_key}"}
        if kind == TIERS:
            headers["X-Ptolemy-Tier"] = "batch"
        chance = random.Random(number)
        while time.monotonic() < end:
            body = self._body(self.row_tokens, chance.randrange(2**32), shared=100)
            async with session.post(self._url, json=body, headers=headers) as answer:
                await answer.read()
                if answer.status != 200:
                    seen.failed += 1
                elif begin <= time.monotonic() < end:
                    seen.rows += 1

    @property
    def _url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def _body(self, tokens: tuple[int, int], seed: int, shared: int = 0, **more: object) -> dict[str, object]:
        given, wanted = tokens
        chance = random.Random(seed)
        text = " ".join([*(WORDS * given)[:shared], *(chance.choice(WORDS) for _ in range(given - shared))])
        return {
            "model": self.service, "messages": [{"role": "user", "content": text}], "max_tokens": wanted, "ignore_eos": True, **more,
        }  # fmt: skip


def table(found: dict[str, Seen], loads: Loads, rounds: int, seconds: float) -> str:
    """Markdown."""
    alone, batch = found[ALONE].wait(0.95), found[BATCH_ALONE].rows_per_second
    lines = [
        f"`bench/fairness.py`, {rounds} rounds of {seconds:.0f} s for each line: {loads.chats_per_second:g} chats/s "
        f"({loads.chat_tokens[0]} words in, {loads.chat_tokens[1]} tokens out, streamed, {PEOPLE} people) and a batch that keeps "
        f"{loads.rows_at_once} rows in flight ({loads.row_tokens[0]} words in, 100 of them shared; {loads.row_tokens[1]} tokens out).",
        "",
        "| | chats | first token p50 | p95 | p99 | p95 against alone | waited at the gateway p95 | batch rows/s | of alone |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in TURNS:
        seen = found[kind]
        cells = ["–"] * 6
        if seen.first_token:
            waits = [f"{1000 * seen.wait(quantile):.0f} ms" for quantile in (0.5, 0.95, 0.99)]
            cells = [str(len(seen.first_token)), *waits, f"{seen.wait(0.95) / alone:.2f}", f"{percentile(seen.queued, 0.95):.0f} ms"]
        rows = [f"{seen.rows_per_second:.1f}", f"{seen.rows_per_second / batch:.2f}"] if seen.rows else ["–", "–"]
        lines.append(f"| {kind} | {' | '.join([*cells, *rows])} |")
    return "\n".join(lines)


def of_lab(state: Path, prefix: str) -> tuple[str, str, str]:
    """The lab's address and two new keys of its gateway."""
    address = dict(line[len("export ") :].split("=", 1) for line in (state / "env").read_text().splitlines())["OPENAI_BASE_URL"]
    chat_key = _on_head(prefix, "add", "bench-chat", "--user", "campus", "--tier", "interactive", "--speaks")
    batch_key = _on_head(prefix, "add", "bench-batch", "--user", "researcher", "--tier", "interactive")
    return address, chat_key, batch_key


def _on_head(prefix: str, *command: str) -> str:
    done = subprocess.run(
        ["podman", "exec", f"{prefix}-head", "ptolemy", "keys", *command], text=True, stdout=subprocess.PIPE, timeout=60, check=True
    )
    return done.stdout.strip()


async def measure(loads: Loads, rounds: int, seconds: float) -> dict[str, Seen]:
    found = {kind: Seen() for kind in TURNS}
    for number in range(rounds):
        for kind in TURNS:
            await loads.turn(kind, seconds, number, found[kind])
            seen = found[kind]
            wait = f"p95 {1000 * seen.wait(0.95):.0f} ms" if seen.first_token else ""
            print(f"round {number + 1} of {rounds}, {kind}: {wait} {seen.rows_per_second:.1f} rows/s", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", action="store_true", help="make the keys on the lab's head, and revoke them at the end")
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--service", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40, help="of each turn")
    parser.add_argument("--chats-per-second", type=float, default=1.0)
    parser.add_argument("--rows-at-once", type=int, default=32)
    parser.add_argument("--page", type=Path, help="the page whose table between markers is replaced; otherwise it is printed")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end by a signal revokes the keys, too
    prefix = os.environ.get("LAB_PREFIX", "ptolemy-lab")
    try:
        if given.lab:
            base_url, chat_key, batch_key = of_lab(Path(os.environ.get("LAB_STATE_DIR", ".lab")), prefix)
        else:
            base_url, chat_key, batch_key = given.base_url, os.environ["PTOLEMY_CHAT_KEY"], os.environ["PTOLEMY_BATCH_KEY"]
        loads = Loads(base_url, chat_key, batch_key, given.service, given.chats_per_second, given.rows_at_once)
        found = asyncio.run(measure(loads, given.rounds, given.seconds))
    finally:
        if given.lab:
            for name in ("bench-chat", "bench-batch"):
                _on_head(prefix, "revoke", name)
    text = table(found, loads, given.rounds, given.seconds)
    failed = sum(seen.failed for seen in found.values())
    print(json.dumps({"failed": failed}), file=sys.stderr)
    if given.page:
        write_between(given.page, "fairness", f"\n{text}\n")
    else:
        print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

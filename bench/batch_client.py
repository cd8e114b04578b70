#!/usr/bin/env python3
"""How fast the researchers' client is, and how much memory it takes, against a stub gateway that answers at once.

    ~/.cache/ptolemy/client-*/bin/python bench/batch_client.py                                  # a table on standard output
    ~/.cache/ptolemy/client-*/bin/python bench/batch_client.py --page docs/benchmarks.md

The measure is a bare asyncio loop: the same HTTP library, the same requests, made out of nothing and thrown away. The client besides reads
a CSV file, renders a template, looks for equal rows, keeps its ledger (fsync), and writes the output.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import orjson

from tables import write_between

ROOT = Path(__file__).parents[1]
STUB = ROOT / "client" / "tests" / "stub.py"
KEY = "stub-key"
LABELS = "labels:\n  travel: trains, flights, hotels\n  office: paper, pens\n  fees: bank fees\n  other: all else\n"
CLIENTS = 64  # of the bare loop


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--page", type=Path, help="write the table between this page's markers")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        asyncio.run(bare(options.bare, options.rows))
        return
    with tempfile.TemporaryDirectory() as scratch:
        words = measure(Path(scratch), options.rows)
    if options.page:
        write_between(options.page, "batch-client", words)
    else:
        print(words)


def text(number: int) -> str:
    """The description of a row: 60 to 70 characters, each different."""
    return f"Invoice {number:07d}: train ticket Cologne to Berlin, 2nd class, return"


def measure(scratch: Path, rows: int) -> str:
    """Both runs against one stub; returns the table."""
    with (scratch / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "description", "amount"])
        writer.writerows((number, text(number), f"{number % 977}.50") for number in range(rows))
    (scratch / "labels.yml").write_text(LABELS)
    (scratch / "key").write_text(KEY)
    (scratch / "key").chmod(0o600)
    stub = subprocess.Popen([sys.executable, str(STUB), "0", "-"], stdout=subprocess.PIPE, text=True)
    try:
        assert stub.stdout
        url = f"http://127.0.0.1:{stub.stdout.readline().strip()}"
        # Before and after the client, because machines become faster and slower.
        loops = [loop(url, rows)]
        whole, asking, memory = client(scratch, url)
        loops.append(loop(url, rows))
    finally:
        stub.kill()
        stub.wait()
    bare_rate, asking_rate, whole_rate = sum(loops) / 2, rows / asking, rows / whole
    cores = len(os.sched_getaffinity(0))
    return "\n".join(
        [
            "",
            f"{rows:,} rows, all different, Python {platform.python_version()}, {cores} cores, one of them for the stub:",
            "",
            "| | rows/s | against the bare loop |",
            "|---|--:|--:|",
            f"| bare asyncio loop, {CLIENTS} at once, before and after ({loops[0]:,.0f}, {loops[1]:,.0f}) | {bare_rate:,.0f} | 1 |",
            f"| `ptolemy-batch classify`, while it asks ({asking:.0f} s) | {asking_rate:,.0f} | {asking_rate / bare_rate:.2f} |",
            f"| `ptolemy-batch classify`, start to output ({whole:.0f} s) | {whole_rate:,.0f} | {whole_rate / bare_rate:.2f} |",
            "",
            f"Peak memory of the client: {memory / 1024:.0f} MiB.",
            "",
        ]
    )


def loop(url: str, rows: int) -> float:
    """Rows a second of the bare loop; a fifth of the rows is enough to tell."""
    count = max(rows // 5, 1000)
    argv = [sys.executable, __file__, "--bare", url, "--rows", str(count)]
    return count / float(subprocess.check_output(argv, timeout=600))


def client(scratch: Path, url: str) -> tuple[float, float, int]:
    """One run of the client; returns the seconds in all, those of asking, and its peak memory in KiB."""
    argv = [sys.executable, "-m", "ptolemy_client", "classify", "data.csv", "--text", "description", "--labels", "labels.yml"]
    argv += ["-o", "out.parquet", "--restart", "--json", "--url", url, "--key-file", "key", "--model", "stub"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client" / "src")}
    began = time.monotonic()
    with (scratch / "events").open("w") as events:
        child = subprocess.Popen(argv, cwd=scratch, env=environment, stdout=events)
        _, status, used = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"the client failed: {(scratch / 'events').read_text()[-500:]}")
    summary = json.loads((scratch / "events").read_text().splitlines()[-1])
    return seconds, summary["seconds"], used.ru_maxrss


async def bare(url: str, rows: int) -> None:
    """Ask for all rows with nothing around it; prints the seconds."""
    names = ("travel", "office", "fees", "other")
    grammar = "root ::= " + " | ".join(f'"{name}"' for name in names)
    system = {"role": "system", "content": LABELS}
    body = {"model": "stub", "temperature": 0, "max_tokens": 38, "logprobs": True, "top_logprobs": 20, "grammar": grammar}
    before, after = orjson.dumps({**body, "messages": [system, {"role": "user", "content": "MARK"}]}).split(b'"MARK"')
    numbers = iter(range(rows))
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    async def work(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            async with session.post(f"{url}/v1/chat/completions", data=before + orjson.dumps(text(number)) + after) as response:
                if orjson.loads(await response.read())["choices"][0]["message"]["content"] not in names:
                    raise SystemExit("not a label")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        began = time.monotonic()
        await asyncio.gather(*(work(session) for _ in range(CLIENTS)))
        print(time.monotonic() - began)


if __name__ == "__main__":
    main()

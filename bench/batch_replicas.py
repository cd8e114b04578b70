#!/usr/bin/env python3
"""How much of what the lab's replicas can do a batch gets through the gateway, against a plain closed loop at the replicas themselves.

    make lab && PYTHONPATH=client/src "$(client/bootstrap)/bin/python" bench/batch_replicas.py [--page docs/benchmarks.md]

The plain load keeps as many requests in flight at each llama-server as it has slots, and sends them directly, with the server's own key:
nothing is between them, and no slot is ever idle. The client sends such requests through the gateway, in the tier batch. They take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import hmac
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from ptolemy_client.labels import read_labels
from ptolemy_client.tasks import Classify
from tables import write_between

ROOT = Path(__file__).parents[1]
STATE = Path(os.environ.get("LAB_STATE_DIR", ROOT / ".lab"))
PREFIX = os.environ.get("LAB_PREFIX", "ptolemy-lab")
SERVICE = "demo"
LABELS = "labels:\n  air travel: flights\n  hotel: nights away\n  taxi: rides\n  office supplies: paper, pens, toner\n  other: all else\n"
WORDS = "paper train hotel invoice toner licence coffee repair rental books postage fuel seminar laptop taxi cleaning print lunch".split()


def descriptions(count: int, seed: int) -> list[str]:
    """Rows of 20 words, all different."""
    chance = random.Random(seed)
    return [f"{number} {' '.join(chance.choices(WORDS, k=20))}" for number in range(count)]


def replicas() -> tuple[list[str], int, str]:
    """The URLs of the service's servers, the slots of each, and their key."""
    shown = subprocess.check_output(["podman", "exec", f"{PREFIX}-head", "ptolemy", "status", "--json"], timeout=60)
    service = next(row for row in json.loads(shown)["services"] if row["service"] == SERVICE)
    secret = (STATE / "backend_key").read_text().strip()
    urls = [f"http://{server['address']}" for server in service["servers"] if server["up"]]
    return urls, service["servers"][0]["slots"], hmac.new(secret.encode(), SERVICE.encode(), "sha256").hexdigest()


async def plain(texts: list[str], labels: Path) -> float:
    """Rows a second of the closed loop."""
    urls, slots, key = replicas()
    task = Classify(SERVICE, read_labels(labels), many=False, probabilities=True, constraint="grammar", prefix="", parameters={})
    rows = iter(texts)

    async def work(session: aiohttp.ClientSession, url: str) -> None:
        for row in rows:
            path, body = task.request(row)
            async with session.post(url + path, data=body) as response:
                task.read(json.loads(await response.read()))

    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        began = time.monotonic()
        await asyncio.gather(*(work(session, url) for url in itertools.chain(*[urls] * slots)))
        return len(texts) / (time.monotonic() - began)


def client(texts: list[str], scratch: Path) -> float:
    """Rows a second of the client while it asks."""
    address = dict(line.removeprefix("export ").split("=", 1) for line in (STATE / "env").read_text().splitlines())["OPENAI_BASE_URL"]
    with (scratch / "data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["description"], *([text] for text in texts)])
    argv = [sys.executable, "-m", "ptolemy_client", "classify", "data.csv", "--text", "description", "--labels", "labels.yml"]
    argv += ["-o", "out.csv", "--restart", "--json", "--url", address, "--key-file", str(STATE / "api_key"), "--model", SERVICE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client" / "src")}
    done = subprocess.run(argv, cwd=scratch, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise SystemExit(f"the client failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    return len(texts) / float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1500, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", type=Path, help="write the table between this page's markers")
    options = parser.parse_args()
    loops, clients = [], []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "labels.yml").write_text(LABELS)
        for number in range(options.rounds):
            # Other rows in each turn, so that no server has them in its cache.
            loops.append(asyncio.run(plain(descriptions(options.rows, 2 * number), scratch / "labels.yml")))
            clients.append(client(descriptions(options.rows, 2 * number + 1), scratch))
            print(f"round {number + 1}: {loops[-1]:.1f} rows/s plain, {clients[-1]:.1f} rows/s by the client", file=sys.stderr, flush=True)
    urls, slots, _ = replicas()
    loop, through = sum(loops) / len(loops), sum(clients) / len(clients)
    words = "\n".join(
        [
            "",
            f"{options.rounds} rounds of {options.rows:,} rows each, {len(urls)} llama-server with {slots} slots:",
            "",
            "| | rows/s | against the plain load |",
            "|---|--:|--:|",
            f"| plain closed loop at the llama-server, {slots} in flight | {loop:.1f} | 1 |",
            f"| `ptolemy-batch classify` through the gateway | {through:.1f} | {through / loop:.2f} |",
            "",
        ]
    )
    if options.page:
        write_between(options.page, "batch-replicas", words)
    else:
        print(words)


if __name__ == "__main__":
    main()

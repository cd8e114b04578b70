"""Train the demo model on this machine's CPU and write its release files.

    pip install --require-hashes -r demo/requirements.txt
    python -m demo.train --out demo/release

The same seed, torch and number of threads give the same bytes on the same kind of CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
import time
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from demo import conversations, tokenizer
from demo.descriptions import SEED, Row, Statements, write_rows
from demo.gguf_file import TYPES, write_model
from demo.network import Network
from demo.shape import Shape

HELD_OUT_ROWS = 2000
CORPUS = 4000  # conversations from which the tokenizer learns
BLOCK = 4096  # conversations that are sorted by length together, so that batches hold little padding
BATCH_TOKENS = 4096
PEAK_RATE = 4e-3
WARM_UP = 0.03  # of all steps
WEIGHT_DECAY = 0.05
MOST_SECONDS = 900.0
REPORT_SECONDS = 10.0


class Batch(NamedTuple):
    """Token numbers, batch x position; what comes next there; where that has to be learnt."""

    tokens: Tensor
    following: Tensor
    wanted: Tensor


def numbered(example: conversations.Example, speller: tokenizer.Tokenizer) -> tuple[list[int], int]:
    """An example's tokens, and how many at its end are to be learnt."""
    asked = speller.encode(conversations.prompt(example.messages))
    answer = speller.encode(example.answer + tokenizer.END)
    return asked + answer, len(answer)


def batches(statements: Statements, speller: tokenizer.Tokenizer, avoid: frozenset[str], seed: int) -> Iterator[Batch]:
    """Batches without an end; no description of ``avoid`` (in small letters) is in them."""
    rng = random.Random(f"training {seed}")
    while True:
        drawn = (conversations.example(rng, statements, avoid) for _ in range(BLOCK))
        block = sorted((numbered(example, speller) for example in drawn), key=lambda pair: len(pair[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for pair in block:
            if (len(groups[-1]) + 1) * len(pair[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(pair)
        rng.shuffle(groups)
        yield from map(_padded, groups)


def _padded(group: Sequence[tuple[list[int], int]]) -> Batch:
    length = max(len(numbers) for numbers, _ in group)
    tokens = torch.zeros(len(group), length, dtype=torch.long)
    wanted = torch.zeros(len(group), length - 1, dtype=torch.bool)
    for line, (numbers, learnt) in enumerate(group):
        tokens[line, : len(numbers)] = torch.tensor(numbers)
        wanted[line, len(numbers) - learnt - 1 : len(numbers) - 1] = True
    return Batch(tokens[:, :-1], tokens[:, 1:], wanted)


def rate(step: int, steps: int) -> float:
    """The learning rate's share of its peak: a short rise, then half a cosine down to 2 %."""
    rise = max(1, int(WARM_UP * steps))
    return min(1.0, (step + 1) / rise) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def train(network: Network, source: Iterator[Batch], steps: int) -> None:
    """Train in place, with a line now and then.

    Raises:
        TimeoutError: it would take longer than `MOST_SECONDS`.
    """
    matrices = [weights for weights in network.parameters() if weights.dim() == 2]
    vectors = [weights for weights in network.parameters() if weights.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    began = shown = time.monotonic()
    recent = rows = 0.0
    for step in range(1, steps + 1):
        batch = next(source)
        logits = network(batch.tokens, batch.wanted)
        targets = batch.following[batch.wanted]
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        recent = loss.item() if step == 1 else 0.98 * recent + 0.02 * loss.item()
        rows += len(batch.tokens)
        now = time.monotonic()
        if now - began > MOST_SECONDS:
            raise TimeoutError(f"{step} of {steps} steps took {now - began:.0f} s: lower --steps, or use a machine that is less busy")
        if now - shown > REPORT_SECONDS or step == steps:
            shown = now
            print(f"step {step} of {steps}, {rows:.0f} conversations, loss {recent:.4f}, {now - began:.0f} s", flush=True)


def accuracy(network: Network, speller: tokenizer.Tokenizer, rows: Sequence[Row]) -> float:
    """The share of rows for which the right answer's tokens are the likeliest ones."""
    found = 0
    for row in rows:
        numbers, learnt = numbered(conversations.Example(conversations.question(row), row.label), speller)
        batch = _padded([(numbers, learnt)])
        with torch.no_grad():
            found += bool((network(batch.tokens, batch.wanted).argmax(-1) == batch.following[batch.wanted]).all())
    return found / len(rows)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="directory for the GGUF files, the held-out rows and SHA256SUMS")
    made.add_argument("--steps", type=int, default=4200)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seed", type=int, default=SEED)
    return made


def main() -> int:
    given = parser().parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(given.seed)
    statements = Statements(given.seed)
    held_out = statements.held_out_rows(HELD_OUT_ROWS)
    avoid = frozenset(row.text.lower() for row in held_out)
    rng = random.Random(f"corpus {given.seed}")
    corpus = (conversations.example(rng, statements, avoid) for _ in range(CORPUS))
    speller = tokenizer.learn(" ".join((conversations.prompt(one.messages), one.answer.lower())) for one in corpus)
    network = Network(Shape(len(speller.pieces)))
    print(f"{sum(weights.numel() for weights in network.parameters()):,} parameters, {len(speller.pieces)} tokens", flush=True)
    train(network, batches(statements, speller, avoid, given.seed), given.steps)
    for name, seen in (("seen", True), ("unseen", False)):
        part = [row for row in held_out if row.seen is seen]
        print(f"{name} vendors: {accuracy(network, speller, part):.4f} of {len(part)} held-out rows, before rounding", flush=True)

    given.out.mkdir(parents=True, exist_ok=True)
    weights = {name: values.detach().numpy() for name, values in network.named_parameters()}
    files = [given.out / f"ptolemy-demo-{name}.gguf" for name in TYPES]
    for path, kind in zip(files, TYPES):
        write_model(path, network.shape, speller, weights, kind)
    write_rows(given.out / "held-out.csv", held_out)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (*files, given.out / "held-out.csv")]
    (given.out / "SHA256SUMS").write_text("".join(sums), encoding="ascii")
    print("".join(sums), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

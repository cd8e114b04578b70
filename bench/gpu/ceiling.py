"""What the engine could do at best: llama-batched-bench computes the same shapes without server, sampling, or anybody to wait for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loads import Load

BATCHES = (1, 32, 64, 128)
LONG_BATCHES = (1, 4, 8, 16)


def shapes(load: Load) -> Iterator[tuple[int, int, Sequence[int]]]:
    """(prompt, answer, batches): what has to be computed of a prompt, and an answer after a whole one."""
    batches = LONG_BATCHES if load.own > 4096 else BATCHES
    yield load.own, load.out, batches
    if load.shared > load.own * 4:
        yield load.shared + load.own, load.out, batches[1:]


def measure(program: Path, model: Path, load: Load, gpu: str, flags: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """The rows that llama-batched-bench prints; those that it had where it takes longer than ``seconds`` for one shape."""
    rows = []
    for prompt, answer, batches in shapes(load):
        context = (prompt + answer + 256) * max(batches)
        lists = ("-npp", str(prompt), "-ntg", str(answer), "-npl", ",".join(map(str, batches)))
        command = [str(program), "-m", str(model), "-c", str(context), "-ngl", "999", *lists, "--output-format", "jsonl", *flags]
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        try:
            output = subprocess.run(command, capture_output=True, env=environment, timeout=seconds, check=False).stdout
        except subprocess.TimeoutExpired as late:
            output = late.stdout or b""
        rows += [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
    return rows


def per_second(rows: Sequence[Mapping[str, Any]], load: Load) -> float:
    """Requests a second of the best batch: a request costs its own tokens at the prefill's rate and its answer at the decoder's.

    The attention of its own tokens to what is shared is left out, and so is all that a server does besides: no server can reach it.
    """
    whole = load.shared + load.own if load.shared > load.own * 4 else load.own
    prefill = [float(row["speed_pp"]) for row in rows if (row["pp"], row["tg"]) == (load.own, load.out)]
    decode = [float(row["speed_tg"]) for row in rows if (row["pp"], row["tg"]) == (whole, load.out)]
    if not prefill or not decode:
        return 0.0
    return 1 / (load.own / max(prefill) + load.out / max(decode))

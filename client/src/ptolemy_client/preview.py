"""``--dry-run``: what would be sent, how much of it, and nothing else."""

from __future__ import annotations

import asyncio
import json
from array import array
from typing import Any, Optional, Sequence

import numpy as np

from .display import Display
from .errors import BatchError
from .gateway import Gateway
from .sources import Source
from .tasks import Task

SHOWN = 3
COUNT = "/v1/messages/count_tokens"
BYTES_PER_TOKEN = 4  # of English; used only where the gateway does not count
WAIT = 20.0  # seconds: a service that sleeps is not waited for


def preview(source: Source, task: Task, gateway: Gateway, display: Display) -> int:
    """Print three prompts with their tokens, and how many rows differ; returns the exit status."""
    rows = empty = 0
    seen: set[bytes] = set()
    digests = array("Q")
    shown: list[str] = []
    for some in source.rows():
        for row in some:
            rows += 1
            if row is None:
                empty += 1
                continue
            digests.append(int.from_bytes(row[0][: digests.itemsize], "little"))
            if len(shown) < SHOWN and row[0] not in seen:
                seen.add(row[0])
                shown.append(row[1])
    if not rows:
        raise BatchError(f"{source.path}: has no rows")
    distinct = _distinct(digests)
    requests = [json.loads(task.request(body)[1]) for body in shown]
    counted = asyncio.run(_count(gateway, requests))
    for number, (request, tokens) in enumerate(zip(requests, counted), 1):
        length = f"{tokens:,} tokens" if tokens is not None else f"about {_guess(request):,} tokens (the gateway gave no count)"
        display.step(f"--- prompt {number}: {length}")
        for message in request.get("messages") or [{"role": "request", "content": json.dumps(request, ensure_ascii=False)}]:
            display.step(f"[{message['role']}] {message['content']}")
    each = sum(tokens if tokens is not None else _guess(request) for request, tokens in zip(requests, counted)) / max(len(requests), 1)
    display.step(
        f"--- {rows:,} rows ({source.described}), {empty:,} of them empty; {distinct:,} distinct requests,"
        f" about {each * distinct:,.0f} prompt tokens; nothing was asked"
    )
    display.event("dry_run", rows=rows, empty=empty, distinct=distinct, prompts=shown, prompt_tokens=counted)
    return 0


def _distinct(digests: array[int]) -> int:
    """How many different numbers there are; sorts them.

    Eight bytes of a digest a row, and nothing else, since a file may have ten million rows: two different ones are then taken for the same
    with a probability of about 3 in a million.
    """
    if not digests:
        return 0
    numbers = np.frombuffer(digests, dtype=np.uint64)
    numbers.sort()
    return 1 + int(np.count_nonzero(numbers[1:] != numbers[:-1]))


async def _count(gateway: Gateway, requests: Sequence[dict[str, Any]]) -> list[Optional[int]]:
    """Each request's prompt tokens as the server counts them; None where it does not."""

    async def one(request: dict[str, Any]) -> Optional[int]:
        messages = request.get("messages")
        if not messages:
            return None
        system = "\n".join(str(message["content"]) for message in messages if message["role"] == "system")
        others = [message for message in messages if message["role"] != "system"]
        body = json.dumps({"model": request["model"], "system": system, "messages": others}).encode()
        reply = await gateway.ask(COUNT, body, timeout=WAIT)
        try:
            return int(json.loads(reply.body)["input_tokens"])
        except (ValueError, KeyError, TypeError):
            return None

    async with gateway:
        return list(await asyncio.gather(*map(one, requests)))


def _guess(request: dict[str, Any]) -> int:
    messages = request.get("messages") or [{"content": json.dumps(request)}]
    return sum(len(str(message["content"]).encode()) for message in messages) // BYTES_PER_TOKEN

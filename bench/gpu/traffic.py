"""A closed loop of requests, and what was seen of it in a window in which all slots are busy."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from client import Answer, Connection, _body, connect, request
from loads import Load, Prompts
from proxies import Proxy

WARM_ANSWERS = 2  # of each worker before the window: one of a random length, so that they do not go in step, and a whole one
MOST_ERRORS = 50


@dataclass(frozen=True)
class Reply:
    """One answer. Times are nanoseconds of CLOCK_MONOTONIC.

    Attributes:
        sent, first, ended: the request was written; its first token was read; all of it was.
        marks: when something of it was read, for streams.
        prompt, cached, generated: tokens, as the server counts them.
    """

    sent: int
    first: int
    ended: int
    marks: tuple[int, ...]
    prompt: int
    cached: int
    generated: int


@dataclass
class Traffic:
    """Answers that ended in the window from ``began`` to ``ended``, and what failed at any time."""

    began: int = 0
    ended: int = 0
    replies: list[Reply] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


async def closed_loop(
    proxy: Proxy,
    load: Load,
    prompts: Prompts,
    workers: int,
    seconds: float,
    patience: float,
    window: contextlib.AbstractContextManager[object],
    key: str = "",
) -> Traffic:
    """Keep a request of each worker in flight, but for the load's pauses.

    Args:
        proxy: who is asked; a worker keeps to one of its ports.
        load: what is asked.
        prompts: its requests.
        workers: how many there are.
        seconds: length of the window.
        patience: seconds after which the window begins although some worker has not had its first answers.
        window: entered at its beginning and left at its end.
        key: to show, else the proxy's own.
    """
    loop = _Loop(proxy, load, prompts, key)
    tasks = [asyncio.create_task(loop.work(number)) for number in range(workers)]
    try:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and loop.failed < MOST_ERRORS:
            if len(loop.done) == workers and min(loop.done.values()) >= WARM_ANSWERS:
                break
            await asyncio.sleep(0.05)
        traffic = Traffic(time.monotonic_ns())
        with window:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and loop.failed < MOST_ERRORS:
                await asyncio.sleep(0.05)
            traffic.ended = time.monotonic_ns()
    finally:
        for task in tasks:
            task.cancel()
        crashed = [one for one in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(one, Exception)]
    traffic.errors.update(repr(one) for one in crashed)
    for answer, prompt, out in loop.answers:
        try:
            reply = read(answer, load.streamed)
        except (ValueError, KeyError, IndexError) as error:
            traffic.errors[f"{answer.status} {answer.error or repr(error)}"[:200]] += 1
            continue
        if (reply.prompt, reply.generated) != (prompt, out):
            traffic.errors[f"{reply.prompt} tokens in and {reply.generated} out instead of {prompt} and {out}"] += 1
        elif traffic.began <= reply.ended < traffic.ended:
            traffic.replies.append(reply)
    return traffic


class _Loop:
    def __init__(self, proxy: Proxy, load: Load, prompts: Prompts, key: str) -> None:
        self._proxy, self._load, self._prompts, self._key = proxy, load, prompts, key
        self._chance = random.Random(2)
        self.done: Counter[int] = Counter()
        self.failed = 0
        self.answers: list[tuple[Answer, int, int]] = []

    async def work(self, number: int) -> None:
        connection: Connection | None = None
        port = self._proxy.ports[number % len(self._proxy.ports)]
        try:
            while True:
                first = number not in self.done
                out = self._chance.randint(1, self._load.out) if first else self._load.out
                body, prompt = self._prompts.next(number, out)
                if connection is None or connection.transport is None:
                    try:
                        connection = await connect(port)
                    except OSError as error:
                        await self._fail(Answer(time.monotonic_ns(), error=str(error)), prompt, out)
                        continue
                answer = await connection.ask(request(self._proxy, body, self._key))
                # A llama-server closes after a stream, whatever it announced.
                if len(self._proxy.ports) > 1 or not self._proxy.pid:
                    _close(connection)
                if answer.status != 200:
                    await self._fail(answer, prompt, out)
                    continue
                self.done[number] += 1
                self.answers.append((answer, prompt, out))
                if self._load.pause:
                    await asyncio.sleep(self._chance.expovariate(1 / self._load.pause))
        finally:
            if connection:
                _close(connection)

    async def _fail(self, answer: Answer, prompt: int, out: int) -> None:
        self.failed += 1
        self.answers.append((answer, prompt, out))
        await asyncio.sleep(0.2)  # do not spin on a server that is gone


def _close(connection: Connection) -> None:
    if connection.transport:
        connection.transport.abort()
        connection.transport = None


def read(answer: Answer, streamed: bool) -> Reply:
    """What an answer holds.

    Raises:
        ValueError, KeyError, IndexError: it is not whole.
    """
    if answer.status != 200 or answer.error:
        raise ValueError((b"".join(data for _, data in answer.pieces).partition(b"\r\n\r\n")[2]).decode(errors="replace")[:150])
    raw = b"".join(data for _, data in answer.pieces)
    body, origins = _body(raw)
    ended = answer.pieces[-1][0]
    if not streamed:
        whole = json.loads(body)
        return Reply(answer.sent, ended, ended, (), *_counts(whole))
    marks, last = [], {}
    for event, at in _events(answer, body, origins):
        last = event
        if event.get("choices") and event["choices"][0]["delta"].get("content"):
            marks.append(at)
    return Reply(answer.sent, marks[0], ended, tuple(marks), *_counts(last))


def _counts(whole: dict[str, Any]) -> tuple[int, int, int]:
    usage = whole["usage"]
    return usage["prompt_tokens"], usage.get("prompt_tokens_details", {}).get("cached_tokens", 0), usage["completion_tokens"]


def _events(answer: Answer, body: bytes, origins: Sequence[tuple[int, int]]) -> list[tuple[dict[str, Any], int]]:
    """The stream's events and when the end of each was read."""
    ends, total = [], 0
    for _, data in answer.pieces:
        total += len(data)
        ends.append(total)
    starts = [start for start, _ in origins]
    found, at = [], 0
    while (end := body.find(b"\n\n", at)) >= 0:
        event, at = body[at:end], end + 2
        if event.startswith(b"data: {"):
            start, origin = origins[bisect.bisect_right(starts, end) - 1]
            piece = min(bisect.bisect_right(ends, origin + end - start), len(ends) - 1)
            found.append((json.loads(event[6:]), answer.pieces[piece][0]))
    return found

#!/usr/bin/env python3
"""Send a bounded number of chat requests by keep-alive clients, half of them streamed, and account for every one.

    . .lab/env && python tests/load/chat_load.py --requests 10000 --clients 64

Prints one JSON object; exits with 1 where a request got no whole answer. The tests import ``run``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

PAUSE = 0.5  # seconds that a client waits after a failure, as the OpenAI SDK does
TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=30)


class BrokenAnswerError(Exception):
    """An answer began and did not end."""


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Tell failures after the first byte of an answer, which nobody can repeat, from those before."""
    try:
        yield
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        raise BrokenAnswerError(f"{type(error).__name__}: {error}") from error


@dataclass
class Result:
    """What became of a load.

    Attributes:
        answered: requests with a whole answer.
        errors: how often each kind of failure before the first byte of an answer happened; empty is what everybody wants.
        cut: how often an answer that had begun broke off, by kind.
        seconds: wall time.
        first_token: seconds from the request to the first token, of streamed requests.
    """

    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    first_token: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        ordered = sorted(self.first_token)
        return {
            "answered": self.answered,
            "errors": dict(self.errors),
            "cut": dict(self.cut),
            "seconds": round(self.seconds, 1),
            "requests_per_second": round(self.answered / self.seconds, 1) if self.seconds else 0,
            "first_token_p50": round(statistics.median(ordered), 3) if ordered else None,
            "first_token_p99": round(ordered[int(len(ordered) * 0.99)], 3) if ordered else None,
        }


@dataclass
class Load:
    """A load to send, and how far it is.

    Attributes:
        base_url: with /v1.
        api_key: the gateway's key.
        models: services to ask, in turn.
        requests: how many at the most.
        enough: set it to send no further ones.
        clients: keep-alive clients, each with one request at a time.
        tokens: tokens that each answer has.
        pause: seconds on average until a client that has its answer asks again.
    """

    base_url: str
    api_key: str
    models: tuple[str, ...]
    requests: int
    clients: int = 64
    tokens: int = 4
    pause: float = 0.0
    result: Result = field(default_factory=Result)
    sent: int = 0
    enough: bool = False
    pending: dict[int, float] = field(default_factory=dict)  # when each unanswered request was sent, by number

    async def run(self) -> Result:
        began = time.monotonic()
        numbers = iter(range(self.requests))
        await asyncio.gather(*(self._client(numbers) for _ in range(self.clients)))
        self.result.seconds = time.monotonic() - began
        return self.result

    async def _client(self, numbers) -> None:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        async with aiohttp.ClientSession(headers=headers, timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=1)) as session:
            for number in numbers:
                if self.enough:
                    return
                self.sent += 1
                self.pending[number] = time.monotonic()
                try:
                    await (self._streamed if number % 2 else self._whole)(session, number)
                    self.result.answered += 1
                except BrokenAnswerError as error:
                    self.result.cut[str(error)[:200]] += 1
                except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                    self.result.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                    await asyncio.sleep(PAUSE)
                finally:
                    del self.pending[number]
                if self.pause:
                    await asyncio.sleep(random.expovariate(1 / self.pause))

    def _body(self, number: int, **more: object) -> dict[str, object]:
        messages = [{"role": "user", "content": f"Categorise entry {number}: office paper, 500 sheets"}]
        model = self.models[number % len(self.models)]
        # The OpenAI SDK, too, sends the messages before the model. Every answer gets all the tokens it may have.
        return {"messages": messages, "model": model, "max_tokens": self.tokens, "ignore_eos": True, **more}

    async def _whole(self, session: aiohttp.ClientSession, number: int) -> None:
        async with session.post(f"{self.base_url}/chat/completions", json=self._body(number)) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {(await answer.text())[:120]}")
            with unbroken():
                if not json.loads(await answer.text())["choices"][0]["finish_reason"]:
                    raise ValueError("an answer without an end")

    async def _streamed(self, session: aiohttp.ClientSession, number: int) -> None:
        began, first, last = time.monotonic(), 0.0, b""
        async with session.post(f"{self.base_url}/chat/completions", json=self._body(number, stream=True)) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {(await answer.text())[:120]}")
            with unbroken():
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        first = first or time.monotonic()
                        last = line
                if last.strip() != b"data: [DONE]":
                    raise ValueError("a stream without an end")
        self.result.first_token.append(first - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--models", nargs="+", default=["demo", "demo-b"])
    given = parser.parse_args()
    load = Load(
        os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"], tuple(given.models), given.requests, given.clients, given.tokens
    )

    async def with_progress() -> None:
        running = asyncio.ensure_future(load.run())
        while not running.done():
            await asyncio.wait([running], timeout=10)
            print(
                f"{load.result.answered} of {load.requests} answered, {load.result.errors.total()} errors, {load.result.cut.total()} cut",
                file=sys.stderr,
            )
        running.result()

    asyncio.run(with_progress())
    print(json.dumps(load.result.summary(), indent=1))
    return 1 if load.result.errors or load.result.cut else 0


if __name__ == "__main__":
    sys.exit(main())

"""A load for tuning: requests of one length, a closed loop in which every slot is always busy, and what it saw in its window.

The method is that of bench/gpu. Prompts are made of the server's own tokens, so they have exactly the wanted length, and ``ignore_eos``
gives answers exactly theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Sequence

from .tune_plan import Result

WARM_ANSWERS = 2  # of each worker before the window: one of a random length, so that they do not go in step, and a whole one
MOST_ERRORS = 20
PAUSE_AFTER_ERROR = 0.2
# Common words, of which any tokenizer makes a few hundred tokens at most.
WORDS = (
    "the account and payment for travel by air hotel office paper rent of a car fuel book print phone service water power repair school"
    " north river green small light stone table winter morning music letter garden window bridge market silver simple number"
)


@dataclass(frozen=True)
class Profile:
    """What requests are like.

    Attributes:
        prompt: tokens of a prompt.
        shared: of these, the first ones that all prompts have in common.
        answer: tokens of an answer.
        streamed: it is read while it is written.
    """

    prompt: int
    answer: int
    shared: int = 0
    streamed: bool = False

    def __str__(self) -> str:
        shared = f", {self.shared:,} of them shared by all" if self.shared else ""
        return f"{self.prompt:,} tokens in{shared}, {self.answer:,} out, {'streamed' if self.streamed else 'not streamed'}"


@dataclass
class _Seen:
    """Answers that ended in the window: seconds to the first token and between tokens."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    began: float = float("inf")
    ended: float = float("inf")


async def tokens(port: int, key: str) -> list[int]:
    """Tokens to make prompts of. Raises OSError or ValueError where the server does not tell them."""
    _, body = await _ask(port, key, "/tokenize", {"content": WORDS})
    return sorted(set(json.loads(body)["tokens"]))


async def closed_loop(
    ports: Sequence[int], slots: int, key: str, profile: Profile, window: float, patience: float, going: Callable[[], bool]
) -> Result:
    """Keep a request of each slot in flight, and count the answers of a window.

    Args:
        ports: of the llama-servers, on loopback.
        slots: of each.
        key: that they ask for.
        profile: of the requests.
        window: seconds.
        patience: seconds after which the window begins although some slot has not had its first answers.
        going: whether to go on.

    Raises:
        OSError, ValueError, KeyError: the first server does not tokenize.
    """
    words = await tokens(ports[0], key)
    loop = _Loop(key, profile, words)
    workers = [asyncio.ensure_future(loop.work(ports[number % len(ports)], number)) for number in range(len(ports) * slots)]
    seen = loop.seen

    async def wait(seconds: float, enough: Optional[Callable[[], bool]] = None) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and going() and len(seen.errors) < MOST_ERRORS and not (enough and enough()):
            await asyncio.sleep(0.02)

    try:
        await wait(patience, lambda: len(loop.done) == len(workers) and min(loop.done.values()) >= WARM_ANSWERS)
        seen.began = time.monotonic()
        await wait(window)
        seen.ended = time.monotonic()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    seconds = max(seen.ended - seen.began, 1e-9)
    count = len(seen.first)
    return Result(
        requests=count / seconds,
        tokens=count * profile.answer / seconds,
        first=_percentiles(seen.first),
        between=_percentiles(seen.between),
        errors=len(seen.errors),
        error=seen.errors[0] if seen.errors else "",
    )


class _Loop:
    def __init__(self, key: str, profile: Profile, words: Sequence[int]) -> None:
        self._key, self._profile, self._words = key, profile, words
        chance = random.Random(1)  # noqa: S311 - no secret
        self._shared = chance.choices(words, k=profile.shared)
        self.done: dict[int, int] = {}
        self.seen = _Seen()

    async def work(self, port: int, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - no secret
        profile = self._profile
        while True:
            answer = profile.answer if number in self.done else chance.randint(1, profile.answer)
            prompt = [*self._shared, *chance.choices(self._words, k=profile.prompt - profile.shared)]
            fields = {"prompt": prompt, "n_predict": answer, "ignore_eos": True, "stream": profile.streamed, "temperature": 0}
            sent = time.monotonic()
            try:
                first, body = await _ask(port, self._key, "/completion", fields)
                ended = time.monotonic()
                last = _last(body)
                told = (last["tokens_evaluated"], last["tokens_predicted"])
                if told != (profile.prompt, answer):
                    raise ValueError(f"{told[0]} tokens in and {told[1]} out instead of {profile.prompt} and {answer}")
            except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
                self.seen.errors.append(str(error)[:200] or repr(error))
                await asyncio.sleep(PAUSE_AFTER_ERROR)  # do not spin on a server that is gone
                continue
            self.done[number] = self.done.get(number, 0) + 1
            if self.seen.began <= ended < self.seen.ended:
                self.seen.first.append((first if profile.streamed else ended) - sent)
                if profile.streamed and answer > 1:
                    self.seen.between.append((ended - first) / (answer - 1))


async def _ask(port: int, key: str, path: str, fields: Any) -> tuple[float, bytes]:
    """When the first bytes of an answer's body came, and the body.

    A connection for each request: after a stream llama-server closes it anyway.

    Raises:
        OSError, EOFError, ValueError: there is no answer, or one that is an error.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        headers = await reader.readuntil(b"\r\n\r\n")
        pieces = [await reader.read(65536)]
        first = time.monotonic()
        while pieces[-1]:
            pieces.append(await reader.read(65536))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    whole = b"".join(pieces)
    if headers.split(b" ", 2)[1] != b"200":
        raise ValueError(whole.decode(errors="replace")[:200] or headers.decode(errors="replace")[:60])
    return first, _dechunked(whole) if b"chunked" in headers.lower() else whole


def _dechunked(body: bytes) -> bytes:
    """A body without the frame of its chunks. Raises ValueError: it is cut off."""
    found, at = [], 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            break
        found.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(found)


def _last(body: bytes) -> Any:
    """The answer, or the last event of a stream, which has the counts."""
    if not body.startswith(b"data: "):
        return json.loads(body)
    return json.loads(body[body.rindex(b"data: {") + len("data: ") :].split(b"\n", 1)[0])


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p99; zeros of nothing."""
    ordered = sorted(values)
    if not ordered:
        return (0.0, 0.0)
    return ordered[(len(ordered) - 1) // 2], ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]

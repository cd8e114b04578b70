"""What a proxy adds to the first byte and to every token of streams, at the pace of an H200."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from dataclasses import dataclass, field

from client import Answer, connect, request
from processes import cpu_seconds
from proxies import Proxy
from wishes import chat

PREFILL = 0.02  # seconds
PATIENCE = 60.0  # seconds that one stream may take
# Seconds between two tokens of a stream by how many there are: 264, 67 and 23 tokens/s, measured on an H200 with an 8B model.
STEPS = {1: 1 / 264, 64: 1 / 67, 256: 1 / 23}
TOKENS = {1: 16, 64: 64, 256: 64}


@dataclass
class Sample:
    """What streams saw.

    Attributes:
        first: milliseconds from the request to its first token, without those inside the stub server.
        token: milliseconds from the stub server's write of a later token to its arrival.
        streams: that ended whole.
        failed: that did not.
        cpu: CPU seconds of the proxy.
        tokens: of the whole streams, those of the warm-up included.
    """

    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    streams: int = 0
    failed: int = 0
    cpu: float = 0.0
    tokens: int = 0

    def add(self, other: Sample) -> None:
        """Take in another round."""
        self.first += other.first
        self.token += other.token
        self.streams += other.streams
        self.failed += other.failed
        self.cpu += other.cpu
        self.tokens += other.tokens


def measure(proxy: Proxy, streams: int, seconds: float) -> Sample:
    """Keep so many streams running for a while, each followed by the next; their starts are spread over the length of one."""
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_measure(proxy, streams, seconds))
    finally:
        gc.enable()


async def _measure(proxy: Proxy, streams: int, seconds: float) -> Sample:
    step, tokens = STEPS[streams], TOKENS[streams]
    length = PREFILL + step * tokens
    tags, recorded = itertools.count(1), list[Answer]()
    warm = time.monotonic_ns() + int(length * 1e9)
    end = time.monotonic() + length + seconds

    async def follow(delay: float, port: int) -> None:
        await asyncio.sleep(delay)
        connection = await connect(port)
        while time.monotonic() < end:
            if not connection.transport:
                connection = await connect(port)
            body = chat(next(tags), PREFILL, step, tokens, stream=True)
            recorded.append(await asyncio.wait_for(connection.ask(request(proxy, body)), PATIENCE))
        if connection.transport:
            connection.transport.close()

    before = cpu_seconds(proxy.pid)
    await asyncio.gather(*(follow(length * number / streams, proxy.ports[number % len(proxy.ports)]) for number in range(streams)))
    sample = Sample(cpu=cpu_seconds(proxy.pid) - before)
    for answer in recorded:
        found = answer.tokens()
        if answer.status != 200 or answer.error or len(found) != tokens:
            sample.failed += 1
            continue
        sample.streams += 1
        sample.tokens += tokens
        # While the streams begin, there are fewer than wanted.
        if answer.sent >= warm:
            sample.first.append((found[0].arrived - answer.sent - (found[0].sent - found[0].received)) / 1e6)
        sample.token += [(token.arrived - token.sent) / 1e6 for token in found[1:] if token.sent >= warm]
    return sample

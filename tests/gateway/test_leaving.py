"""A client that leaves: its slot and its place in the queue are free at once, and no server works for nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import until

CHAT = "/v1/chat/completions"
DEMO = {"model": "demo", "messages": []}


async def leave(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True], ids=["before its first byte", "while it streams"])
@pytest.mark.parametrize("tier", ["interactive", "batch"])
def test_a_running_request_is_ended_at_the_server(gateway: Any, stub: Any, client: Any, tier: str, stream: bool) -> None:
    async def scenario() -> None:
        held = {"gate": asyncio.Event()} if stream else {"delay": 60}
        async with stub(**held) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=1)
            request = asyncio.create_task(user.send(CHAT, {**DEMO, "stream": stream}, headers={"X-Ptolemy-Tier": tier}))
            await until(lambda: len(demo.requests) == 1, "the request is at the server")
            await leave(request)
            await until(lambda: all(connection.is_closing() for connection in demo.connections), "the server sees it end")
            await until(lambda: not gateway.busy("demo", "a"), "a free slot")

    asyncio.run(scenario())


@pytest.mark.parametrize("tier", ["interactive", "batch"])
def test_a_queued_request_never_reaches_a_server(gateway: Any, stub: Any, client: Any, tier: str) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with stub(gate=gate) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=1)
            first = asyncio.create_task(user.send(CHAT, {**DEMO, "stream": True}))
            await until(lambda: len(demo.requests) == 1, "a busy server")
            second = asyncio.create_task(user.send(CHAT, DEMO, headers={"X-Ptolemy-Tier": tier}))
            await until(lambda: gateway.queued("demo"), "a queue")
            await leave(second)
            await until(lambda: not gateway.queued("demo"), "an empty queue")
            gate.set()
            assert (await first).status == 200
            assert (await user.send(CHAT, DEMO)).status == 200  # had the second been sent, it would have been sent before
            assert len(demo.requests) == 2

    asyncio.run(scenario())

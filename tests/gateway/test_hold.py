"""A service without any ready server: its requests wait in order, and in the end are refused."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from conftest import until


async def crowd(user: Any, size: int, **body: Any) -> list[Any]:
    return await asyncio.gather(*(user.chat(**body) for _ in range(size)))


async def until_queued(gateway: Any, least: int) -> None:
    await until(lambda: gateway.queued("demo") >= least, f"{least} requests in the queue")


def test_requests_wait_for_the_first_server_and_all_are_answered(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=0.02) as demo, client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 50))
            await until_queued(gateway, 49)
            gateway.add("demo", "a", demo.port)
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 50


def test_the_queue_starts_the_moment_a_server_comes(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        async with stub() as demo, client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 20))
            await until_queued(gateway, 19)
            gateway.add("demo", "a", demo.port)
            # All but the one that is being held, which follows after its turn.
            await until(lambda: len(demo.requests) >= 19, "the queue is answered")
            await waiting

    asyncio.run(scenario())


def test_the_queue_survives_the_loss_of_the_last_server(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=5) as first, stub() as second, client(gateway) as user:
            gateway.add("demo", "a", first.port, slots=4)
            waiting = asyncio.create_task(crowd(user, 30))
            await until_queued(gateway, 26)
            await first.kill()
            await until(lambda: gateway.servers("demo")["a"].startswith("DOWN"), "the server is down")
            gateway.add("demo", "b", second.port)
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 30


def test_with_no_server_for_good_requests_are_refused_in_the_end(short_gateway: Any, client: Any) -> None:
    async def scenario() -> tuple[list[Any], float]:
        async with client(short_gateway) as user:
            start = time.monotonic()
            return await crowd(user, 6), time.monotonic() - start

    answers, seconds = asyncio.run(scenario())
    for answer in answers:
        assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        assert answer.headers["Retry-After"] == "5"
    assert seconds > 1


def test_a_client_that_leaves_frees_its_place(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 10))
            await until_queued(gateway, 9)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: not gateway.queued("demo"), "an empty queue")

    asyncio.run(scenario())

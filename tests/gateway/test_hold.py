"""A service without any ready server: its requests wait, in order, and are refused only when their time is up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from conftest import until


async def crowd(user: Any, size: int, **body: Any) -> list[Any]:
    return await asyncio.gather(*(user.chat(**body) for _ in range(size)))


async def until_queued(gateway: Any, least: int) -> None:
    await until(lambda: gateway.queued("demo") >= least, f"{least} requests wait")


def test_a_burst_at_a_sleeping_service_is_answered_whole(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=0.02) as demo, client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 500))
            await until_queued(gateway, 500)
            # Far more turns than a request may have attempts: what ends the wait is its time, not their number.
            await until(lambda: turns(gateway) >= 24, "those that are held have looked often")
            gateway.add("demo", "a", demo.port, slots=32)
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 500


def turns(gateway: Any) -> int:
    rows = [line.split(",") for line in gateway.ask("show stat waiting 4 -1").splitlines()]
    return int(rows[1][rows[0].index("wretr")])


def test_the_queue_starts_the_moment_a_server_comes(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> float:
        async with stub() as demo, client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 20))
            await until_queued(gateway, 20)
            began = time.monotonic()
            gateway.add("demo", "a", demo.port)
            # All but those that are being held, which follow at their next turn.
            await until(lambda: len(demo.requests) >= 16, "the queue is answered")
            answered = time.monotonic() - began
            await waiting
            return answered

    assert asyncio.run(scenario()) < 1


def test_a_single_held_request_goes_on_within_a_second(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> tuple[float, Any]:
        async with stub() as demo, client(gateway) as user:
            waiting = asyncio.create_task(user.chat(stream=True))
            await until(lambda: turns(gateway) >= 3, "it is held")
            began = time.monotonic()
            gateway.add("demo", "a", demo.port)
            answer = await waiting
            return time.monotonic() - began, answer

    seconds, answer = asyncio.run(scenario())
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert seconds < 1


def test_the_queue_survives_the_loss_of_the_last_server(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=5) as first, stub() as second, client(gateway) as user:
            gateway.add("demo", "a", first.port, slots=4)
            waiting = asyncio.create_task(crowd(user, 30))
            await until_queued(gateway, 26)
            await first.kill()
            # ptolemyd needs a moment to tell `hold`; until then it goes by what was.
            await until(lambda: gateway.servers("demo")["a"].startswith("DOWN"), "the server is down")
            gateway.ptolemyd.wake("svc_demo", False)
            gateway.add("demo", "b", second.port)
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 30


def test_requests_that_wait_follow_a_reload_to_the_new_process(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub() as demo, client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 20))
            await until_queued(gateway, 20)
            await asyncio.to_thread(gateway.reload)
            gateway.add("demo", "a", demo.port)  # only the new process hears of it
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 20


def test_all_are_refused_when_their_time_is_up(brief_gateway: Any, client: Any) -> None:
    async def scenario() -> tuple[list[Any], float]:
        async with client(brief_gateway) as user:
            start = time.monotonic()
            return await crowd(user, 8), time.monotonic() - start

    answers, seconds = asyncio.run(scenario())
    for answer in answers:
        assert (answer.status, answer.error["code"], answer.error["type"]) == (503, "model_starting", "server_error")
        assert "starting or waits for a free GPU, and was not ready within 2 s" in answer.error["message"]
        assert answer.headers["Retry-After"] == "5"
    assert seconds >= 2


def test_time_behind_busy_servers_does_not_count(brief_gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=3) as first, stub() as second, client(brief_gateway) as user:
            brief_gateway.add("demo", "a", first.port, slots=2)
            waiting = asyncio.create_task(crowd(user, 20))
            # One round of answers: what still waits has waited for longer than it may be held.
            await until(lambda: len(first.requests) >= 4, "the second round")
            await first.kill()
            await until(lambda: brief_gateway.servers("demo")["a"].startswith("DOWN"), "the server is down")
            brief_gateway.ptolemyd.wake("svc_demo", False)
            brief_gateway.add("demo", "b", second.port)
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 20


def test_a_client_that_leaves_frees_its_place(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with client(gateway) as user:
            waiting = asyncio.create_task(crowd(user, 10))
            await until_queued(gateway, 10)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: not gateway.queued("demo"), "an empty queue")

    asyncio.run(scenario())


def test_a_request_too_large_to_be_sent_again_is_refused_and_not_kept(gateway: Any, client: Any) -> None:
    async def scenario() -> Any:
        async with client(gateway) as user:
            return await user.send("/m/demo/v1/completions", {"prompt": "x" * 400_000})

    answer = asyncio.run(scenario())
    assert (answer.status, answer.error["type"]) == (503, "server_error")
    assert answer.headers["Retry-After"]


def test_batch_requests_wait_for_a_first_server_too(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub() as demo, client(gateway) as user:
            requests = [user.chat(headers={"X-Ptolemy-Tier": "batch"}) for _ in range(100)]
            waiting = asyncio.gather(*requests)
            await until_queued(gateway, 100)
            gateway.add("demo", "a", demo.port, slots=8)
            return [answer.status for answer in await waiting]

    assert asyncio.run(scenario()) == [200] * 100


def test_a_client_cannot_forge_what_hold_reads(gateway: Any, stub: Any, client: Any) -> None:
    forged = {"X-Ptolemy-Deadline": "1", "X-Ptolemy-Turn": "1"}

    async def scenario() -> int:
        async with stub() as demo, stub() as other, client(gateway) as user:
            gateway.add("demo-b.v1", "b", other.port)
            waiting = asyncio.create_task(user.send("/v1/chat/completions", {"model": "demo"}, headers=forged))
            await until(lambda: turns(gateway) >= 2, "it is held, neither refused nor sent to the other service")
            gateway.add("demo", "a", demo.port)
            answer = await waiting
            assert not other.requests
            assert demo.requests
            return int(answer.status)

    assert asyncio.run(scenario()) == 200

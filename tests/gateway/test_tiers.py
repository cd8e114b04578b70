"""Who goes first: interactive requests before batch ones, and no user before all others; and what people are told about it."""

from __future__ import annotations

import asyncio
from typing import Any

from conftest import until
from local_gateway import API_KEY
from ptolemy.config import Service
from ptolemy.daemon import about

CHAT = "/v1/chat/completions"
DEMO = {"model": "demo", "messages": []}
STREAM = {**DEMO, "stream": True}  # goes on after its first token once the stub's gate opens


def test_batch_requests_leave_slots_and_are_overtaken(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        async with stub(delay=0.3) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=5)
            gateway.ptolemyd.widen("demo", 3)
            with gateway.key(tier="batch") as key:
                batch = [asyncio.create_task(user.send(CHAT, DEMO, key=key)) for _ in range(40)]
                await until(lambda: len(demo.requests) >= 6, "the batch is under way")
                # Of requests at the same moment, HAProxy's two threads may let one too many through.
                assert demo.most in (3, 4), "the gate leaves a slot"
                for _ in range(3):
                    assert (await user.chat()).status == 200
                assert not all(task.done() for task in batch), "those who chat did not wait for the batch"
                assert [(await task).status for task in batch] == [200] * 40

    asyncio.run(scenario())


def test_a_chat_overtakes_batch_requests_that_came_through_the_gate(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[str]:
        opened = asyncio.Event()
        async with stub(gate=opened) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=1)
            gateway.ptolemyd.widen("demo", 8)
            running = asyncio.create_task(user.send(CHAT, STREAM))
            await until(lambda: demo.running == 1, "the slot is busy")
            with gateway.key(tier="batch") as key:
                waiting = [asyncio.create_task(user.send(f"/m/demo{CHAT}", DEMO, key=key)) for _ in range(3)]
                await until(lambda: gateway.queued("demo") == 3, "the batch waits at the server")
                waiting.append(asyncio.create_task(user.send("/m/demo/v1/completions", DEMO)))
                await until(lambda: gateway.queued("demo") == 4, "the chat waits, too")
                opened.set()
                assert [(await task).status for task in (running, *waiting)] == [200] * 5
            return [request["path"] for request in demo.requests]

    assert asyncio.run(scenario()) == [CHAT, "/v1/completions", CHAT, CHAT, CHAT]


def test_the_batch_does_not_starve_beside_people_who_take_every_slot(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        async with stub(delay=0.1) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=2)
            done = asyncio.Event()

            async def chat() -> None:
                while not done.is_set():
                    assert (await user.chat()).status == 200

            people = [asyncio.create_task(chat()) for _ in range(12)]
            with gateway.key(tier="batch") as key:
                answers = [await asyncio.wait_for(user.send(CHAT, DEMO, key=key), 20) for _ in range(2)]
            done.set()
            await asyncio.gather(*people)
            assert [answer.status for answer in answers] == [200, 200]

    asyncio.run(scenario())


def test_batch_requests_on_every_connection_still_pass_their_gate(small_gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=0.02) as demo, client(small_gateway) as user:
            small_gateway.add("demo", "a", demo.port)
            with small_gateway.key(tier="batch") as key:
                # Twice as many as the gateway takes at once: the gate's own connections must find room beside them. All would keep their
                # connections, and the gateway closes them, or those that wait would be kept out for as long as idle ones live.
                batch = asyncio.gather(*(user.send(CHAT, DEMO, key=key) for _ in range(60)))
                return [answer.status for answer in await asyncio.wait_for(batch, 10)]

    assert asyncio.run(scenario()) == [200] * 60


def test_a_waiting_batch_survives_reloads(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with stub(delay=0.05) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=4)
            with gateway.key(tier="batch") as key:
                batch = asyncio.gather(*(user.send(CHAT, DEMO, key=key) for _ in range(300)))
                await until(lambda: len(demo.requests) >= 20, "the batch is under way")
                for _ in range(3):
                    await asyncio.to_thread(gateway.reload)
                    gateway.add("demo", "a", demo.port, slots=4)
                return [answer.status for answer in await batch]

    assert asyncio.run(scenario()) == [200] * 300


def test_a_user_with_many_requests_does_not_keep_out_one_with_few(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        async with stub(delay=0.1) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=4)
            greedy = [asyncio.create_task(user.chat()) for _ in range(200)]
            await until(lambda: gateway.queued("demo") >= 150, "one user's requests wait")
            with gateway.key() as key:
                assert (await user.send(CHAT, DEMO, key=key)).status == 200
            assert sum(task.done() for task in greedy) < 190, "it did not wait for all that came before"
            assert {(await task).status for task in greedy} == {200}

    asyncio.run(scenario())


def test_a_better_tier_may_ask_for_the_other_one(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> Any:
        async with stub() as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port)
            await user.send(CHAT, DEMO, headers={"X-Ptolemy-Tier": "batch"})
            return gateway.ptolemyd.observe().gates["svc_demo"]

    gate = asyncio.run(scenario())
    assert (gate.interactive_arrived, gate.waiting) == (0, 0)


def test_the_counts_of_both_tiers_add_up(gateway: Any, stub: Any, client: Any) -> None:
    def all_there() -> bool:
        seen = gateway.ptolemyd.observe()
        return (seen.arrived["svc_demo"], seen.queued["svc_demo"]) == (8, 6)

    async def scenario() -> None:
        opened = asyncio.Event()
        async with stub(gate=opened) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=2)
            gateway.ptolemyd.widen("demo", 1)
            with gateway.key(tier="batch") as key:
                # The first of each tier alone, so that no two take the last slot at the same moment.
                tasks = []
                for number, (tier, more) in enumerate(((key, 4), (API_KEY, 2)), 1):
                    tasks.append(asyncio.create_task(user.send(CHAT, STREAM, key=tier)))
                    await until(lambda number=number: demo.running == number, "the first one runs")
                    tasks += [asyncio.create_task(user.send(CHAT, STREAM, key=tier)) for _ in range(more)]
                await until(all_there, "8 came, 6 wait")
                gate = gateway.ptolemyd.observe().gates["svc_demo"]
                assert (gate.waiting, gate.arrived, gate.interactive, gate.interactive_arrived) == (4, 5, 3, 3)
                opened.set()
                assert [answer.status for answer in await asyncio.gather(*tasks)] == [200] * 8

    asyncio.run(scenario())


def test_an_answer_says_where_it_came_from_and_how_long_it_waited(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        opened = asyncio.Event()
        forged = {"X-Ptolemy-Inner": "1", "X-Ptolemy-Replica": "77"}
        async with stub(gate=opened, forged=forged) as demo, client(gateway) as user:
            gateway.add("demo", "j77r0p20000", demo.port, slots=1)
            for headers in ({}, {"X-Ptolemy-Tier": "batch"}):
                opened.clear()
                first = asyncio.create_task(user.send(CHAT, STREAM, headers=headers))
                await until(lambda: demo.running == 1, "the slot is busy")
                second = asyncio.create_task(user.send(CHAT, STREAM, headers=headers))
                await until(lambda: gateway.queued("demo") == 1, "the other one waits")
                await asyncio.sleep(0.2)  # the time that it must tell
                opened.set()
                told = {name.lower(): value for name, value in (await second).headers.items()}
                assert (await first).status == 200
                assert sorted(name for name in told if name.startswith("x-ptolemy-")) == [
                    "x-ptolemy-queue-ms", "x-ptolemy-replica", "x-ptolemy-service",
                ]  # fmt: skip
                assert told["x-ptolemy-service"] == "demo"
                assert len(told["x-ptolemy-replica"]) == 12 and told["x-ptolemy-replica"] != "77"
                assert int(told["x-ptolemy-queue-ms"]) >= 200
                assert len(told["x-request-id"]) == 36
            sent = {name.lower(): value for name, value in demo.requests[-1]["headers"].items()}
            assert told["x-request-id"] == sent["x-request-id"]

    asyncio.run(scenario())


def test_the_models_say_their_state_without_a_reload(gateway: Any, client: Any) -> None:
    async def scenario() -> list[Any]:
        async with client(gateway) as user:
            gateway.ptolemyd.tell("demo", "asleep")
            models = (await user.send("/v1/models")).json["data"]
            demo = Service("demo", "tiny", "/models/Tiny-8B-Q4_K_M.gguf", "a" * 64, min=1, max=1, partition="gpu", context=4096)
            for key, value in (("demo", "ready"), ("demo/revision", "0123abcd"), ("demo/slots", "64"), ("demo/about", about(demo))):
                gateway.ptolemyd.tell(key, value)
            return [models, (await user.send("/v1/models/demo")).json]

    (demo, other, _), later = asyncio.run(scenario())
    assert (demo["status"], demo["sha256"], other["status"]) == ("asleep", "", "starting")
    assert (demo["slots"], demo["revision"]) == (0, "unknown")
    assert (later["status"], later["slots"], later["revision"], later["context_length"]) == ("ready", 64, "0123abcd", 4096)
    assert {name: later[name] for name in ("model", "file", "quantisation", "sha256")} == {
        "model": "tiny",
        "file": "Tiny-8B-Q4_K_M.gguf",
        "quantisation": "Q4_K_M",
        "sha256": "a" * 64,
    }
    assert (other["model"], other["quantisation"]) == ("unknown", "unknown")

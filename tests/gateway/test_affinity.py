"""Conversations of a service with `affinity: conversation` go back to the server that knows them, and never wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import Stub, until
from local_gateway import HAPROXY

SERVICE = "demo-b.v1"
STREAM = {"stream": True}


@contextlib.asynccontextmanager
async def servers(gateway: Any, number: int = 3, slots: int = 4, **settings: Any) -> AsyncIterator[dict[str, Stub]]:
    """So many stubs behind the gateway, by their names."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for job in range(1, number + 1):
            one = await stack.enter_async_context(Stub(**settings))
            name = f"j{job}r0p{one.port}"
            gateway.add(SERVICE, name, one.port, slots)
            found[name] = one
        yield found


def turn(question: str, number: int = 0, system: str = "Be brief.") -> dict[str, Any]:
    """A conversation's turn of that number."""
    said = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "More."}] * number
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": question}, *said]}


async def home(user: Any, *asked: Any, **options: Any) -> int:
    """The port of the server that answers a turn."""
    answer = await user.chat(SERVICE, **turn(*asked), **options)
    assert answer.status == 200, answer
    return int(answer.json["port"])


def remembered(gateway: Any) -> int:
    return int(gateway.ask("show table conversations").count("key="))


def test_a_conversation_stays_and_a_shared_system_prompt_spreads(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with servers(gateway) as stubs, client(gateway) as user:
            homes = [{await home(user, f"question {talk}", number) for number in range(4)} for talk in range(9)]
            assert all(len(ports) == 1 for ports in homes), "each has one server"
            assert Counter(ports.pop() for ports in homes) == {stub.port: 3 for stub in stubs.values()}
            assert "question" not in gateway.ask("show table conversations")

    asyncio.run(scenario())


FIRST = {"role": "user", "content": "hi"}
BODIES = {
    "chat with parts": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    "Anthropic": ("/v1/messages", {"system": "Be brief.", "messages": [FIRST]}),
    "responses": ("/v1/responses", {"instructions": "Be brief.", "input": "hi"}),
    "responses with turns": (
        "/v1/responses",
        {"input": [{"role": "developer", "content": "Be brief."}, FIRST]},
    ),
}


@pytest.mark.parametrize("form", BODIES)
def test_every_api_of_conversations_is_understood(gateway: Any, client: Any, form: str) -> None:
    path, body = BODIES[form]

    async def scenario() -> None:
        async with servers(gateway), client(gateway) as user:
            answers = [await user.send(path, {**body, "model": SERVICE}) for _ in range(4)]
            assert len({answer.json["port"] for answer in answers}) == 1

    asyncio.run(scenario())


def test_people_with_the_same_words_have_conversations_of_their_own(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with servers(gateway), client(gateway) as user:
            with gateway.key() as key:
                await home(user, "hi")
                await user.send("/v1/chat/completions", {**turn("hi"), "model": SERVICE}, key=key)
            assert remembered(gateway) == 2

    asyncio.run(scenario())


def test_what_is_no_conversation_is_not_remembered(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with servers(gateway), client(gateway) as user:
            for number in range(9):
                await home(user, f"row {number}", headers={"X-Ptolemy-Tier": "batch"})
            await user.send("/v1/completions", {"model": SERVICE, "prompt": "hi"})
            await user.send("/v1/embeddings", {"model": SERVICE, "input": ["hi"]})
            assert remembered(gateway) == 0
            first = await home(user, "hi")
            ports = {await home(user, "hi", headers={"X-Ptolemy-Tier": "batch"}) for _ in range(4)}
            assert ports - {first}, "a batch does not follow, either"

    asyncio.run(scenario())


def test_a_turn_whose_server_is_full_goes_elsewhere_at_once_and_stays_there(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        opened = asyncio.Event()
        async with servers(gateway, number=2, slots=1, gate=opened) as stubs, client(gateway) as user:
            # An answer is here a moment before HAProxy counts its slot as free.
            async def busy_are(count: int) -> None:
                await until(lambda: sum(gateway.busy(SERVICE, name) for name in stubs) == count, f"{count} slots are busy")

            first = await home(user, "mine")
            busy, other = sorted(stubs.values(), key=lambda stub: stub.port != first)
            await busy_are(0)
            running = asyncio.create_task(user.chat(SERVICE, **turn("mine"), **STREAM))
            await until(lambda: busy.running == 1, "its server is full")
            # That one goes on only after this: were this to wait for it, it would do so for ever.
            assert await home(user, "mine", 1) == other.port
            opened.set()
            await running
            for number in range(2, 5):
                await busy_are(0)
                assert await home(user, "mine", number) == other.port

    asyncio.run(scenario())


def test_one_template_in_all_requests_warms_every_server(gateway: Any, client: Any) -> None:
    """A program that is not a batch, whose requests all begin with the same example: to the gateway, turns of one conversation."""

    async def scenario() -> None:
        async with servers(gateway, slots=30, delay=0.1) as stubs, client(gateway) as user:
            await asyncio.gather(*(home(user, "example", 1) for _ in range(300)))
            share = [len(stub.requests) / 300 for stub in stubs.values()]
            assert min(share) > 0.15, share
            assert max(stub.most for stub in stubs.values()) <= 31, "their slots, and what two threads of HAProxy let through at once"

        async with servers(gateway, slots=90, delay=0.1) as stubs, client(gateway) as user:
            await home(user, "example", 0)
            await asyncio.gather(*(home(user, "example", 1) for _ in range(60)))
            assert max(stub.most for stub in stubs.values()) < 40, "none has all of them although it has the room"

    asyncio.run(scenario())


def test_a_draining_server_gets_no_further_turn_and_a_removed_one_is_forgotten(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with servers(gateway, delay=0.02) as stubs, client(gateway) as user:
            talks = range(12)
            leaving, left = next(iter(stubs.items()))
            stop = asyncio.Event()
            statuses: Counter[int] = Counter()

            async def talk(question: int) -> None:
                number = 0
                while not stop.is_set():
                    statuses[(await user.chat(SERVICE, **turn(str(question), number))).status] += 1
                    number += 1

            running = [asyncio.create_task(talk(question)) for question in talks]
            await until(lambda: len(left.requests) > 20, "it has conversations")
            gateway.ptolemyd.drain(f"svc_{SERVICE}", leaving)
            await until(lambda: not gateway.busy(SERVICE, leaving), "it empties")
            seen = len(left.requests)
            await until(lambda: statuses[200] > 300, "the conversations go on")
            assert len(left.requests) == seen
            await asyncio.to_thread(gateway.remove, SERVICE, leaving)
            before = statuses[200]
            await until(lambda: statuses[200] > before + 100, "and on")
            stop.set()
            await asyncio.gather(*running)
            assert set(statuses) == {200}

    asyncio.run(scenario())


def test_a_dead_servers_conversations_go_on_elsewhere(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with servers(gateway) as stubs, client(gateway) as user:
            homes = [await home(user, f"question {talk}") for talk in range(6)]
            dead = next(stub for stub in stubs.values() if stub.port == homes[0])
            await dead.kill()
            later = [[await home(user, f"question {talk}", number) for number in (1, 2, 3)] for talk in range(6)]
            assert all(len(set(ports)) == 1 and dead.port not in ports for ports in later)
            assert [ports[0] for ports, before in zip(later, homes) if before != dead.port] == [one for one in homes if one != dead.port]

    asyncio.run(scenario())


@pytest.mark.skipif(
    b"version 2.6" in subprocess.run([HAPROXY, "-v"], capture_output=True, check=False).stdout,
    reason="Debian's HAProxy 2.6.12 hands no table on, whatever its peer's address is",
)
def test_a_reload_keeps_the_conversations(gateway: Any, client: Any) -> None:
    async def scenario() -> None:
        async with servers(gateway) as stubs, client(gateway) as user:
            homes = [await home(user, f"question {talk}") for talk in range(6)]
            await asyncio.to_thread(gateway.reload)
            await until(lambda: remembered(gateway) == 6, "the new process knows them")
            for name, stub in reversed(stubs.items()):  # with other ids
                gateway.add(SERVICE, name, stub.port)
            assert [await home(user, f"question {talk}", 1) for talk in range(6)] == homes

    asyncio.run(scenario())

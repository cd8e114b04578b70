"""What a key allows: which services, how much, until when, for whom; and that none of it needs a reload."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from conftest import API_KEY, until
from ptolemy import keys

CHAT = "/v1/chat/completions"
DEMO = {"model": "demo", "messages": []}


@pytest.fixture
def exchange(gateway: Any, stub: Any, client: Any) -> Any:
    """Run one exchange with a stub behind `demo`; return its result."""

    def run(steps: Any, **options: Any) -> Any:
        async def scenario() -> Any:
            async with stub(**options) as demo, client(gateway) as user:
                gateway.add("demo", "a", demo.port, slots=64)
                return await steps(user, demo)

        return asyncio.run(scenario())

    return run


def test_a_key_is_valid_at_once_and_not_after_its_end(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, _: Any) -> list[int]:
        pid = gateway.worker()
        with gateway.key() as key:
            first = await user.send(CHAT, DEMO, key=key)
        second = await user.send(CHAT, DEMO, key=key)
        assert gateway.worker() == pid
        return [first.status, second.status]

    assert exchange(steps) == [200, 401]


def test_a_key_survives_a_reload(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> int:
        with gateway.key() as key:
            gateway.reload()
            gateway.add("demo", "a", demo.port)
            return (await user.send(CHAT, DEMO, key=key)).status

    assert exchange(steps) == 200


def test_an_expired_key_says_so(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, _: Any) -> list[Any]:
        with gateway.key(expires=int(time.time()) - 1) as key:
            over = await user.send(CHAT, DEMO, key=key)
        with gateway.key(expires=int(time.time()) + 3600) as key:
            return [over.status, over.error["code"], (await user.send(CHAT, DEMO, key=key)).status]

    assert exchange(steps) == [401, "expired_api_key", 200]


def test_a_key_is_kept_to_its_services(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        with gateway.key(services=("demo-b.v1",)) as key:
            refused = await user.send(CHAT, DEMO, key=key)
            by_alias = await user.send("/m/default/v1/completions", DEMO, key=key)
            models = await user.send("/v1/models", key=key)
            one = await user.send("/v1/models/demo", key=key)
        for answer in (refused, by_alias):
            assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
        assert [model["id"] for model in models.json["data"]] == ["demo-b.v1"]
        assert one.status == 403
        assert not demo.requests

    exchange(steps)


def test_a_user_has_no_more_at_once_than_allowed(gateway: Any, stub: Any, client: Any) -> None:
    body = {**DEMO, "stream": True}

    async def scenario() -> None:
        opened = asyncio.Event()
        async with stub(gate=opened) as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port, slots=64)
            with gateway.key(concurrent=3) as key:
                running = [asyncio.create_task(user.send(CHAT, body, key=key)) for _ in range(3)]
                await until(lambda: demo.running == 3, "three run")
                over = await user.send(CHAT, body, key=key)
                running.append(asyncio.create_task(user.send(CHAT, body, key=API_KEY)))
                await until(lambda: demo.running == 4, "somebody else's runs")
                opened.set()
                assert [(await task).status for task in running] == [200] * 4
                assert (over.status, over.error["code"]) == (429, "too_many_concurrent_requests")
                assert over.headers["Retry-After"] and " 3 " in over.error["message"]
                assert (await user.send(CHAT, DEMO, key=key)).status == 200

    asyncio.run(scenario())


def test_a_user_sends_no_more_a_minute_than_allowed_and_refused_ones_do_not_count(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        with gateway.key(per_minute=5) as key:
            answers = [await user.send(CHAT, DEMO, key=key) for _ in range(9)]
            assert [answer.status for answer in answers] == [200] * 5 + [429] * 4
            assert answers[-1].error["code"] == "rate_limit_exceeded" and answers[-1].headers["Retry-After"]
            assert len(demo.requests) == 5
            assert (await user.chat()).status == 200

    exchange(steps)


def test_open_webui_speaks_for_its_users_and_nobody_else_does(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        def ask(key: str, name: str) -> Any:
            return user.send(CHAT, DEMO, key=key, headers={"X-OpenWebUI-User-Id": name, "X-OpenWebUI-User-Email": "a@b"})

        with gateway.key(per_minute=1, speaks_for_users=True) as key:
            assert [(await ask(key, name)).status for name in ("ann", "bob", "ann")] == [200, 200, 429]
        with gateway.key(user="single", per_minute=1) as key:
            assert [(await ask(key, name)).status for name in ("ann", "bob")] == [200, 429]
        assert not [name for request in demo.requests for name in request["headers"] if name.lower().startswith("x-openwebui")]

    exchange(steps)


def test_anthropics_header_is_a_key_too(gateway: Any, exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> list[int]:
        answers = [await user.send("/v1/messages", DEMO, key=None, headers={"x-api-key": key}) for key in (API_KEY, "wrong")]
        assert "x-api-key" not in {name.lower() for name in demo.requests[0]["headers"]}
        return [answer.status for answer in answers]

    assert exchange(steps) == [200, 401]


def test_a_thousand_keys_come_and_go_beside_a_key_in_use(gateway: Any, exchange: Any) -> None:
    path = str(gateway.directory / "keys.map")

    def churn() -> None:
        for number in range(0, 1000, 50):
            for step in range(number, number + 50):
                secret = keys.fingerprint(f"secret {step}")
                keys.change(path, lambda present: keys.added(present, keys.Key(f"k{step}", secret, f"u{step}")))  # noqa: B023
            keys.publish(path, gateway.ptolemyd)
        for step in range(1000):
            keys.change(path, lambda present: keys.revoked(present, f"k{step}"))  # noqa: B023
            if step % 50 == 49:
                keys.publish(path, gateway.ptolemyd)

    async def steps(user: Any, _: Any) -> set[int]:
        statuses = set()
        work = asyncio.create_task(asyncio.to_thread(churn))
        while not work.done():
            statuses |= {answer.status for answer in await asyncio.gather(*(user.chat() for _ in range(8)))}
        await work
        return statuses

    assert exchange(steps) == {200}
    assert [key.name for key in keys.load(path)] == ["default"]

"""ComfyUI's own API at the gateway: all calls of one prompt reach one instance (of the stand-in, or the real one: comfyui_instances.py)."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui_client import Painter, color_of, workflow
from comfyui_instances import SLOW, Instance, run
from conftest import until
from local_gateway import Gateway
from ptolemy.gateway import Endpoint


async def painted(user: Painter, instances: Sequence[Instance], count: int) -> list[str]:
    """The ids of so many prompts, of the colours 0, 1, 2 ..., all of them done."""
    prompts = [await user.prompt(color) for color in range(count)]
    await until(lambda: not any(it.remaining() for it in instances), "all are done")
    return prompts


def test_everybody_gets_the_own_picture_over_three_instances(gateway: Gateway, instances: Any) -> None:
    three = [instances() for _ in range(3)]

    async def scenario(user: Painter) -> list[int]:
        return await asyncio.gather(*(user.paint(color * 7, 0.05) for color in range(30)), *(user.poll(color) for color in range(30)))

    assert run(gateway, scenario) == [*(color * 7 for color in range(30)), *range(30)]
    rows = [line.split(",") for line in gateway.ask("show stat").splitlines() if line.startswith("svc_draw,j")]
    assert len(rows) == len(three) and all(int(row[7]) > 20 for row in rows)


def test_one_client_id_may_be_used_again_and_again(gateway: Gateway, instances: Any) -> None:
    for _ in range(3):
        instances()

    async def scenario(user: Painter) -> list[int]:
        return [await user.paint(color, client="the-same-user") for color in range(12)]

    assert run(gateway, scenario) == list(range(12))


@pytest.mark.parametrize("way", ["paint", "poll"])
def test_a_sleeping_service_is_woken_and_the_request_held(gateway: Gateway, instances: Any, way: str) -> None:
    async def scenario(user: Painter) -> int:
        waiting = asyncio.create_task(getattr(user, way)(0xABCDEF))
        await until(lambda: gateway.queued("draw") == 1, "it is held")
        await asyncio.to_thread(instances)
        return await waiting

    assert run(gateway, scenario) == 0xABCDEF


def test_many_held_websockets_find_their_instances(gateway: Gateway, instances: Any) -> None:
    async def scenario(user: Painter) -> list[int]:
        waiting = asyncio.gather(*(user.paint(color) for color in range(20)))
        await until(lambda: gateway.queued("draw") == 20, "all are held")
        for _ in range(2):
            await asyncio.to_thread(instances)
        return await waiting

    assert run(gateway, scenario) == list(range(20))


def test_a_draining_instance_gets_no_new_client_and_still_gives_its_pictures_out(gateway: Gateway, instances: Any) -> None:
    first = instances()

    async def scenario(user: Painter) -> tuple[bytes, list[int]]:
        prompt = await user.prompt(0x112233)
        await until(lambda: not first.remaining(), "it is done")
        await user.paint(1, client="known")
        second = await asyncio.to_thread(instances)
        gateway.ptolemyd.drain("svc_draw", first.name)
        fresh = [await user.paint(color, client="known") for color in range(6)] + [await user.poll(color) for color in range(6)]
        assert len(list((Path(second.engine._spec["comfyui_dir"]) / second.name / "output").iterdir())) == 12
        return await user.result(prompt), fresh

    picture, fresh = run(gateway, scenario)
    assert color_of(picture) == 0x112233
    assert fresh == [*range(6), *range(6)]


def test_a_prompt_is_lost_once_its_instance_is_known_to_have_ended(gateway: Gateway, instances: Any) -> None:
    first, _ = instances(), instances()

    async def scenario(user: Painter) -> list[list[tuple[int, bytes]]]:
        prompts = [await user.submit(**SLOW) for _ in range(8)]
        first.stop()
        asked = [await asyncio.gather(*(user.send("GET", f"/history/{prompt}") for prompt in prompts))]
        await asyncio.to_thread(gateway.remove, "draw", first.name)
        return [*asked, [await user.send("GET", f"/history/{prompt}") for prompt in prompts]]

    for answers, (status, code) in zip(run(gateway, scenario), [(503, "service_unavailable"), (404, "prompt_not_found")], strict=True):
        assert Counter(status for status, _ in answers) == {200: 4, status: 4}
        assert {json.loads(body).get("error", {}).get("code") for _, body in answers} == {None, code}


def test_a_dead_instances_websockets_end(gateway: Gateway, instances: Any) -> None:
    first = instances()

    async def scenario(user: Painter) -> None:
        waiting = asyncio.create_task(user.watched(**SLOW))
        await until(first.remaining, "it runs")
        first.stop()
        with pytest.raises((AssertionError, aiohttp.ClientError)):
            await asyncio.wait_for(waiting, 10)

    run(gateway, scenario)


def test_a_picture_is_served_by_the_instance_that_made_it_alone(gateway: Gateway, instances: Any) -> None:
    first, second = instances(), instances()

    async def scenario(user: Painter) -> list[int]:
        names = []
        for color in range(4):
            prompt = await user.prompt(color)
            await until(lambda: not first.remaining() and not second.remaining(), "it is done")
            names.append(json.loads((await user.send("GET", f"/history/{prompt}"))[1])[prompt]["outputs"]["2"]["images"][0]["filename"])
        assert {name.split("_")[0] for name in names} == {first.name, second.name}
        first.stop()
        await asyncio.to_thread(gateway.remove, "draw", first.name)
        missing = [name.replace("_0000", "_0009") for name in names] + ["photo.png", "", "../x"]
        assert {(await user.send("GET", "/view", params={"filename": name}))[0] for name in missing} == {404}
        return [(await user.send("GET", "/view", params={"filename": name}))[0] for name in sorted(names)]

    assert run(gateway, scenario) == [404, 404, 200, 200]


def test_what_follows_an_upload_reaches_its_instance(gateway: Gateway, instances: Any) -> None:
    both = [instances(), instances()]

    async def scenario(user: Painter) -> None:
        form = aiohttp.FormData()
        form.add_field("image", b"not really", filename="photo.png")
        status, body = await user.send("POST", "/api/upload/image", data=form)
        assert (status, json.loads(body)["name"]) == (200, "photo.png")
        for color in range(6):
            await user.paint(color)

    run(gateway, scenario)
    made = [len(list((Path(it.engine._spec["comfyui_dir"]) / it.name / "output").glob("*.png"))) for it in both]
    assert sorted(made) == [0, 6]


def test_a_prompt_can_be_ended_by_its_id_alone(gateway: Gateway, instances: Any) -> None:
    both = [instances(), instances()]

    async def scenario(user: Painter) -> list[int]:
        running = [await user.submit(**SLOW) for _ in both]
        waiting = [await user.prompt(2) for _ in both]
        refused = [
            (await user.send("POST", "/interrupt", json={}))[0],
            (await user.send("POST", "/queue", json={"clear": True, "delete": ["x"]}))[0],
            (await user.send("POST", "/queue", json={}))[0],
        ]
        for prompt in waiting:
            assert (await user.send("POST", "/queue", json={"delete": [prompt]}))[0] == 200
        await until(lambda: [it.remaining() for it in both] == [1, 1], "those that waited are gone")
        for prompt in running:
            assert (await user.send("POST", "/interrupt", json={"prompt_id": prompt}))[0] == 200
        await until(lambda: [it.remaining() for it in both] == [0, 0], "those that ran are gone, too")
        return refused

    assert run(gateway, scenario) == [400, 400, 400]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("GET", path)
            for path in ("/", "/queue", "/history", "/prompt", "/userdata", "/internal/logs", "/ptolemy", "/extensions/core.js")
        ),
        *(("POST", path) for path in ("/free", "/history", "/v1/chat/completions")),
    ],
)
def test_neither_the_editor_nor_other_peoples_prompts_are_reachable(gateway: Gateway, instances: Any, method: str, path: str) -> None:
    instances()
    assert run(gateway, lambda user: user.send(method, path, json={} if method == "POST" else None))[0] == 404


@pytest.mark.parametrize("path", ["/prompt", "/ws", "/view?filename=j7r0p20000_x", "/history/x", "/object_info", "/"])
def test_nothing_is_reachable_without_a_key(gateway: Gateway, instances: Any, path: str) -> None:
    instances()
    assert run(gateway, lambda user: user.send("GET", path), key="")[0] == 401
    assert run(gateway, lambda user: user.send("GET", path), key="sk-wrong")[0] == 401


@pytest.mark.parametrize("path", ["/interrupt", "/queue"])
def test_a_prompts_id_cannot_add_headers_to_the_request(gateway: Gateway, stub: Any, client: Any, path: str) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with stub() as instance, client(gateway) as user:
            name = f"j7r0p{instance.port}"
            forged = f"{name}\r\nx-fake: yes_1"
            # Before anybody knows who is there, it goes round inside HAProxy as a header.
            asking = asyncio.create_task(user.send(f"/m/draw{path}", {"prompt_id": forged, "delete": [forged]}))
            await asyncio.sleep(1)
            gateway.add("draw", name, instance.port)
            await asking
            asked: list[dict[str, Any]] = instance.requests
            return [it for it in asked if it["path"] != "/prompt"]

    (asked,) = asyncio.run(scenario())
    assert "x-fake" not in {name.lower() for name in asked["headers"]}


def status_of(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_instance_lets_nobody_in_but_the_gateway(gateway: Gateway, instances: Any) -> None:
    instance = instances()
    paths = ("/prompt", "/object_info", "/api/object_info", "/view?filename=x", "/ptolemy")
    answers = [status_of(instance.port, path) for path in paths]
    assert answers == [200, 401, 401, 401, 401]


def test_no_instance_means_that_none_has_the_picture(gateway: Gateway) -> None:
    gateway.ptolemyd.wake("svc_draw", False)
    began = time.monotonic()
    for path in ("/history/x", "/view?filename=j7r0p20000_x.png"):
        status, body = run(gateway, lambda user, path=path: user.send("GET", path))
        assert (status, json.loads(body)["error"]["code"]) == (404, "prompt_not_found")
    assert time.monotonic() - began < 5


def test_an_instance_too_busy_for_its_health_checks_keeps_its_prompts(gateway: Gateway, instances: Any) -> None:
    instance = instances()

    async def scenario(user: Painter) -> list[int]:
        prompts = await painted(user, [instance], 6)
        instance.process.send_signal(signal.SIGSTOP)
        await until(lambda: gateway.servers("draw")[instance.name].startswith("DOWN"), "it is down")
        gateway.ptolemyd.wake("svc_draw", False)
        waiting = asyncio.gather(*(user.result(prompt) for prompt in prompts))
        await until(lambda: gateway.busy("draw", instance.name) == 6, "they wait for it")
        instance.process.send_signal(signal.SIGCONT)
        return [color_of(picture) for picture in await waiting]

    assert run(gateway, scenario) == list(range(6))


def test_a_service_of_pictures_answers_no_chat_and_others_no_prompt(gateway: Gateway, client: Any) -> None:
    async def scenario() -> tuple[Any, int]:
        async with client(gateway) as user:
            chat = await user.chat("draw")
            return chat, (await user.send("/m/demo/prompt", {"prompt": {}})).status

    chat, prompt = asyncio.run(scenario())
    assert (chat.status, chat.error["code"], prompt) == (400, "not_a_model_for_chats", 404)


def test_only_prompts_count_against_a_keys_limits(gateway: Gateway, instances: Any) -> None:
    instances()
    with gateway.key(per_minute=3) as key:

        async def scenario(user: Painter) -> list[int]:
            painted = [await user.poll(color) for color in range(3)]
            return [*painted, (await user.send("POST", "/prompt", json={"prompt": workflow(1)}))[0]]

        assert run(gateway, scenario, key) == [0, 1, 2, 429]


def test_a_prompts_calls_find_its_instance_after_a_reload(gateway: Gateway, instances: Any) -> None:
    both = [instances(), instances()]

    prompts = run(gateway, lambda user: painted(user, both, 6))
    gateway.reload()
    for it in both:
        gateway.add("draw", it.name, it.port, slots=1000)

    async def later(user: Painter) -> list[int]:
        # In another order than they were sent in: what alternates between two would find half of them.
        return [color_of(await user.result(prompts[number])) for number in (0, 2, 4, 1, 3, 5)]

    assert run(gateway, later) == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("there", [True, False])
def test_after_a_reload_a_picture_is_waited_for_until_it_is_known_who_has_it(gateway: Gateway, instances: Any, there: bool) -> None:
    both = [instances(), instances()]
    prompts = run(gateway, lambda user: painted(user, both, 4))
    gateway.reload()

    async def after(user: Painter) -> list[int]:
        waiting = asyncio.gather(*(user.send("GET", f"/history/{prompt}") for prompt in prompts))
        await asyncio.sleep(1.5)  # they go round three times
        assert not waiting.done()
        assert gateway.queued("draw") == 0  # what waits in the service's queue would wake it, and end at any instance
        for it in both if there else ():
            gateway.ptolemyd.add(Endpoint("svc_draw", it.name, "127.0.0.1", it.port, 1000), it.port)
        gateway.ptolemyd.wake("svc_draw", there)
        return [status for status, _ in await waiting]

    assert run(gateway, after) == [200 if there else 404] * 4


def test_a_client_does_not_choose_its_prompts_id(gateway: Gateway, instances: Any) -> None:
    instance = instances()

    async def scenario(user: Painter) -> list[str]:
        first = await user.prompt(1)
        return [first, await user.prompt(2, prompt_id=first)]

    first, second = run(gateway, scenario)
    assert first != second
    assert {first.partition("_")[0], second.partition("_")[0]} == {instance.name}

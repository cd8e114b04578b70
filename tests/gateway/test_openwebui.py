"""Open WebUI behind the gateway: people's browsers at a port of their own, and its own requests among those of the API."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from conftest import API_KEY, until

CHAT = "/v1/chat/completions"
DEMO = {"model": "demo", "messages": []}
LOGIN = "/api/v1/auths/signin"


class Page:
    """What stands for Open WebUI: it knows one password, has a websocket, and tells what it was sent."""

    def __init__(self) -> None:
        self.logins = 0
        self.uploading = asyncio.Event()

    async def login(self, request: web.Request) -> web.Response:
        self.logins += 1
        return web.json_response({}, status=200 if (await request.json())["password"] == "right" else 400)

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"echo {message.data}")
        return socket

    async def upload(self, request: web.Request) -> web.Response:
        await request.content.readany()
        self.uploading.set()
        return web.Response(text=str(len(await request.read())))

    async def other(self, request: web.Request) -> web.Response:
        return web.json_response({"path": request.path, "headers": {name.lower(): value for name, value in request.headers.items()}})


@pytest.fixture
def browse(gateway: Any) -> Any:
    """Run steps with a browser's session at the port for people, and a page behind it."""

    @contextlib.asynccontextmanager
    async def page_behind() -> AsyncIterator[Page]:
        page, app = Page(), web.Application(client_max_size=64 << 20)
        app.router.add_post(LOGIN, page.login)
        app.router.add_get("/ws/socket.io/", page.socket)
        app.router.add_post("/api/v1/files/", page.upload)
        app.router.add_route("*", "/{path:.*}", page.other)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", gateway.openwebui_server_port).start()
        try:
            await until(lambda: "openwebui,openwebui" in gateway.ask("show stat") and ",UP," in stat(gateway), "Open WebUI is up")
            yield page
        finally:
            await runner.cleanup()

    def run(steps: Any) -> Any:
        async def scenario() -> Any:
            base, host = f"http://127.0.0.1:{gateway.openwebui_port}", {"Host": "chat.test"}
            async with page_behind() as page, aiohttp.ClientSession(base, headers=host, timeout=aiohttp.ClientTimeout(20)) as browser:
                return await steps(browser, page)

        return asyncio.run(scenario())

    return run


def stat(gateway: Any) -> str:
    return next(line for line in gateway.ask("show stat").splitlines() if line.startswith("openwebui,openwebui,"))


def test_the_address_of_the_chat_is_its_own_and_leads_nowhere_else(browse: Any, gateway: Any) -> None:
    async def steps(browser: Any, _: Any) -> None:
        async with browser.get("/v1/models", headers={"Authorization": f"Bearer {API_KEY}"}) as answer:
            assert (await answer.json())["path"] == "/v1/models"  # Open WebUI's own, not the API's
        async with browser.get("/", headers={"Host": "elsewhere.test"}) as answer:
            assert (answer.status, await answer.text()) == (421, "This is not the address of the chat.")
        async with browser.get(f"http://127.0.0.1:{gateway.port}/api/config", headers={"Authorization": f"Bearer {API_KEY}"}) as answer:
            assert answer.status == 404

    browse(steps)


def test_what_a_browser_says_of_its_own_address_is_replaced(browse: Any) -> None:
    async def steps(browser: Any, _: Any) -> Any:
        async with browser.get("/x", headers={"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https"}) as answer:
            return (await answer.json())["headers"]

    headers = browse(steps)
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "http")


def test_while_it_is_away_people_are_told_so_in_words(gateway: Any) -> None:
    async def scenario() -> tuple[int, str]:
        page = f"http://127.0.0.1:{gateway.openwebui_port}/"
        async with aiohttp.ClientSession(headers={"Host": "chat.test"}) as browser, browser.get(page) as answer:
            return answer.status, await answer.text()

    assert asyncio.run(scenario()) == (503, "The chat is starting, or being updated: try again in a minute.")


def test_a_websocket_passes(browse: Any) -> None:
    async def steps(browser: Any, _: Any) -> Any:
        async with browser.ws_connect("/ws/socket.io/") as socket:
            await socket.send_str("hello")
            return await socket.receive_str()

    assert browse(steps) == "echo hello"


def test_an_upload_goes_on_before_all_of_it_is_there(browse: Any) -> None:
    async def steps(browser: Any, page: Any) -> Any:
        async def body() -> AsyncIterator[bytes]:
            yield b"x" * 1000
            await asyncio.wait_for(page.uploading.wait(), 10)
            yield b"x" * 1_000_000

        async with browser.post("/api/v1/files/", data=body()) as answer:
            return await answer.text()

    assert browse(steps) == "1000000"


@pytest.mark.parametrize("path", [LOGIN, "/api/v1/auths/%73ignin"])
def test_only_wrong_passwords_count_and_too_many_are_not_tried(browse: Any, path: str) -> None:
    async def steps(browser: Any, page: Any) -> Any:
        async def login(password: str) -> int:
            async with browser.post(
                URL(path, encoded=True), data=json.dumps({"password": password}), headers={"Content-Type": "application/json"}
            ) as answer:
                return int(answer.status)

        found = [await login("right") for _ in range(5)] + [await login("wrong") for _ in range(4)] + [await login("right")]
        async with browser.get("/") as answer:
            return found, page.logins, answer.status

    assert browse(steps) == ([200] * 5 + [400] * 3 + [429] * 2, 8, 200)


def test_what_open_webui_asks_by_itself_is_batch_unless_an_answer_waits_for_it(gateway: Any, stub: Any, client: Any) -> None:
    lines: list[str] = []

    def logged() -> list[str]:
        lines.extend(line[line.index("{") :] for line in gateway.log_lines() if '"model"' in line)
        return [row["tier"] for row in map(json.loads, lines) if row["path"] == CHAT]

    async def scenario() -> None:
        async with stub() as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port)
            for number, task in enumerate(("title_generation", "tags_generation", "follow_up_generation", "query_generation", ""), 1):
                assert (await user.send(CHAT, DEMO, headers={"X-OpenWebUI-Task": task})).status == 200
                # A request is logged a moment after its answer.
                await until(lambda number=number: len(logged()) == number, f"{number} requests in the log")
            assert not any(name.lower().startswith("x-openwebui") for request in demo.requests for name in request["headers"])

    asyncio.run(scenario())
    assert logged() == ["batch"] * 3 + ["interactive"] * 2


def test_the_list_of_models_can_leave_out_those_that_nobody_can_chat_with(gateway: Any, client: Any) -> None:
    async def scenario() -> Any:
        async with client(gateway) as user:
            return [
                {model["id"] for model in (await user.send("/v1/models", headers={"X-Ptolemy-Kind": kind})).json["data"]}
                for kind in ("chat", "embedding", "")
            ]

    assert asyncio.run(scenario()) == [{"demo", "demo-b.v1"}, set(), {"demo", "demo-b.v1", "draw"}]

"""A real HAProxy with the role's own configuration, and stub servers behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from comfyui_instances import Instance
from local_gateway import API_KEY, HAPROXY, Gateway, render


async def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for a condition, without blocking the stubs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Stub:
    """A server that answers like llama-server, and remembers what it was asked."""

    delay: float = 0.0
    tokens: int = 3
    frozen: bool = False
    gate: asyncio.Event | None = None  # a stream goes on after its first token only once this is set
    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    connections: set[asyncio.BaseTransport] = field(default_factory=set)
    running: int = 0
    most: int = 0
    forged: dict[str, str] = field(default_factory=dict)  # headers of its answers

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.frozen:
            await asyncio.sleep(60)
        if request.path == "/health":
            return web.json_response({"status": "ok"})
        assert request.transport
        self.connections.add(request.transport)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            body = await request.read()
            self.requests.append({"path": request.path, "headers": dict(request.headers), "sha256": sha256(body).hexdigest()})
            await asyncio.sleep(self.delay)
            if b'"stream": true' in body:
                return await self.stream(request)
            return web.json_response({"port": self.port, "path": request.path}, headers=self.forged)
        finally:
            self.running -= 1

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Keep-Alive": "timeout=5", **self.forged})
        await response.prepare(request)
        for number in range(self.tokens):
            await response.write(f"data: {number}\n\n".encode())
            if self.gate:
                await self.gate.wait()
            await asyncio.sleep(0.02)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        # As llama-server: the connection was announced as kept alive, and is closed all the same.
        assert request.transport
        request.transport.close()
        return response

    async def kill(self) -> None:
        """Vanish as a killed process does: no more listening, every connection torn."""
        await self.site.stop()
        assert self.runner.server
        for connection in list(self.runner.server.connections):
            if connection.transport:
                connection.transport.abort()

    async def __aenter__(self) -> Stub:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await self.site.start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()


class Client:
    """An OpenAI client with a key."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway, self.session = gateway, session

    async def send(self, path: str, body: object = None, key: str | None = API_KEY, **options: Any) -> Answer:
        data = body if isinstance(body, (bytes, type(None))) or hasattr(body, "__aiter__") else json.dumps(body)
        headers = {"Content-Type": "application/json", **options.pop("headers", {})} | ({"Authorization": f"Bearer {key}"} if key else {})
        method = options.pop("method", "GET" if data is None else "POST")
        async with self.session.request(method, self.gateway.url + path, data=data, headers=headers, ssl=False) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def chat(self, model: str = "demo", **extra: Any) -> Answer:
        # In the OpenAI SDK's order: the model comes after the messages.
        headers = extra.pop("headers", {})
        body = {"messages": [{"role": "user", "content": "hi"}], "model": model, **extra}
        return await self.send("/v1/chat/completions", body, headers=headers)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of an answer that must have OpenAI's shape."""
        assert self.headers["Content-Type"] == "application/json", self
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        return dict(error)


@contextlib.asynccontextmanager
async def open_client(gateway: Gateway) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(gateway, session)
    # A TLS connection takes a moment to close; the event loop must not end before.
    await asyncio.sleep(0.2 if gateway.scheme == "https" else 0)


@pytest.fixture(scope="session")
def rendered() -> Iterator[dict[str, Gateway]]:
    assert HAPROXY, "these tests need the program haproxy (apt-get install haproxy)"
    # Not pytest's own directory: the path of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ptgw-") as base:
        gateways = make_variants(Path(base))
        yield gateways
        for gateway in gateways.values():
            gateway.log_socket.close()


def make_variants(base: Path) -> dict[str, Gateway]:
    """The role's files in variants: as by default; with a short wait for a first server, and another header for a user's name; with short
    times and TLS; for few connections and without the status page."""
    for name in ("default", "brief", "short", "small"):
        (base / name).mkdir()
    short = {f"haproxy_{name}_timeout": value for name, value in (("server", "1s"), ("request", "1s"), ("queue", "2s"))}
    gateways = {
        "default": Gateway("default", base / "default"),
        "brief": Gateway("brief", base / "brief", haproxy_hold_seconds=2, haproxy_user_header="X-Remote-User"),
        "short": Gateway("short", base / "short", haproxy_tls_certificate="self-signed", **short),
        "small": Gateway("small", base / "small", haproxy_maxconn=30, haproxy_status_page=False),
    }
    render(base, list(gateways.values()))
    return gateways


def run_gateway(gateway: Gateway) -> Iterator[Gateway]:
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
        print((gateway.directory / "haproxy.log").read_text(), *gateway.log_lines(), sep="\n")


@pytest.fixture
def gateway(rendered: dict[str, Gateway]) -> Iterator[Gateway]:
    yield from run_gateway(rendered["default"])


@pytest.fixture
def brief_gateway(rendered: dict[str, Gateway]) -> Iterator[Gateway]:
    yield from run_gateway(rendered["brief"])


@pytest.fixture
def short_gateway(rendered: dict[str, Gateway]) -> Iterator[Gateway]:
    yield from run_gateway(rendered["short"])


@pytest.fixture
def small_gateway(rendered: dict[str, Gateway]) -> Iterator[Gateway]:
    yield from run_gateway(rendered["small"])


@pytest.fixture
def stub() -> type[Stub]:
    return Stub


@pytest.fixture
def client() -> Any:
    return open_client


@pytest.fixture
def instances(gateway: Gateway, tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Starts instances, and by default gives them to HAProxy as ptolemyd does."""
    made: list[Instance] = []

    def start(known: bool = True, models: Sequence[str] = ()) -> Instance:
        made.append(Instance(tmp_path, 7 + len(made), models))
        if known:
            gateway.add("draw", made[-1].name, made[-1].port, slots=1000)
        return made[-1]

    yield start
    for instance in made:
        instance.stop()

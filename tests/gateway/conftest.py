"""A real HAProxy with the role's own configuration, and stub servers behind it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import grp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ptolemy import keys
from ptolemy.errors import ChangeError
from ptolemy.haproxy import Endpoint, HAProxy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HAPROXY = os.environ.get("HAPROXY") or shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or ""
API_KEY = "sk-client-0123456789abcdef"
BACKEND_KEY = "bk-server-0123456789abcdef"
SERVICES = ["demo", "demo-b.v1"]


async def until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Wait for a condition, without blocking the stubs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """One HAProxy in master-worker mode, as systemd runs it."""

    def __init__(self, name: str, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.port, self.stats_port = free_port(), free_port()
        self.log_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.log_socket.bind(("127.0.0.1", 0))
        self.log_socket.setblocking(False)
        self.admin_socket = directory / "admin.sock"
        self.ptolemyd = HAProxy(str(self.admin_socket), str(directory / "ptolemy" / "awake.map"), str(directory / "ptolemy" / "states.map"))
        self.process: subprocess.Popen[bytes] | None = None
        self.next_id = 1000
        self.scheme = "https" if settings.get("haproxy_tls_certificate") else "http"
        self.settings = {
            "haproxy_config_dir": str(directory),
            "haproxy_admin_socket": str(self.admin_socket),
            "haproxy_hold_address": f"abns@ptolemy-test-{os.getpid()}-{name}",
            "haproxy_gate_address": f"abns@ptolemy-gate-{os.getpid()}-{name}",
            "haproxy_keys_file": str(directory / "keys.map"),
            "haproxy_port": self.port,
            "haproxy_stats_bind": f"127.0.0.1:{self.stats_port}",
            "haproxy_log_target": f"127.0.0.1:{self.log_socket.getsockname()[1]}",
            "haproxy_hold_seconds": 300,
            "haproxy_queue_timeout": "1h",
            "haproxy_server_timeout": "1h",
            "haproxy_request_timeout": "30s",
            "haproxy_tls_certificate": "",
            **settings,
        }

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        with open(self.directory / "haproxy.log", "ab") as log:
            command = [HAPROXY, "-W", "-f", str(self.directory / "haproxy.cfg")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.wait_for_worker(other_than="")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
            self.process = None

    def reload(self) -> None:
        self.wait_for_worker(other_than=self.worker(), reload_every=3)

    def wait_for_worker(self, other_than: str, reload_every: float = 0) -> None:
        began, signals = time.monotonic(), 0
        while (waited := time.monotonic() - began) < 20:
            # A master that has only just started its worker may miss the signal.
            if self.process and reload_every and waited >= signals * reload_every:
                self.process.send_signal(signal.SIGUSR2)
                signals += 1
            with contextlib.suppress(OSError):
                if self.worker() not in ("", other_than):
                    return
            time.sleep(0.02)
        raise AssertionError(f"no HAProxy: {(self.directory / 'haproxy.log').read_text()}")

    def worker(self) -> str:
        lines = self.ask("show info").splitlines()
        return next((line.split()[1] for line in lines if line.startswith("Pid:")), "")

    def ask(self, command: str) -> str:
        """Send one command of the runtime API."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.admin_socket))
            client.sendall(command.encode() + b"\n")
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        return answer.decode().strip()

    def add(self, service: str, name: str, port: int, slots: int = 4) -> None:
        """Add a server, by what ptolemyd itself uses."""
        self.next_id += 1
        self.ptolemyd.add(Endpoint(f"svc_{service}", name, "127.0.0.1", port, slots), self.next_id)
        self.ptolemyd.wake(f"svc_{service}", True)

    @contextlib.contextmanager
    def key(self, secret: str = "sk-other-0123456789abcdef", **fields: Any) -> Iterator[str]:
        """One more key for a while, made as `ptolemy keys` does."""
        key = keys.Key(**{"name": "other", "user": "other", "sha256": keys.fingerprint(secret), **fields})
        path = str(self.directory / "keys.map")
        keys.change(path, lambda present: keys.added(present, key))
        keys.publish(path, self.ptolemyd)
        try:
            yield secret
        finally:
            keys.change(path, lambda present: keys.revoked(present, key.name))
            keys.publish(path, self.ptolemyd)

    def remove(self, service: str, name: str) -> None:
        deadline = time.monotonic() + 5
        while True:
            try:
                return self.ptolemyd.remove(f"svc_{service}", name)
            except ChangeError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def servers(self, service: str) -> dict[str, str]:
        """The state of each server, by name."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines()]
        status = rows[0].index("status")
        return {r[1]: r[status] for r in rows if r[0] == f"svc_{service}" and r[1] not in ("BACKEND", "FRONTEND")}

    def busy(self, service: str, name: str) -> int:
        """How many requests a server is answering."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines()]
        return next(int(row[4]) for row in rows if row[:2] == [f"svc_{service}", name])

    def queued(self, service: str) -> int:
        """How many requests wait, by ptolemyd's own count: those in the queue, and those that `hold` has."""
        return self.ptolemyd.observe().queued[f"svc_{service}"]

    def log_lines(self) -> list[str]:
        lines = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.append(self.log_socket.recv(65536).decode())
        return lines


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
            self.requests.append({"path": request.path, "headers": dict(request.headers), "size": len(body)})
            await asyncio.sleep(self.delay)
            if b'"stream": true' in body:
                return await self.stream(request)
            return web.json_response({"port": self.port, "path": request.path})
        finally:
            self.running -= 1

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Keep-Alive": "timeout=5"})
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
        app = web.Application(client_max_size=8 << 20)
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


def make_certificate(directory: Path) -> str:
    pem = directory / "gateway.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway", "-days", "2", "-keyout", pem, "-out", pem],
        check=True,
        capture_output=True,
    )
    return str(pem)


@pytest.fixture(scope="session")
def rendered() -> Iterator[dict[str, Gateway]]:
    assert HAPROXY, "these tests need the program haproxy (apt-get install haproxy)"
    # Not pytest's own directory: the path of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ptgw-") as base:
        gateways = render(Path(base))
        yield gateways
        for gateway in gateways.values():
            gateway.log_socket.close()


def render(base: Path) -> dict[str, Gateway]:
    """Write the role's files in three variants: as by default, with a short wait for a first server, and with short times and TLS."""
    for name in ("default", "brief", "short"):
        (base / name).mkdir()
    short = {f"haproxy_{name}_timeout": value for name, value in (("server", "1s"), ("request", "1s"), ("queue", "2s"))}
    gateways = {
        "default": Gateway("default", base / "default"),
        "brief": Gateway("brief", base / "brief", haproxy_hold_seconds=2),
        "short": Gateway("short", base / "short", haproxy_tls_certificate=make_certificate(base), **short),
    }
    group = grp.getgrgid(os.getgid()).gr_name
    variables: dict[str, Any] = {
        "ptolemy_services": {"demo": {"context": 4096, "model": "tiny"}, "demo-b.v1": {"context": 4096}},
        "ptolemy_models": {"tiny": {"file": "Tiny-8B-Q4_K_M.gguf", "sha256": "a" * 64}},
        "ptolemy_aliases": {"default": "demo", "gpt-4o-mini": "demo"},
        "ptolemy_api_key": API_KEY,
        "ptolemy_backend_key": BACKEND_KEY,
        "ptolemy_user": group,
        "haproxy_binary": HAPROXY,
        "haproxy_maxconn": 2000,
        "haproxy_owner": getpass.getuser(),
        "variants": [gateway.settings for gateway in gateways.values()],
        "ansible_python_interpreter": sys.executable,
    }
    if os.getuid() != 0:
        variables |= {"haproxy_user": getpass.getuser(), "haproxy_group": group, "haproxy_chroot": ""}
    (base / "vars.json").write_text(json.dumps(variables))
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", "-e", f"@{base}/vars.json"]
    environment = {
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
        "ANSIBLE_LIBRARY": str(ROOT / "library"),
        "ANSIBLE_MODULE_UTILS": str(ROOT / "module_utils"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_LOCAL_TEMP": str(base),
        "ANSIBLE_REMOTE_TEMP": str(base),
    }
    done = subprocess.run(
        [*command, HERE / "render.yml"], cwd=base, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return gateways


def run_gateway(gateway: Gateway) -> Iterator[Gateway]:
    gateway.start()
    try:
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
def stub() -> type[Stub]:
    return Stub


@pytest.fixture
def client() -> Any:
    return open_client

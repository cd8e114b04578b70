"""Who may ask, and where a request goes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from yarl import URL

from conftest import API_KEY, until

CHAT = "/v1/chat/completions"


@pytest.fixture
def ask(gateway: Any, stub: Any, client: Any) -> Callable[..., Any]:
    """Run one exchange with a stub behind each service; return the answer and the stubs."""

    def run(exchange: Callable[[Any], Awaitable[Any]]) -> tuple[Any, Any, Any]:
        async def scenario() -> tuple[Any, Any, Any]:
            async with stub() as demo, stub() as other, client(gateway) as user:
                gateway.add("demo", "a", demo.port)
                gateway.add("demo-b.v1", "b", other.port)
                return await exchange(user), demo, other

        return asyncio.run(scenario())

    return run


@pytest.mark.parametrize("key", [None, "", "wrong-0123456789abcdef"])
def test_without_a_valid_key_nothing_is_reached(ask: Any, key: str | None) -> None:
    answer, demo, _ = ask(lambda user: user.send(CHAT, {"model": "demo"}, key=key))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert not demo.requests


def test_health_needs_no_key(ask: Any) -> None:
    answer, _, _ = ask(lambda user: user.send("/health", key=None))
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_model_after_the_messages_decides(ask: Any) -> None:
    answer, demo, other = ask(lambda user: user.chat("demo-b.v1"))
    assert answer.status == 200
    assert (len(demo.requests), len(other.requests)) == (0, 1)
    assert other.requests[0]["path"] == CHAT


def test_servers_get_their_key_and_not_the_clients(ask: Any) -> None:
    _, demo, _ = ask(lambda user: user.chat("demo"))
    key = hmac.new(b"bk-server-0123456789abcdef", b"demo", "sha256").hexdigest()  # as llama-server's job computes it
    assert demo.requests[0]["headers"]["Authorization"] == f"Bearer {key}"
    assert "sk-client" not in json.dumps(demo.requests) and "bk-server" not in json.dumps(demo.requests)


def test_path_of_a_service_wins_over_the_body(ask: Any) -> None:
    answer, demo, _ = ask(lambda user: user.send("/m/demo/v1/embeddings", {"input": "x", "model": "nonsense"}))
    assert answer.status == 200
    assert demo.requests[0]["path"] == "/v1/embeddings"


@pytest.mark.parametrize("path", [CHAT, "/m/nope/v1/chat/completions"])
def test_unknown_model_names_the_known_ones(ask: Any, path: str) -> None:
    answer, _, _ = ask(lambda user: user.send(path, {"model": "nope"}))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "nope" in answer.error["message"] and "demo, demo-b.v1, draw" in answer.error["message"]


def test_a_hostile_model_name_cannot_break_the_error(ask: Any) -> None:
    name = 'x"}%[env(PATH)]\r\nX: y' + "a" * 500
    answer, _, _ = ask(lambda user: user.chat(name))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "X" not in answer.headers and len(answer.body) < 1000


@pytest.mark.parametrize("body", [b"{not json", b"", b"[]", b'"model"', b'{"messages":[{"model":"demo"}]}', b'{"model":}'])
def test_a_body_without_model_is_explained(ask: Any, body: bytes) -> None:
    answer, demo, _ = ask(lambda user: user.send(CHAT, body, method="POST"))
    assert (answer.status, answer.error["code"]) == (400, "missing_model")
    assert "/m/<service>/v1" in answer.error["message"]
    assert not demo.requests


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [400_000, 15_000_000])
def test_model_beyond_the_buffer_is_413_and_says_what_to_do(ask: Any, chunked: bool, size: int) -> None:
    body = json.dumps({"messages": "x" * size, "model": "demo"}).encode()

    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {API_KEY}\r\n{length}\r\n\r\n".encode()
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body

    def exchange(gateway: Any) -> bytes:
        """Read the answer even where the gateway hung up before it had everything: an HTTP library may give up at that."""
        answer = b""
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection, contextlib.suppress(ConnectionError):
            with contextlib.suppress(ConnectionError):
                connection.sendall(head + sent)
            while piece := connection.recv(65536):
                answer += piece
                if piece.endswith(b"}"):
                    break
        return answer

    answer, _, _ = ask(lambda user: asyncio.to_thread(exchange, user.gateway))
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "request_too_large"
    assert "put model first, send the header X-Ptolemy-Service, or use /m/<service>/v1" in error["message"]


def test_models_are_listed_by_the_gateway(ask: Any) -> None:
    async def exchange(user: Any) -> list[Any]:
        paths = ["/v1/models", "/v1/models/demo-b.v1", "/m/demo/v1/models", "/v1/models/nope"]
        return [await user.send(path) for path in paths] + [await user.send("/v1/models", key=None)]

    (models, one, by_path, unknown, without_key), demo, _ = ask(exchange)
    assert [model["id"] for model in models.json["data"]] == ["demo", "demo-b.v1", "draw"]
    assert models.json["object"] == "list" and by_path.json == models.json
    assert (one.json["id"], one.json["object"], one.json["owned_by"]) == ("demo-b.v1", "model", "ptolemy")
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    assert without_key.status == 401
    assert not demo.requests


@pytest.mark.parametrize(
    "path",
    "/slots /m/demo/slots /m/demo//slots /m/demo/metrics /m/demo/v1/../slots /m/demo/v1/%2e%2e/slots /v1/%2e%2e/slots".split()
    + "/m/demo /m/demo/m/demo/slots / /v1 /v1x/slots /metrics /props".split(),
)
def test_nothing_but_the_api_is_reachable(ask: Any, path: str) -> None:
    async def exchange(user: Any) -> list[Any]:
        answers = []
        for method, data in (("GET", None), ("POST", b'{"model": "demo"}')):
            url = URL(user.gateway.url + path, encoded=True)
            headers = {"Authorization": "Bearer sk-client-0123456789abcdef"}
            async with user.session.request(method, url, data=data, headers=headers) as response:
                answers.append((response.status, (await response.json())["error"]["code"]))
        return answers

    answers, demo, _ = ask(exchange)
    assert answers == [(404, "unknown_url")] * 2
    assert not demo.requests


def test_tls(short_gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> Any:
        async with stub() as demo, client(short_gateway) as user:
            short_gateway.add("demo", "a", demo.port)
            return await user.chat()

    assert asyncio.run(scenario()).status == 200
    pem = short_gateway.directory / "ptolemy/self-signed.pem"
    assert pem.with_name("self-signed.pem.key").stat().st_mode & 0o777 == 0o600
    trusting = ssl.create_default_context(cafile=str(pem))
    plain = socket.create_connection(("127.0.0.1", short_gateway.port), timeout=5)
    with trusting.wrap_socket(plain, server_hostname="localhost") as wrapped:  # raises where name or issuer is wrong
        assert wrapped.version() == "TLSv1.3"


def test_statistics_and_metrics_are_on_their_own_port(gateway: Any, client: Any) -> None:
    async def scenario() -> tuple[str, str]:
        async with client(gateway) as user:
            url = f"http://127.0.0.1:{gateway.stats_port}"
            async with user.session.get(f"{url}/metrics") as metrics, user.session.get(f"{url}/") as page:
                return await metrics.text(), await page.text()

    metrics, page = asyncio.run(scenario())
    assert 'haproxy_backend_current_queue{proxy="svc_demo"}' in metrics
    assert "svc_demo-b.v1" in page


def test_the_log_says_who_what_and_where_but_no_secret(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        async with stub() as demo, client(gateway) as user:
            gateway.add("demo", "j1r0p20000", demo.port)
            await user.chat()
            await until(lambda: logged.extend(line for line in gateway.log_lines() if '"request"' in line) or logged, "a line in the log")

    logged: list[str] = []
    asyncio.run(scenario())
    (line,) = logged
    told = json.loads(line[line.index("{") :])
    expected = {"server": "svc_demo/j1r0p20000", "user": "default", "tier": "interactive", "model": "demo", "service": "demo", "path": CHAT}
    assert expected.items() <= told.items() and told["status"] == 200 and told["request"]
    assert "Bearer" not in line and "sk-client" not in line and "bk-server" not in line and '"hi"' not in line


def test_the_gateway_stores_only_hashes_of_keys(gateway: Any) -> None:
    files = [*(gateway.directory / "ptolemy").iterdir(), gateway.directory / "haproxy.cfg", gateway.directory / "keys.map"]
    written = {path.name: path.read_text() for path in files}
    assert hashlib.sha256(b"sk-client-0123456789abcdef").hexdigest() + " default:" in written["keys.map"]
    assert not [name for name, text in written.items() if "sk-client" in text]
    backend_key = base64.b64encode(b"bk-server-0123456789abcdef").decode()
    assert [name for name, text in written.items() if backend_key in text] == ["backend-key.map"]
    assert (gateway.directory / "ptolemy/backend-key.map").stat().st_mode & 0o777 == 0o600
    assert (gateway.directory / "keys.map").stat().st_mode & 0o777 == 0o640

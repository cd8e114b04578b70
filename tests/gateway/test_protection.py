"""What must not get in, and what must not get through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from typing import Any

import pytest

from conftest import API_KEY

CHAT = "/v1/chat/completions"
DEMO = {"model": "demo", "messages": []}
HEAD = f"Host: gateway\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"


@pytest.fixture
def exchange(gateway: Any, stub: Any, client: Any) -> Any:
    def run(steps: Any) -> Any:
        async def scenario() -> Any:
            async with stub() as demo, client(gateway) as user:
                gateway.add("demo", "a", demo.port)
                return await steps(user, demo)

        return asyncio.run(scenario())

    return run


def raw(gateway: Any, text: bytes) -> bytes:
    """Send bytes as they are; return all that comes until the gateway hangs up or falls silent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=2) as connection:
        connection.sendall(text)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
    return answer


def test_inner_headers_of_a_client_go_no_further(exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        forged = {"X-Ptolemy-Deadline": "1", "X-Ptolemy-Turn": "1", "X-Request-Id": "mine", "X-OpenWebUI-User-Id": "root"}
        forged["X-OpenWebUI-User-Email"] = "root@example.org"
        assert (await user.send(CHAT, DEMO, headers=forged)).status == 200
        sent = {name.lower(): value for name, value in demo.requests[0]["headers"].items()}
        assert sent["x-request-id"] != "mine"
        assert [name for name in sent if name.startswith(("x-ptolemy-", "x-openwebui-"))] == ["x-ptolemy-service"]
        assert sent["x-ptolemy-service"] == "demo"

    exchange(steps)


def test_the_header_of_a_users_name_goes_no_further_whatever_its_name(brief_gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> list[str]:
        async with stub() as demo, client(brief_gateway) as user:
            brief_gateway.add("demo", "a", demo.port)
            assert (await user.send(CHAT, DEMO, headers={"X-Remote-User": "root"})).status == 200
            return [name.lower() for name in demo.requests[0]["headers"]]

    assert "x-remote-user" not in asyncio.run(scenario())


def test_a_header_names_the_service_where_the_body_is_too_large_to_look_into(exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        body = {"messages": "x" * 1_000_000, "model": "nope"}
        assert (await user.send(CHAT, body, headers={"X-Ptolemy-Service": "demo"})).status == 200
        unknown = await user.send(CHAT, DEMO, headers={"X-Ptolemy-Service": "nope"})
        assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
        assert len(demo.requests) == 1

    exchange(steps)


@pytest.mark.parametrize("alias", ["default", "gpt-4o-mini"])
def test_an_alias_is_a_name_of_a_service(exchange: Any, alias: str) -> None:
    assert exchange(lambda user, _: user.chat(alias)).status == 200


def test_websockets_are_refused(exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        nonce = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": nonce, "Sec-WebSocket-Version": "13"}
        answer = await user.send("/m/demo/v1/realtime", headers=upgrade)
        assert (answer.status, answer.error["code"]) == (400, "no_websocket")
        assert not demo.requests

    exchange(steps)


def test_large_headers_are_refused(exchange: Any) -> None:
    async def steps(user: Any, demo: Any) -> None:
        answer = await user.send(CHAT, DEMO, headers={f"X-{number}": "x" * 4000 for number in range(9)})
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert not demo.requests

    exchange(steps)


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(gateway: Any, exchange: Any) -> None:
    async def steps(_: Any, demo: Any) -> bytes:
        text = f'POST {CHAT} HTTP/1.1\r\n{HEAD}Content-Length: 67108865\r\n\r\n{{"model":"demo","x":"{"x" * 300_000}'
        answer = await asyncio.to_thread(raw, gateway, text.encode())
        assert not demo.requests
        return answer

    answer = exchange(steps)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"more than 67108864 bytes" in answer


SMUGGLED = b"GET /slots HTTP/1.1\r\nHost: gateway\r\n\r\n"
BODY = b'{"model":"demo"}'


@pytest.mark.parametrize(
    ("lengths", "body"),
    [
        (b"Content-Length: 16\r\nContent-Length: 3\r\n", BODY),
        (b"Content-Length: 16\r\nTransfer-Encoding: chunked\r\n", b"10\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked, identity\r\n", b"10\r\n" + BODY + b"\r\n0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: xchunked\r\n", BODY + SMUGGLED),
        (b"Content-Length: -1\r\n", BODY),
        (b"Content-Length : 16\r\n", BODY),
    ],
)
def test_no_second_request_is_smuggled_in(gateway: Any, exchange: Any, lengths: bytes, body: bytes) -> None:
    async def steps(_: Any, demo: Any) -> list[str]:
        text = f"POST {CHAT} HTTP/1.1\r\n{HEAD}".encode() + lengths + b"\r\n" + body
        await asyncio.to_thread(raw, gateway, text)
        for request in demo.requests:
            names = [name.lower() for name in request["headers"]]
            assert not {"content-length", "transfer-encoding"} <= set(names), "the server would have to choose"
        return [request["path"] for request in demo.requests]

    assert exchange(steps) in ([], [CHAT])


def test_a_client_that_sends_its_headers_drop_by_drop_is_cut_off(short_gateway: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", short_gateway.port), timeout=10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: g")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_and_weak_ciphers_are_refused(short_gateway: Any) -> None:
    def agreed(**settings: Any) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = settings.get("newest", ssl.TLSVersion.TLSv1_2)
        context.set_ciphers(settings.get("ciphers", "ALL:@SECLEVEL=0"))
        context.set_alpn_protocols(["h2", "http/1.1"])
        plain = socket.create_connection(("127.0.0.1", short_gateway.port), timeout=5)
        with context.wrap_socket(plain) as wrapped:
            return wrapped.selected_alpn_protocol()

    assert agreed() == "h2"
    with pytest.raises(ssl.SSLError):
        agreed(newest=ssl.TLSVersion.TLSv1_1)
    with pytest.raises(ssl.SSLError):
        agreed(ciphers="AES128-SHA:AES256-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")  # without forward secrecy, or CBC


def test_http_2_is_spoken(short_gateway: Any, stub: Any) -> None:
    async def scenario() -> tuple[bytes, int]:
        async with stub() as demo:
            short_gateway.add("demo", "a", demo.port)
            settings = f'header = "Authorization: Bearer {API_KEY}"\n'
            command = [
                "curl",
                "-sSk",
                "--http2",
                "-K",
                "-",
                "-d",
                json.dumps(DEMO),
                "-o",
                "/dev/null",
                "-w",
                "%{http_version} %{http_code}",
            ]
            pipe = asyncio.subprocess.PIPE
            curl = await asyncio.create_subprocess_exec(*command, short_gateway.url + CHAT, stdin=pipe, stdout=pipe)
            output, _ = await asyncio.wait_for(curl.communicate(settings.encode()), 20)
            return output, len(demo.requests)

    assert asyncio.run(scenario()) == (b"2 200", 1)

"""The status page at the gateway: for everybody, more for operators, never old numbers as new ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import API_KEY, until
from local_gateway import ROOT
from ptolemy import exporter, keys
from statuses import BOTH, seen

OPERATOR = "sk-operator-0123456789abcdef"


class Exporter:
    """ptolemy-exporter behind a gateway, with a status that says what a test wants."""

    def __init__(self, gateway: Any, directory: Path) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{gateway.status_port}"
        site = {"user": "p", "uid": 1, "status_file": str(directory / "status.json"), "keys_file": str(gateway.directory / "keys.map")}
        (directory / "services.json").write_text(json.dumps({"site": {**site, "operators": ["ops"]}, "services": {}}))
        self.write()

    def write(self, **fields: Any) -> None:
        now = time.time()
        told = {**seen(*BOTH), "time": now, "observed_at": now, **fields}
        users = [{"user": "alice", "requests": 3, "per_minute": 9}]
        for name, content in (("status", told), ("users", {"time": now, "users": users})):
            (self.directory / f"{name}.new").write_text(json.dumps(content))
            (self.directory / f"{name}.new").rename(self.directory / f"{name}.json")

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        command = [
            sys.executable,
            "-m",
            "ptolemy",
            "exporter",
            "--listen",
            self.address,
            "--services",
            str(self.directory / "services.json"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(exporter.__file__).parents[1])}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
            try:
                assert process.stderr and process.stderr.readline().startswith(b"answering")
                yield process.pid
            finally:
                process.kill()


@pytest.fixture
def ptolemyd(gateway: Any, tmp_path: Path) -> Exporter:
    return Exporter(gateway, tmp_path)


@contextlib.asynccontextmanager
async def operator(gateway: Any) -> AsyncIterator[str]:
    with gateway.key(OPERATOR, user="ops") as key:
        yield key


def test_the_page_is_there_without_a_key_and_lets_nothing_else_run_in_it(gateway: Any, client: Any) -> None:
    async def scenario() -> Any:
        async with client(gateway) as visitor:
            return await visitor.send("/status", key=None), await visitor.send("/status", {}, key=None)

    page, posted = asyncio.run(scenario())
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.body == (ROOT / "roles" / "haproxy" / "files" / "status.html").read_bytes()
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "script-src 'sha256-" in policy and "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert posted.status == 401


def test_where_it_is_switched_off_there_is_no_page(small_gateway: Any, client: Any) -> None:
    async def scenario() -> list[int]:
        async with client(small_gateway) as visitor:
            return [(await visitor.send(path, key=key)).status for path in ("/status", "/status.json") for key in (None, API_KEY)]

    assert asyncio.run(scenario()) == [401, 404, 401, 404]


def test_everybody_sees_services_and_only_operators_see_who_asks(gateway: Any, client: Any, ptolemyd: Exporter) -> None:
    async def scenario() -> None:
        async with client(gateway) as visitor, operator(gateway) as key:
            with ptolemyd.running():
                answers = {who: await visitor.send("/status.json", key=who) for who in (None, API_KEY, key, "sk-wrong-0123456789abcdef")}
        assert {answer.status for answer in answers.values()} == {200}
        views = {who: answer.json["view"] for who, answer in answers.items()}
        assert views == dict.fromkeys(answers, "everybody") | {key: "operators"}
        assert [who for who, answer in answers.items() if b"alice" in answer.body or b"10.0.0.1" in answer.body] == [key]
        assert answers[None].json["headline"]["text"] == "chat answers."
        assert {answer.headers["Cache-Control"] for answer in answers.values()} == {"no-store"}

    asyncio.run(scenario())


def test_an_operators_view_opens_for_no_forged_header_and_is_given_to_nobody_else(gateway: Any, client: Any, ptolemyd: Exporter) -> None:
    forged = {"X-Ptolemy-Key-Hash": keys.fingerprint(OPERATOR), "X-Ptolemy-Operator": "yes"}

    async def scenario() -> None:
        async with client(gateway) as visitor, operator(gateway) as key:
            with ptolemyd.running():
                for _ in range(3):
                    assert (await visitor.send("/status.json", key=key)).json["view"] == "operators"
                    for sender, path in ((None, "/status.json"), (API_KEY, "/status.json"), (None, f"/status.json?key={key}")):
                        assert (await visitor.send(path, key=sender, headers=forged)).json["view"] == "everybody"

    asyncio.run(scenario())


def test_an_operators_key_that_is_revoked_shows_no_more(gateway: Any, client: Any, ptolemyd: Exporter) -> None:
    async def scenario() -> None:
        async with client(gateway) as visitor:
            with ptolemyd.running():
                async with operator(gateway) as key:
                    assert (await visitor.send("/status.json", key=key)).json["view"] == "operators"
                assert (await visitor.send("/status.json", key=key)).json["view"] == "everybody"

    asyncio.run(scenario())


def test_while_ptolemyd_is_away_the_status_is_unknown_and_requests_are_served(
    gateway: Any, stub: Any, client: Any, ptolemyd: Exporter
) -> None:
    async def scenario() -> None:
        async with stub() as demo, client(gateway) as visitor:
            gateway.add("demo", "a", demo.port)
            with ptolemyd.running():
                assert (await visitor.send("/status.json", key=None)).status == 200
                ptolemyd.write(time=time.time() - 600)
                await asyncio.sleep(2.2)  # for what HAProxy and the exporter keep for a second each
                silent = await visitor.send("/status.json", key=None)
            away = await visitor.send("/status.json", key=None)
            for answer in (silent, away):
                assert (answer.status, answer.error["code"]) == (503, "status_unknown")
                assert answer.headers["Cache-Control"] == "no-store"
            assert (await visitor.send("/status", key=None)).status == 200
            assert (await visitor.chat()).status == 200

    asyncio.run(scenario())


def test_a_crowd_of_visitors_is_one_for_ptolemyd(gateway: Any, client: Any) -> None:
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        body = json.dumps({"version": 1, "filling": "x" * 200_000}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: max-age=1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", gateway.status_port)
        async with server, client(gateway) as visitor:
            began = time.monotonic()
            first = await visitor.send("/status.json", key=None)
            # Whatever a browser says of caches, or writes behind a question mark.
            headers = {"Cache-Control": "no-cache", "Pragma": "no-cache", "Cookie": "a=b"}
            rest = [await visitor.send(f"/status.json?{number}", key=None, headers=headers) for number in range(200)]
            assert {len(got.body) for got in (first, *rest)} == {len(first.body)}
            assert len(asked) <= 2 + (time.monotonic() - began), f"{len(asked)} of 201"
        assert not any(word in head.lower() for head in asked for word in (b"cookie", b"authorization", b"x-ptolemy"))

    asyncio.run(scenario())


def test_a_page_load_costs_the_gateway_less_than_a_millisecond_of_cpu(gateway: Any, client: Any, ptolemyd: Exporter) -> None:
    ticks = os.sysconf("SC_CLK_TCK")

    def spent(process: int) -> float:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        return 1000 * (int(user) + int(system)) / ticks

    async def scenario(loads: int = 1000) -> None:
        async with client(gateway) as visitor:
            with ptolemyd.running() as exporting:
                processes = (int(gateway.worker()), exporting)
                before = sum(map(spent, processes))
                for _ in range(loads):
                    page, document = await visitor.send("/status", key=None), await visitor.send("/status.json", key=None)
                    assert page.status == document.status == 200
                each = (sum(map(spent, processes)) - before) / loads
        print(f"a load of the page and of its numbers: {each:.2f} ms of CPU of HAProxy and the exporter")
        assert each < 1

    asyncio.run(scenario())


def test_a_ptolemyd_that_hangs_holds_nobody_for_long(gateway: Any, stub: Any, client: Any) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(1 << 20)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(hang, "127.0.0.1", gateway.status_port)
        async with server, stub() as demo, client(gateway) as visitor:
            gateway.add("demo", "a", demo.port)
            began = time.monotonic()
            waiting = [asyncio.create_task(visitor.send("/status.json", key=None)) for _ in range(40)]
            assert (await visitor.chat()).status == 200
            assert time.monotonic() - began < 2
            answers = [await task for task in waiting]
            assert {answer.status for answer in answers} <= {503, 504}
            assert {answer.error["code"] for answer in answers} == {"status_unknown"}
            assert time.monotonic() - began < 8
            server.close()

    asyncio.run(scenario())


def test_a_visitor_is_not_logged_and_a_chat_is(gateway: Any, stub: Any, client: Any) -> None:
    async def scenario() -> None:
        async with stub() as demo, client(gateway) as visitor:
            gateway.add("demo", "a", demo.port)
            gateway.log_lines()
            for path in ("/status", "/status.json"):
                await visitor.send(path, key=None)
            await visitor.chat()
            lines: list[str] = []
            await until(
                lambda: lines.extend(gateway.log_lines()) or any('"service":"demo"' in line for line in lines), "a line of the chat"
            )
            assert not [line for line in lines if "/status" in line.replace("\\/", "/")]

    asyncio.run(scenario())

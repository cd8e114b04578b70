"""An HTTP client that notes when bytes came and looks at them only afterwards, so that it disturbs what it measures as little as it can."""

from __future__ import annotations

import asyncio
import bisect
import re
import time
from dataclasses import dataclass, field

from proxies import Proxy

_MARK = re.compile(rb"(\d+)/(\d+)/(\d+)/(\d+)")
_END = b"0\r\n\r\n"  # of a chunked body


@dataclass(frozen=True)
class Token:
    """One mark of a stub server, see stub.lua. Times are nanoseconds of CLOCK_MONOTONIC.

    Attributes:
        tag: of the request.
        received: the stub server had the whole request.
        started: it had a slot.
        sent: the stub server wrote this token.
        arrived: this client had read it.
    """

    tag: int
    received: int
    started: int
    sent: int
    arrived: int


@dataclass
class Answer:
    """What came back, as it came.

    Attributes:
        sent: when the request was written, in nanoseconds.
        pieces: when something was read, and what.
        error: what went wrong, if the connection did.
    """

    sent: int
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    error: str = ""

    @property
    def status(self) -> int:
        """The HTTP status; 0 where there is none."""
        head = self.pieces[0][1][:12] if self.pieces else b""
        return int(head[9:12]) if head.startswith(b"HTTP/1.") and head[9:12].isdigit() else 0

    @property
    def queued(self) -> int:
        """Nanoseconds that it waited in the gateway's queues, as the gateway says; 0 where none says it."""
        found = re.search(rb"\r\nx-ptolemy-queue-ms: *(\d+)", self.pieces[0][1], re.IGNORECASE) if self.pieces else None
        return int(found[1]) * 10**6 if found else 0

    def tokens(self) -> list[Token]:
        """The marks in the body, in order."""
        raw = b"".join(data for _, data in self.pieces)
        ends, total = [], 0
        for _, data in self.pieces:
            total += len(data)
            ends.append(total)
        body, origins = _body(raw)
        starts = [start for start, _ in origins]
        found = []
        for mark in _MARK.finditer(body):
            start, origin = origins[bisect.bisect_right(starts, mark.end() - 1) - 1]
            piece = bisect.bisect_right(ends, origin + mark.end() - 1 - start)
            tag, received, started, sent = (int(value) for value in mark.groups())
            found.append(Token(tag, received, started, sent, self.pieces[piece][0]))
        return found


def _body(raw: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """A body without its framing, and where each part of it was: (offset in the body, offset in ``raw``)."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    at = len(head) + 4
    if b"transfer-encoding: chunked" not in head.lower():
        return rest, [(0, at)]
    parts, origins, total = [], [], 0
    while (line := raw.find(b"\r\n", at)) > 0:
        size = int(raw[at:line].split(b";")[0] or b"0", 16)
        if not size:
            break
        origins.append((total, line + 2))
        parts.append(raw[line + 2 : line + 2 + size])
        total += size
        at = line + 2 + size + 2
    return b"".join(parts), origins or [(0, at)]


class Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.done: asyncio.Future[Answer] | None = None
        self._tail, self._missing = b"", -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request. The result comes when its whole answer is there, or the connection broke."""
        self.done = asyncio.get_running_loop().create_future()
        self._tail, self._missing = b"", -1
        if self.transport:
            self.answer = Answer(time.monotonic_ns())
            self.transport.write(request)
        else:
            self.answer = Answer(time.monotonic_ns(), error="not connected")
            self.done.set_result(self.answer)
        return self.done

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.answer or not self.done or self.done.done():
            return
        first = not self.answer.pieces
        self.answer.pieces.append((now, data))
        if first:
            self._missing = _length_missing(data)
        elif self._missing > 0:
            self._missing -= len(data)
        self._tail = (self._tail + data)[-len(_END) :]
        if self._missing == 0 or (self._missing < 0 and self._tail == _END):
            if b"\r\nconnection: close" in self.answer.pieces[0][1].lower() and self.transport:
                self.transport.abort()
                self.transport = None
            self.done.set_result(self.answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.answer and self.done and not self.done.done():
            # A body that ends with its connection is whole; whether it has all its tokens is seen later.
            self.answer.error = "" if self.answer.pieces and not error else f"connection lost: {error}"
            self.done.set_result(self.answer)


def _length_missing(data: bytes) -> int:
    """Bytes of the body that are still to come; -1 where its head does not say. The head is taken to come in one piece."""
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) - len(body) if found else -1


async def connect(port: int, source: str = "127.0.0.1") -> Connection:
    """Open a connection to loopback from one of its addresses."""
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port, local_addr=(source, 0))
    return protocol


def request(proxy: Proxy, body: str, key: str = "", person: str = "") -> bytes:
    """A chat completion as it goes over the wire; for one of Open WebUI's people, if named."""
    named = f"X-OpenWebUI-User-Id: {person}\r\n" if person else ""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {key or proxy.key}\r\n{named}Content-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()

"""The gateway: its models, and one question at a time."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any, Mapping, NamedTuple, Optional

import aiohttp
import orjson
from yarl import URL

from . import __version__
from .errors import BatchError

CONNECT_TIMEOUT = 15.0
UNREACHABLE = 0  # the status of an answer that never came


class Reply(NamedTuple):
    """An answer of the gateway.

    Attributes:
        status: HTTP's, or UNREACHABLE.
        body: the bytes; of UNREACHABLE the reason.
        queue: seconds that it waited in the gateway, where the gateway says so.
        seconds: from the request to the whole answer.
        retry_after: seconds to wait, where the gateway says so.
    """

    status: int
    body: bytes
    queue: Optional[float]
    seconds: float
    retry_after: Optional[float]

    def message(self) -> str:
        """What it says went wrong, in one line."""
        text = self.body.decode(errors="replace").strip()
        try:
            found = json.loads(text)
            error = found.get("error", found)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            pass
        whole = text.encode("utf-8", "replace").decode()  # JSON may hold half a character, and no file may
        return " ".join(whole.split())[:500] or "no explanation"

    def code(self) -> str:
        """OpenAI's code of the error, or empty."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""


class Gateway:
    """A session with an OpenAI-compatible server; ``async with``.

    Args:
        url: with or without ``/v1`` at its end.
        key: the API key; empty: none is sent.
        model: the service that all requests are for; empty: each body says.
        timeout: seconds that one answer may take, queue included.
    """

    def __init__(self, url: str, key: str, model: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        if self.url.endswith("/v1"):
            self.url = self.url[:-3]
        self._headers = {"User-Agent": f"ptolemy-batch/{__version__}", "Content-Type": "application/json", "X-Ptolemy-Tier": "batch"}
        if model:
            # Found by the gateway even where the body is longer than the part of it that is looked into.
            self._headers["X-Ptolemy-Service"] = model
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._urls: dict[str, URL] = {}
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)

    async def __aenter__(self) -> Gateway:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20, socket_factory=_socket)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, path: str, body: Optional[bytes], timeout: Optional[float] = None) -> Reply:
        """POST a body, or GET where there is none. Never raises for what the network does: see ``Reply``."""
        began = time.monotonic()
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT) if timeout else self._timeout
        url = self._urls.get(path) or self._urls.setdefault(path, URL(self.url + path))
        try:
            method = "GET" if body is None else "POST"
            async with self._session.request(method, url, data=body, timeout=limit, allow_redirects=False) as response:
                content = await response.read()
                headers = response.headers
                return Reply(
                    response.status,
                    content,
                    _number(headers, "x-ptolemy-queue-ms", 1000.0),
                    time.monotonic() - began,
                    _number(headers, "retry-after", 1.0),
                )
        except asyncio.TimeoutError:
            return Reply(UNREACHABLE, b"no answer in time", None, time.monotonic() - began, None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Reply(UNREACHABLE, (str(error) or type(error).__name__).encode(), None, time.monotonic() - began, None)

    async def models(self) -> list[dict[str, Any]]:
        """What the gateway serves to this key.

        Raises:
            BatchError: unreachable, a wrong key, or not an OpenAI-compatible server.
        """
        reply = await self.ask("/v1/models", None, timeout=CONNECT_TIMEOUT * 2)
        if reply.status == UNREACHABLE:
            raise BatchError(
                f"{self.url}: the gateway cannot be reached: {reply.message()}. Is the address right (--url)? Are you on the network?"
            )
        check_access(reply, self.url)
        try:
            data = orjson.loads(reply.body)["data"]
            return [dict(model) for model in data if model["id"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BatchError(
                f"{self.url}: /v1/models answered with status {reply.status}, not a list of models: {reply.message()}"
            ) from error

    async def model(self, name: str) -> dict[str, Any]:
        """What the gateway says of one model.

        Raises:
            BatchError: as ``models``, or the model is unknown: then the message lists the known ones.
        """
        models = await self.models()
        known = [str(model["id"]) for model in models]
        if not name and len(models) == 1:
            return models[0]
        for model in models:
            if model["id"] == name:
                return model
        listed = ", ".join(known) or "none"
        raise BatchError(
            f"{self.url}: the model {name!r} is unknown, or your key may not use it. Known to your key: {listed}"
            if name
            else f"name the model with --model. Known to your key: {listed}"
        )


def check_access(reply: Reply, url: str) -> None:
    """Raise a BatchError where the gateway refuses the key itself, or the model: no other request would fare better."""
    if reply.status == 401:
        raise BatchError(
            f"{url}: the key is not accepted: {reply.message()} (see --key-file, PTOLEMY_API_KEY and ~/.config/ptolemy/client.yml)"
        )
    if reply.status == 403:
        raise BatchError(f"{url}: refused: {reply.message()}")
    if reply.status == 404 and reply.code() in {"model_not_found", "unknown_url"}:
        raise BatchError(f"{url}: {reply.message()}")


def _number(headers: Mapping[str, str], name: str, per: float) -> Optional[float]:
    found = headers.get(name)
    try:
        return None if found is None else max(float(found) / per, 0.0)
    except ValueError:
        return None


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket of which the kernel notices that the other side vanished without a word."""
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made

"""Large bodies: which service they go to, and that they arrive as they were sent."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
SMALL, LARGE = 200_000, 15_000_000  # bytes: what a long document and a few photographs make
HEADER = {"X-Ptolemy-Service": "demo"}


def body(size: int, model_first: bool, field: str = "messages") -> bytes:
    model, text = {"model": "demo"}, {field: "x" * size}
    return json.dumps(model | text if model_first else text | model).encode()


async def in_pieces(whole: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(whole), 60_000):
        yield whole[start : start + 60_000]


def send(gateway: Any, stub: Any, client: Any, path: str, data: bytes, chunked: bool, headers: dict[str, str]) -> tuple[Any, list[Any]]:
    async def scenario() -> tuple[Any, list[Any]]:
        async with stub() as demo, client(gateway) as user:
            gateway.add("demo", "a", demo.port)
            length = {} if chunked else {"Content-Length": str(len(data))}
            answer = await user.send(path, in_pieces(data), headers=headers | length, method="POST")
            return answer, demo.requests

    return asyncio.run(scenario())


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("path", "data", "headers"),
    [
        pytest.param(CHAT, body(SMALL, model_first=False), {}, id="200 kB, model last"),
        pytest.param(EMBEDDINGS, body(SMALL, model_first=False, field="input"), {}, id="200 kB, input before model"),
        pytest.param(CHAT, body(LARGE, model_first=True), {}, id="15 MB, model first"),
        pytest.param("/m/demo" + CHAT, body(LARGE, model_first=False), {}, id="15 MB, under /m/"),
        pytest.param(CHAT, body(LARGE, model_first=False), HEADER, id="15 MB, by header"),
        pytest.param("/m/demo" + EMBEDDINGS, body(LARGE, model_first=False, field="input"), {}, id="15 MB of embeddings, under /m/"),
    ],
)
def test_a_large_body_arrives_unchanged(
    gateway: Any, stub: Any, client: Any, path: str, data: bytes, headers: dict[str, str], chunked: bool
) -> None:
    answer, requests = send(gateway, stub, client, path, data, chunked, headers)
    assert answer.status == 200, answer
    ((got_path, got_hash),) = [(request["path"], request["sha256"]) for request in requests]
    assert (got_path, got_hash) == (path.removeprefix("/m/demo"), hashlib.sha256(data).hexdigest())

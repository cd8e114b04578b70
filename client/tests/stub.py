"""A stand-in for the gateway: answers chats at once, keeps to grammars of one label, and writes down every request that it answered.

    python stub.py PORT LOG [--refuse SHARE] [--break SHARE] [--delay SECONDS] [--slots N]

A raw asyncio protocol: it must be faster than what is measured against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from hashlib import blake2b
from typing import Any

KEY = "stub-key"
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
_STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Error", 503: "Unavailable"}


class Stub:
    """What all connections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.log = open(options.log, "ab", buffering=0) if options.log != "-" else None  # noqa: SIM115 - open as long as the stub
        self.random = random.Random(0)
        self.busy = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def models(self) -> dict[str, Any]:
        facts = {"object": "model", "status": "ready", "context_length": 2048, "slots": self.options.slots, "sha256": "5" * 64}
        return {"object": "list", "data": [{"id": "stub", **facts}]}

    def answer(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        """The answer to a chat: a label chosen by the prompt's hash, so that every time it is the same."""
        given = json.loads(body)
        _, named, rest = head.partition(b"\r\nx-ptolemy-service: ")  # goes before the body's model, as at the gateway
        service = rest.split(b"\r\n", 1)[0].decode() if named else given["model"]
        prompt = given["messages"][-1]["content"]
        chance = self.random.random()
        if "POISON" in prompt or chance < self.options.broken:
            return 500, b'{"error":{"message":"it broke"}}'
        if chance < self.options.broken + self.options.refuse:
            return 429, b'{"error":{"message":"too many","code":"rate_limit_exceeded"}}'
        text = self.label(given, prompt)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        if given.get("logprobs"):
            rivals = [{"token": text, "logprob": -0.1}, {"token": "other", "logprob": -3.0}]
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": rivals}]}
        usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
        if self.log:
            self.log.write(json.dumps(prompt).encode() + b"\n")
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "model": service, "choices": [choice], "usage": usage}
        return 200, json.dumps(answer).encode()

    def label(self, given: dict[str, Any], prompt: str) -> str:
        if "grammar" not in given:
            return json.dumps({"amount": len(prompt), "name": prompt[:5]}) if "response_format" in given else prompt.upper()
        names = [json.loads(f'"{name}"') for name in _LITERAL.findall(given["grammar"].splitlines()[0])]
        if "r0" in given["grammar"]:
            return "[]"
        return names[blake2b(prompt.encode()).digest()[0] % len(names)]


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other."""

    def __init__(self, stub: Stub) -> None:
        self.stub, self.data = stub, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            found = head.find(b"content-length:")
            size = int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0
            if len(self.data) < end + 4 + size:
                return
            body, self.data = self.data[end + 4 : end + 4 + size], self.data[end + 4 + size :]
            self.serve(head, body)

    def serve(self, head: bytes, body: bytes) -> None:
        if f"authorization: bearer {KEY}".encode() not in head:
            self.send(401, b'{"error":{"message":"Missing or invalid API key","code":"invalid_api_key"}}')
        elif head.startswith(b"get /v1/models"):
            self.send(200, json.dumps(self.stub.models()).encode())
        elif not head.startswith(b"post /v1/chat/completions"):
            self.send(404, b'{"error":{"message":"Unknown request URL","code":"unknown_url"}}')
        elif self.stub.options.delay:
            task = asyncio.ensure_future(self.later(head, body))
            self.stub.tasks.add(task)
            task.add_done_callback(self.stub.tasks.discard)
        else:
            self.send(*self.stub.answer(head, body))

    async def later(self, head: bytes, body: bytes) -> None:
        """Serve as ``slots`` slots would: those that come when all are busy wait, and are told how long."""
        stub = self.stub
        stub.busy += 1
        waited = stub.options.delay * max(stub.busy - stub.options.slots, 0) / stub.options.slots
        await asyncio.sleep(waited + stub.options.delay)
        stub.busy -= 1
        if not self.transport.is_closing():
            self.send(*stub.answer(head, body), queue=waited)

    def send(self, status: int, body: bytes, queue: float = 0.0) -> None:
        more = "Retry-After: 0\r\n" if status in {429, 503} else ""
        head = f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: application/json\r\nX-Ptolemy-Queue-Ms: {queue * 1000:.0f}\r\n"
        self.transport.write(f"{head}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)


async def serve(options: argparse.Namespace) -> None:
    """Serve until killed; prints the port when it listens."""
    stub = Stub(options)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stub), "127.0.0.1", options.port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("log", help="file for the prompts that were answered, or -")
    parser.add_argument("--refuse", type=float, default=0.0, help="share of requests answered with 429")
    parser.add_argument("--broken", type=float, default=0.0, help="share of requests answered with 500")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that an answer takes")
    parser.add_argument("--slots", type=int, default=64, help="answers at once")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())

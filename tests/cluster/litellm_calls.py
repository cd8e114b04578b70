"""What LiteLLM as a client gets from the gateway, as one JSON object; test_clients.py runs this in LiteLLM's own environment."""

from __future__ import annotations

import asyncio
import json
import os
import sys

reached: set[str] = set()


def note(event: str, found: tuple) -> None:
    """Remember which hosts are looked up or connected to."""
    if event == "socket.getaddrinfo":
        reached.add(str(found[0]))
    elif event == "socket.connect":
        reached.add(str(found[1][0]))


sys.addaudithook(note)  # before the import, which would fetch a price list

import litellm  # noqa: E402
import openai  # noqa: E402

GATEWAY = {"api_base": os.environ["OPENAI_BASE_URL"], "max_retries": 0, "timeout": 300}
CHAT = {**GATEWAY, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
KEY = os.environ["OPENAI_API_KEY"]


async def at_once(count: int) -> list[int]:
    answers = await asyncio.gather(*(litellm.acompletion("openai/demo", **CHAT, api_key=KEY) for _ in range(count)))
    return [answer.usage.completion_tokens for answer in answers]


def error(model: str, key: str) -> list[str]:
    """Name and text of what is raised."""
    try:
        litellm.completion(model, **CHAT, api_key=key)
    except openai.OpenAIError as raised:  # what LiteLLM's own are derived from
        return [type(raised).__name__, str(raised)]
    raise SystemExit(f"{model} was answered")


litellm.suppress_debug_info = True
stream = litellm.completion("openai/demo", **CHAT, api_key=KEY, stream=True)
result = {
    "chat": litellm.completion("openai/demo", **CHAT, api_key=KEY).usage.completion_tokens,
    "streamed": len([piece for piece in stream if piece.choices[0].delta.content]),
    "at_once": asyncio.run(at_once(4)),
    "vectors": [len(row["embedding"]) for row in litellm.embedding("openai/embed", input=["a", "b"], **GATEWAY, api_key=KEY).data],
    "unknown_model": error("openai/gpt-9", KEY),
    "wrong_key": error("openai/demo", "wrong"),
}
print(json.dumps({**result, "reached": sorted(reached)}))

#!/usr/bin/env python3
"""Ask the gateway two questions with the OpenAI SDK, one answered at once and one streamed, and show the answers.

Reads OPENAI_BASE_URL and OPENAI_API_KEY, as `. .lab/env` sets them. The demo model has random weights: its answers are noise.
"""

from __future__ import annotations

import os
import sys
import time

import openai

MODEL = "demo"
TOKENS = 24


def shown(text: str) -> str:
    return repr(text if len(text) <= 90 else text[:90] + "...")


def main() -> int:
    client = openai.OpenAI(timeout=120, max_retries=0)
    print(f"    {client.base_url}  models: {', '.join(sorted(model.id for model in client.models.list()))}", flush=True)

    started = time.monotonic()
    reply = client.chat.completions.create(
        model=MODEL, max_tokens=TOKENS, messages=[{"role": "user", "content": "Which account does a train ticket belong to?"}]
    )
    content = reply.choices[0].message.content or ""
    tokens = reply.usage.completion_tokens if reply.usage else 0
    print(f"    chat      {time.monotonic() - started:.2f} s, {tokens} tokens: {shown(content)}", flush=True)

    started = time.monotonic()
    first = 0.0
    pieces = []
    stream = client.chat.completions.create(
        model=MODEL, max_tokens=TOKENS, stream=True, messages=[{"role": "user", "content": "And a taxi to the station?"}]
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic() - started
            pieces.append(chunk.choices[0].delta.content)
    print(f"    streamed  {time.monotonic() - started:.2f} s, first piece after {first:.2f} s: {shown(''.join(pieces))}", flush=True)

    if not tokens or not pieces:
        print("smoke: an answer was empty", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    missing = [name for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY") if not os.environ.get(name)]
    if missing:
        sys.exit(f"smoke: set {' and '.join(missing)}: . .lab/env")
    try:
        sys.exit(main())
    except openai.OpenAIError as error:
        sys.exit(f"smoke: {type(error).__name__}: {error}")

#!/usr/bin/env python3
"""Ask the gateway two questions with the OpenAI SDK, one answered at once and one streamed; show the answers and check them.

Reads OPENAI_BASE_URL and OPENAI_API_KEY, as `. .lab/env` sets them. docs/demo-model.md says what the demo model knows.
"""

from __future__ import annotations

import os
import sys
import time

import openai

MODEL = "demo"
WHOLE = ("Categorise: DELTA AIR 0062341 BOSTON", "air travel")
STREAMED = ("Categorise: HILLSIDE STATIONERY #1204", "office supplies")


def main() -> int:
    client = openai.OpenAI(timeout=120, max_retries=0)
    print(f"    {client.base_url}  models: {', '.join(sorted(model.id for model in client.models.list()))}", flush=True)

    question, expected = WHOLE
    started = time.monotonic()
    reply = client.chat.completions.create(model=MODEL, temperature=0, messages=[{"role": "user", "content": question}])
    content = reply.choices[0].message.content or ""
    print(f"    chat      {time.monotonic() - started:.2f} s: {question} -> {content}", flush=True)
    right = content == expected

    question, expected = STREAMED
    started = time.monotonic()
    first = 0.0
    pieces = []
    stream = client.chat.completions.create(model=MODEL, temperature=0, stream=True, messages=[{"role": "user", "content": question}])
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic() - started
            pieces.append(chunk.choices[0].delta.content)
    content = "".join(pieces)
    print(f"    streamed  {time.monotonic() - started:.2f} s, first piece after {first:.2f} s: {question} -> {content}", flush=True)

    if not right or content != expected:
        print(f"smoke: expected {WHOLE[1]!r} and {expected!r}", file=sys.stderr)
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

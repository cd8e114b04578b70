"""The bodies of the requests."""

from __future__ import annotations

import json

from proxies import MODEL

# A classification as people send it: about 1 kB. In the OpenAI SDK's order, so that the model stands behind the messages.
SYSTEM = "You sort descriptions of accounting entries into categories. Answer with the name of one category and nothing else. " * 4
ENTRY = "Invoice 2026-1187, office chairs and two desk lamps for the reading room of the faculty library, delivered in October. " * 3


def chat(tag: int, prefill: float, step: float, tokens: int, stream: bool) -> str:
    """A chat completion that tells the stub servers what to do; see stub.lua.

    Args:
        tag: what the answer must repeat.
        prefill: silent seconds.
        step: seconds between two tokens.
        tokens: how many.
        stream: token by token.
    """
    wish = f"tag={tag} prefill={prefill:g} step={step:g} tokens={tokens}"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{ENTRY}{wish}"}]
    return json.dumps({"messages": messages, "model": MODEL, "temperature": 0, "max_tokens": tokens, "stream": stream})

"""What is asked: prompts of an exact number of tokens, made of words that are one token each, and how many tokens come back."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

# Tokens of the template (models.py) around the words: begin of text; a message's header and end; the header of the answer.
BEGIN, AROUND, ANSWER = 1, 5, 4


@dataclass(frozen=True)
class Load:
    """One kind of request.

    Attributes:
        shared: tokens that all prompts begin with.
        own: tokens after them, different in each request.
        out: tokens of an answer.
        streamed: how it is asked for.
        context: tokens that a slot must hold.
        turns: requests of one conversation, each with all that came before it, a made-up answer of ``out`` tokens and
            ``more`` tokens of a new question.
        more: see there.
        pause: seconds on average that somebody reads before the next turn; then fewer requests are in flight.
        people: how many there are for each slot.
        words: what it is.
    """

    shared: int
    own: int
    out: int
    streamed: bool
    context: int
    words: str
    turns: int = 1
    more: int = 0
    pause: float = 0.0
    people: float = 1.0


LOADS: Mapping[str, Load] = {
    "classify": Load(1500, 60, 16, False, 2048, "classification: 1,500 tokens shared + 60 own in, 16 out"),
    "short": Load(100, 60, 16, False, 512, "short classification: 100 tokens shared + 60 own in, 16 out"),
    "chat": Load(0, 400, 128, True, 1024, "chat: 400 tokens in, 128 out, streamed"),
    "long": Load(0, 8192, 256, True, 9216, "long context: 8,192 tokens in, 256 out, streamed"),
    "talk": Load(0, 400, 64, True, 2048, "conversations of 6 turns: 400 to 1,270 tokens in, 64 out, streamed", 6, 100, pause=5.0),
    "talk-shared": Load(
        500,
        400,
        64,
        True,
        2048,
        "conversations of 6 turns with one system prompt: 500 tokens of it, and 400 to 1,270 more in, 64 out, streamed",
        turns=6,
        more=100,
        pause=5.0,
    ),
}


def single_words(vocabulary: Path) -> list[str]:
    """Words that are one token of Llama 3's tokenizer, alone and after a space."""
    tokens = gguf.GGUFReader(vocabulary).fields["tokenizer.ggml.tokens"]
    known = {bytes(tokens.parts[place]).decode(errors="replace") for place in tokens.data}
    return sorted(word for word in known if re.fullmatch("[a-z]{3,9}", word) and f"\u0120{word}" in known)


class Prompts:
    """The requests of one load. Two of the same seed are the same."""

    def __init__(self, load: Load, words: Sequence[str], model: str, seed: int = 1) -> None:
        self._load, self._words, self._model = load, words, model
        self._chance = random.Random(seed)
        self._prefix = [self._message("system", load.shared - BEGIN - 2 * AROUND + 1)] if load.shared else []
        self._talks: dict[int, list[dict[str, str]]] = {}
        self._lengths: dict[int, int] = {}

    def next(self, worker: int, out: int) -> tuple[str, int]:
        """The body of a worker's next request, and how many tokens its prompt has."""
        load = self._load
        if load.turns > 1 and 0 < len(self._talks.get(worker, [])) < 2 * load.turns - 1:
            talk = self._talks[worker]
            talk += [self._message("assistant", load.out), self._message("user", load.more)]
            self._lengths[worker] += load.out + load.more + 2 * AROUND
        else:
            talk = self._talks[worker] = [*self._prefix, self._message("user", self._own())]
            self._lengths[worker] = load.shared + load.own
        fields = {"model": self._model, "stream": load.streamed, "max_tokens": out, "messages": talk}
        # A classification wants the likeliest answer; people chat with the defaults.
        more = {"stream_options": {"include_usage": True}} if load.streamed else {"temperature": 0}
        return json.dumps(fields | more), self._lengths[worker]

    def _own(self) -> int:
        """Words of the first question: the headers around it count as what is shared, if anything is."""
        load = self._load
        return load.own - ANSWER - (1 if load.shared else BEGIN + AROUND)

    def _message(self, role: str, words: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(self._chance.choices(self._words, k=words))}

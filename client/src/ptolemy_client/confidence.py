"""Confidence out of log-probabilities.

llama-server (measured with b11312) reports the probabilities of the model itself, before its grammar takes tokens away. So at each step
at which several labels are still possible, the probability of going on to the label that was given is divided by that of going on to any
label, among the TOP most probable tokens that the server reports; the product over these steps is the confidence. A token that the
grammar forced although it is not among those counts with its bare probability: the model wanted to say something else, and the
confidence is close to 0.
"""

from __future__ import annotations

import math
from typing import Any, Mapping, Optional, Sequence

TOP = 20  # alternatives asked for at each step


def of_label(steps: Sequence[Mapping[str, Any]], names: Sequence[bytes], given: str) -> Optional[float]:
    """The probability of a label under the constraint that the answer is one of the names.

    Args:
        steps: OpenAI's ``logprobs.content``; the end of the answer may be among them, as an empty token.
        names: the labels, in UTF-8.
        given: the one that was answered.

    Returns:
        Between 0 and 1; None where the server sent no probabilities.
    """
    label, before, total = given.encode(), b"", 0.0
    for step in steps:
        possible = [name for name in names if name.startswith(before)]
        if possible == [label]:
            break  # decided
        chosen = _text(step)
        to_any = to_label = 0.0
        reported = False
        for other in step.get("top_logprobs") or ():
            token = _text(other)
            found = _leads(possible, before, token)
            if found:
                probability = math.exp(other["logprob"])
                to_any += probability
                if token == chosen or found == [label]:
                    to_label += probability
                reported = reported or token == chosen
        total += math.log(to_label / to_any) if reported else step["logprob"]
        before += chosen
    return min(math.exp(total), 1.0) if steps else None


def of_answer(steps: Sequence[Mapping[str, Any]]) -> Optional[float]:
    """The probability of a whole answer in the model's own view, without any constraint; None where there are no probabilities."""
    return math.exp(sum(step["logprob"] for step in steps)) if steps else None


def _text(step: Mapping[str, Any]) -> bytes:
    # A token may be half a letter: only its bytes tell.
    found = step.get("bytes")
    return bytes(found) if found is not None else str(step["token"]).encode()


def _leads(names: Sequence[bytes], before: bytes, token: bytes) -> list[bytes]:
    """The names that are possible behind a token; the empty one ends the answer."""
    text = before + token
    return [name for name in names if (name.startswith(text) if token else name == text)]

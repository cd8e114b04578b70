"""Confidence out of log-probabilities.

llama-server reports the probabilities of the model itself, before its grammar removes tokens. So at each step the chosen token's
probability is divided by that of all tokens (among the most probable ones that the server reports) which the labels allow there: what is
left is the probability under the constraint. The product over the steps is the probability of the label.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Optional, Sequence

TOP = 20  # alternatives asked for at each step


def product(tokens: Sequence[dict[str, Any]], allowed: Optional[Callable[[str, str], bool]] = None) -> Optional[float]:
    """The probability of an answer.

    Args:
        tokens: OpenAI's ``logprobs.content``.
        allowed: whether a token may follow the text before it; None: all may.

    Returns:
        Between 0 and 1; None where the server sent no probabilities.
    """
    total, before = 0.0, ""
    counted = False
    for step in tokens:
        token, logprob = step.get("token"), step.get("logprob")
        if not isinstance(token, str) or not isinstance(logprob, (int, float)):
            return None
        if not token:
            continue  # the end of the answer
        counted = True
        if allowed is None:
            total += logprob
        else:
            rivals = [
                other["logprob"]
                for other in step.get("top_logprobs") or []
                if other["token"] and other["token"] != token and allowed(before, other["token"])
            ]
            most = max([logprob, *rivals])
            total += logprob - most - math.log(sum(math.exp(value - most) for value in [logprob, *rivals]))
        before += token
    return math.exp(total) if counted else None


def continues(names: Sequence[str]) -> Callable[[str, str], bool]:
    """``allowed`` of ``product`` for answers that are one of the names."""

    def allowed(before: str, token: str) -> bool:
        text = before + token
        return any(name.startswith(text) for name in names)

    return allowed

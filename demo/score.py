"""Ask a service about held-out rows, and count the right answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, Sequence

import aiohttp

from demo.conversations import question
from demo.descriptions import Row

TIMEOUT = aiohttp.ClientTimeout(total=300)
MOST_TOKENS = 16  # of an answer; the longest label has three

Body = Mapping[str, Any]


@dataclass
class Score:
    """What became of the rows.

    Attributes:
        answers: each row with what the service answered.
    """

    answers: list[tuple[Row, str]] = field(default_factory=list)

    def accuracy(self, seen: bool | None = None) -> float:
        """The share of right answers: of all rows, or of those whose vendors occur in training (or don't)."""
        found = [answer == row.label for row, answer in self.answers if seen is None or row.seen is seen]
        return sum(found) / len(found)

    def wrong(self) -> list[str]:
        """The wrong answers, for a reader."""
        return [f"{row.text!r}: {answer!r}, not {row.label!r}" for row, answer in self.answers if answer != row.label]


def plain(row: Row) -> Body:
    """The question as people ask it."""
    return {"messages": question(row)}


def whole(answer: str) -> str:
    """An answer that is the label itself."""
    return answer


async def ask(
    base_url: str,
    headers: Mapping[str, str],
    model: str,
    rows: Sequence[Row],
    body: Callable[[Row], Body] = plain,
    read: Callable[[str], str] = whole,
    clients: int = 16,
) -> Score:
    """Ask about every row, greedily, ``clients`` at a time.

    Args:
        base_url: with /v1.
        headers: with the key, where one is needed.
        model: the service.
        rows: what to ask about.
        body: makes a row's request.
        read: finds the label in an answer.
        clients: requests at a time.

    Raises:
        aiohttp.ClientError: a request failed.
    """
    score = Score()

    async def work(session: aiohttp.ClientSession, todo: Iterable[Row]) -> None:
        for row in todo:
            request = {"model": model, "temperature": 0, "max_tokens": MOST_TOKENS, **body(row)}
            async with session.post(f"{base_url}/chat/completions", json=request) as answer:
                answer.raise_for_status()
                content = (await answer.json())["choices"][0]["message"]["content"]
            score.answers.append((row, read(content)))

    async with aiohttp.ClientSession(headers=headers, timeout=TIMEOUT) as session:
        todo = iter(rows)  # shared: each client takes the next row
        await asyncio.gather(*(work(session, todo) for _ in range(clients)))
    return score

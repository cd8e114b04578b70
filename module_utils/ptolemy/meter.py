"""What llama-servers count themselves, asked of their /metrics: tokens, and the time to the first one.

Each is asked every few seconds, a few at a time and with a timeout, away from the control loop: a server that is slow to answer delays
nothing but its own numbers. The counts are for the status page, nobody decides by them.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping

from .asking import body_of
from .keys import backend_key
from .trends import Tokens, Trends

EVERY = 10.0  # seconds
AT_ONCE = 8
MOST_BYTES = 65536  # of an answer
_NAMES = {
    "llamacpp:tokens_predicted_total": "generated",
    "llamacpp:prompt_tokens_total": "read",
    "llamacpp:prompt_seconds_total": "read_seconds",
}


@dataclass(frozen=True)
class Target:
    """A llama-server to ask.

    Attributes:
        service: which it serves.
        server: HAProxy's name for it; a restarted one has another.
        address: host and port.
    """

    service: str
    server: str
    address: str


class Meter:
    """Asks all llama-servers every ``EVERY`` seconds.

    Args:
        key_file: holds the site's backend key, and is read before each round; without a key nothing is asked.
        ask: returns the counts of a server, or None where it gives no answer.
    """

    def __init__(self, key_file: str, ask: Callable[[Target, str], Tokens | None] | None = None) -> None:
        self._key_file = key_file
        self._ask = ask or fetch
        self._pool = ThreadPoolExecutor(AT_ONCE, "meter")
        self._known: dict[Target, Tokens] = {}
        self._asked: dict[Target, Future[Tokens | None]] = {}
        self._next = 0.0

    def turn(self, seen: Mapping[str, Any], trends: Trends, now: float) -> None:
        """Note the answers that have come, and ask again where it is time. Never waits.

        Args:
            seen: the daemon's status.
            trends: where the answers are noted.
            now: Unix time.
        """
        for target in [target for target, answer in self._asked.items() if answer.done()]:
            counts = self._asked.pop(target).result()
            if counts is not None:
                self._note(target, counts, trends, now)
        # A round that has not ended is waited for, so that asking can never pile up.
        if now < self._next or self._asked:
            return
        self._next = now + EVERY
        secret = _read(self._key_file)
        wanted = set(targets(seen)) if secret else set()
        self._known = {target: counts for target, counts in self._known.items() if target in wanted}
        self._asked = {target: self._pool.submit(self._ask, target, backend_key(target.service, secret)) for target in wanted}

    def close(self) -> None:
        """Ask nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _note(self, target: Target, counts: Tokens, trends: Trends, now: float) -> None:
        last, self._known[target] = self._known.get(target), counts
        if last is None:
            return
        if counts.generated < last.generated or counts.read < last.read:
            last = Tokens()  # it was started again, and counts from 0
        more = Tokens(counts.generated - last.generated, counts.read - last.read, counts.read_seconds - last.read_seconds)
        trends.of(target.service).count(now, more)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def targets(seen: Mapping[str, Any]) -> Iterator[Target]:
    """The servers of a status that may be asked."""
    for row in seen["services"]:
        for server in row["servers"]:
            if server["up"]:
                yield Target(row["service"], server["name"], server["address"])


def fetch(target: Target, key: str) -> Tokens | None:
    """The counts of one llama-server; None where it gives no answer, or none that can be read."""
    body = body_of(target.address, "/metrics", MOST_BYTES, {"Authorization": f"Bearer {key}"})
    try:
        return None if body is None else parse(body.decode(errors="replace"))
    except ValueError:
        return None


def parse(text: str) -> Tokens:
    """Read llama-server's metrics.

    Raises:
        ValueError: a count is missing, or is no number.
    """
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in _NAMES:
            found[_NAMES[name]] = float(value)
    if len(found) != len(_NAMES):
        raise ValueError("llama-server's metrics lack a count")
    return Tokens(**found)

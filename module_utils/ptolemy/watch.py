"""The exporter's memory: it reads what the daemon writes, keeps the trends of the last hour, and has the status page's document ready.

Visitors get bytes that were made once for all of them. Who is an operator is decided here, by the same file of keys that HAProxy has:
HAProxy puts the hash of the caller's key into a header, and that is worth something only if it is an operator's. Whoever does not know
it cannot forge it, also not by asking the exporter's own port.
"""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from typing import Any, Callable, Mapping

from . import config, keys, page, scrape, status
from .errors import PtolemyError
from .files import stamp_of
from .meter import Meter
from .trends import Trends
from .usage import Spending

KEY_HEADER = "x-ptolemy-key-hash"  # set by HAProxy, see roles/haproxy
EVERY = 1.0  # seconds between two looks at the daemon's file
OLD = 60.0  # seconds after which nobody knows any more who asks how much


class Watch:
    """Follows the daemon. All methods may be called from any thread.

    Args:
        services_file: names the other files, and the operators; read anew where it changed.
        key_file: holds the site's backend key, to ask llama-servers for their counts; there may be none.
        tell: writes a line into the journal, for ``ptolemy usage``.
    """

    def __init__(self, services_file: str, key_file: str = "", tell: Callable[[str], None] = partial(print, flush=True)) -> None:
        self._services_file = services_file
        self._site = config.load(services_file).site
        self._site_stamp = stamp_of(services_file)
        self._lock = threading.Lock()
        self._trends = Trends()
        self._meter = Meter(key_file)
        self._spending, self._tell = Spending(time.time()), tell
        self._seen_at = 0.0
        self._made: dict[bool, tuple[float, bytes]] = {}
        self._operators: tuple[tuple[Any, ...], Mapping[str, int]] = ((), {})

    def run(self, stop: threading.Event) -> None:
        """Look once a second until told to stop."""
        while not stop.wait(EVERY):
            self.turn(time.time())
        self._meter.close()
        self._account(time.time(), last=True)

    def turn(self, now: float) -> None:
        """One look. A status that cannot be read, or that was read before, teaches nothing."""
        with self._lock:
            try:
                seen = status.read(self._site.status_file)
                if seen["time"] != self._seen_at:
                    self._trends.add(seen)
                    self._seen_at = seen["time"]
                self._meter.turn(seen, self._trends, now)
            except (PtolemyError, KeyError, TypeError, ValueError, AttributeError):
                return  # of another version, perhaps: the next one may be right
            self._account(now)

    def _account(self, now: float, last: bool = False) -> None:
        for line in self._spending.lines(self._trends, now, last):
            self._tell(line)

    def document(self, key_hash: str, now: float) -> tuple[bytes, bool]:
        """The document of the status page, as JSON.

        Args:
            key_hash: of the caller's key; empty for none.
            now: Unix time.

        Returns:
            The document, and whether it is one for operators only.

        Raises:
            PtolemyError: the daemon has said nothing for so long that nobody knows how things are.
        """
        with self._lock:
            self._reload()
            operator = self._is_operator(key_hash, now)
            made_at, made = self._made.get(operator, (0.0, b""))
            if 0 <= now - made_at < EVERY:
                return made, operator
            seen = self._fresh(now)
            shown = page.document(seen, self._trends, now)
            if operator:
                shown = page.for_operators(shown, seen, users(self._site.users_file, now))
            made = json.dumps(shown, separators=(",", ":")).encode()
            self._made[operator] = (now, made)
            return made, operator

    def targets(self, service: str, now: float) -> list[dict[str, Any]] | None:
        """The llama-servers of a service for Prometheus, None where there is no such service. Raises PtolemyError as ``document``."""
        with self._lock:
            self._reload()
            return scrape.targets(self._fresh(now), service, self._site.port_first)

    def _fresh(self, now: float) -> dict[str, Any]:
        seen = status.read(self._site.status_file)
        if now - seen["time"] > status.DEAD_AFTER:
            raise PtolemyError(f"ptolemyd has said nothing for {page.span(now - seen['time'])}")
        return seen

    def _is_operator(self, key_hash: str, now: float) -> bool:
        if not key_hash or not self._site.operators:
            return False
        stamp = (stamp_of(self._site.keys_file), self._site.operators)
        if stamp != self._operators[0]:
            try:
                known = keys.load(self._site.keys_file)
            except PtolemyError:
                known = []  # whoever cannot be checked is no operator
            self._operators = (stamp, {key.sha256: key.expires for key in known if key.user in self._site.operators})
        expires = self._operators[1].get(key_hash)
        return expires is not None and not 0 < expires <= now

    def _reload(self) -> None:
        stamp = stamp_of(self._services_file)
        if stamp != self._site_stamp:
            try:
                self._site = config.load(self._services_file).site
            except PtolemyError:
                return  # the daemon says so, and the last good one stays
            self._site_stamp = stamp


def users(path: str, now: float) -> list[dict[str, Any]] | None:
    """Who asks how much, as the daemon last wrote it to ``path``; None where that is old or cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            written = json.load(file)
        return list(written["users"]) if now - written["time"] < OLD else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Who used how much, day by day.

Two kinds of lines are added up, and both are in the gateway's journal, which has neither prompts nor keys. HAProxy writes one for each
request: who, which service, how long. The exporter writes one a service every ``SPAN`` seconds: the GPU time of its replicas, as Slurm
ran them, and the tokens that its llama-servers counted. GPU time and tokens are known by service alone: those of a day are shared among
its users in proportion to the time that their requests had a slot. So a service that ran all day for one request is that user's.
"""

from __future__ import annotations

import json
import time
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Callable, Iterable, Iterator, Mapping

from .trends import MINUTE, Trends

SPAN = 300.0  # seconds
MINUTES = int(SPAN / MINUTE)
NOTHING = "-"  # what HAProxy writes for a variable that is not set


@dataclass(frozen=True)
class Use:
    """A row: what a user asked of a service in one tier on one day. Of a service that nobody used, ``user`` and ``tier`` are empty.

    Attributes:
        day: as 2026-11-25, in the gateway's time zone.
        requests: that were answered.
        failed: that got an error, of the client's or of the server's making, or were broken off.
        bytes_in, bytes_out: of HTTP.
        slot_seconds: that the requests had a slot, without any queue.
        gpu_hours: of the service's replicas, this user's share.
        tokens_read: of prompts that were computed, without those found in a cache; this user's share.
        tokens_generated: of answers; this user's share.
    """

    day: str
    service: str
    user: str
    tier: str
    requests: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    slot_seconds: float = 0.0
    gpu_hours: float = 0.0
    tokens_read: float = 0.0
    tokens_generated: float = 0.0


HEADER = tuple(field.name for field in fields(Use))
KEY, COUNTS, SHARES = HEADER[:4], HEADER[4:8], HEADER[8:]


@dataclass(frozen=True)
class Spent:
    """What a service's replicas did."""

    gpu_seconds: float = 0.0
    read: float = 0.0
    generated: float = 0.0


class Tally:
    """Adds lines of the journal up.

    Args:
        day_of: the day of a Unix time.
    """

    def __init__(self, day_of: Callable[[float], str] = lambda at: time.strftime("%Y-%m-%d", time.localtime(at))) -> None:
        self._day_of = day_of
        self._uses: dict[tuple[str, str, str, str], Use] = {}
        self._spent: dict[tuple[str, str], Spent] = {}

    def add(self, at: float, message: str) -> None:
        """Add a line; one that is of neither kind says nothing.

        Args:
            at: Unix time at which it was written.
            message: the line.
        """
        if not message.startswith("{"):
            return
        try:
            line = json.loads(message)
            if "request" in line:
                self._add_request(at, line)
            elif "spent" in line:
                self._add_spent(line)
        except (ValueError, KeyError, TypeError):
            return  # of another version, or cut off

    def _add_request(self, at: float, line: Mapping[str, Any]) -> None:
        user, service = line["user"], line["service"]
        if NOTHING in (user, service):
            return  # without a valid key, or of no service, as a list of models
        key = (self._day_of(at), service, user, line["tier"])
        good = 200 <= int(line["status"]) < 300 and line["flags"].startswith("-")
        more = Use(*key, int(good), int(not good), int(line["bytes_in"]), int(line["bytes_out"]), slot_seconds(line))
        old = self._uses.get(key)
        self._uses[key] = _plus(old, more) if old else more

    def _add_spent(self, line: Mapping[str, Any]) -> None:
        key = (self._day_of(float(line["from"])), str(line["spent"]))
        old = self._spent.get(key, Spent())
        self._spent[key] = Spent(
            old.gpu_seconds + float(line["gpu_seconds"]), old.read + float(line["read"]), old.generated + float(line["generated"])
        )

    def rows(self) -> list[Use]:
        """All of it, sorted, with what was spent shared among users."""
        slots: dict[tuple[str, str], float] = {}
        for use in self._uses.values():
            slots[use.day, use.service] = slots.get((use.day, use.service), 0.0) + use.slot_seconds
        found = []
        for key, spent in self._spent.items():
            if not slots.get(key) and spent != Spent():
                found.append(_charged(Use(*key, "", ""), spent, 1.0))
        for use in self._uses.values():
            total = slots[use.day, use.service]
            spent = self._spent.get((use.day, use.service), Spent())
            found.append(_charged(use, spent, use.slot_seconds / total if total else 0.0))
        return sorted(found, key=lambda use: astuple(use)[:4])


def slot_seconds(line: Mapping[str, Any]) -> float:
    """How long a request had its slot: all of its time less that in which it was received, queued and connected.

    A batch request passes the gateway twice; ``inner_queue_ms`` is its wait behind the gate. HAProxy writes -1 for what did not come to be.
    """
    if int(line["first_byte_ms"]) < 0:
        return 0.0
    before = [line[name] for name in ("receive_ms", "queue_ms", "inner_queue_ms", "connect_ms")]
    return max(int(line["total_ms"]) - sum(max(int(one), 0) for one in before if one != NOTHING), 0) / 1000.0


def _plus(one: Use, other: Use) -> Use:
    """Both, under the names of the first."""
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in COUNTS + SHARES})


def _charged(use: Use, spent: Spent, share: float) -> Use:
    return replace(
        use,
        gpu_hours=spent.gpu_seconds / 3600.0 * share,
        tokens_read=spent.read * share,
        tokens_generated=spent.generated * share,
    )


def summed(rows: Iterable[Use], by: str) -> list[Use]:
    """Rows added up by one of the columns ``service``, ``user``, ``tier`` and ``day``; the other ones are empty. The largest first."""
    sums: dict[str, Use] = {}
    for row in rows:
        name = getattr(row, by)
        sums[name] = _plus(sums.get(name) or Use(**{**dict.fromkeys(KEY, ""), by: name}), row)
    return sorted(sums.values(), key=lambda use: (-use.gpu_hours, -use.requests, getattr(use, by)))


class Spending:
    """Makes the exporter's lines out of its trends.

    Args:
        now: Unix time at which it begins to watch.
    """

    def __init__(self, now: float) -> None:
        self._next = int(now // MINUTE)  # the first minute that no line has told of

    def lines(self, trends: Trends, now: float, last: bool = False) -> Iterator[str]:
        """What was spent since the last lines; nothing while the present ``SPAN`` is not over.

        Args:
            trends: of all services.
            now: Unix time.
            last: the exporter ends, and the rest is told.
        """
        minute = int(now // MINUTE)
        end = minute + 1 if last else minute // MINUTES * MINUTES
        if end <= self._next:
            return
        begin, self._next = self._next, end
        for service, minutes in trends.between(begin, end):
            spent = {
                "gpu_seconds": round(sum(one.gpu_seconds for one in minutes), 1),
                "read": round(sum(one.tokens.read for one in minutes)),
                "generated": round(sum(one.tokens.generated for one in minutes)),
            }
            if any(spent.values()):
                yield json.dumps({"spent": service, "from": begin * MINUTE, "until": end * MINUTE, **spent})

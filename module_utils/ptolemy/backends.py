"""The backends planner: from the endpoints that should be served and the servers that HAProxy has, to changes.

Pure: no I/O, no clock. The order of changes is fixed: add, weigh, ready, wake, sleep, drain, sever, remove.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Iterable, Sequence

from .gateway import Endpoint, Gateway, Server

ADD, WEIGH, READY, DRAIN, SEVER, REMOVE = "add", "weigh", "ready", "drain", "sever", "remove"
WAKE, SLEEP = "wake", "sleep"
_FIRST_ID = 1000  # HAProxy numbers the servers of its configuration from 1


@dataclass(frozen=True)
class Change:
    """One change to one server of HAProxy, or to what `hold` knows of a backend.

    Attributes:
        verb: ``add``, ``weigh``, ``ready``, ``drain``, ``sever`` or ``remove``; of a backend, ``wake`` or ``sleep``.
        backend, name: which server; of a backend the name is empty.
        cut: how many requests that ends; only for ``sever``.
        endpoint: what to add, or to weigh.
        id: under which numeric id to add it.
    """

    verb: str
    backend: str
    name: str
    endpoint: Endpoint | None = None
    id: int = 0
    cut: int = 0

    def __str__(self) -> str:
        place = f"{self.backend}/{self.name}" if self.name else self.backend
        weight = f" ({self.endpoint.weight})" if self.endpoint and self.verb == WEIGH else ""
        return f"{self.verb} {place}{weight}" + (f" ({self.cut} requests cut)" if self.cut else "")


def plan(endpoints: Iterable[Endpoint], gateway: Gateway, sever_after: float = 30.0) -> Sequence[Change]:
    """Plan the changes that make HAProxy's servers those of ``endpoints``.

    A server that is no longer wanted drains first and is removed once it is idle, so that no stream is cut.

    Args:
        endpoints: the endpoints that should get new requests.
        gateway: what HAProxy has. Endpoints of backends that it does not have are left out.
        sever_after: seconds that a server must have been down before the requests that it still holds are cut: a frozen
            process never answers them, and their clients would wait for HAProxy's ``timeout server``.
    """
    wanted = {(endpoint.backend, endpoint.name): endpoint for endpoint in endpoints if endpoint.backend in gateway.queued}
    present = {(server.backend, server.name): server for server in gateway.servers}
    leaving = [server for key, server in present.items() if not _serves(wanted.get(key), server)]
    return (
        *_additions(wanted, present, gateway.servers),
        *(Change(WEIGH, *key, endpoint=wanted[key]) for key in sorted(wanted) if _weighs_otherwise(wanted[key], present.get(key))),
        *(Change(READY, *key) for key in sorted(wanted) if key in present and _needs_ready(wanted[key], present[key])),
        *_awakenings(wanted, present, gateway),
        *(Change(DRAIN, server.backend, server.name) for server in leaving if server.admin == "ready"),
        *(
            Change(SEVER, server.backend, server.name, cut=server.in_flight)
            for server in gateway.servers
            if server.in_flight and not server.up and server.unchanged >= sever_after
        ),
        *(
            Change(REMOVE, server.backend, server.name)
            for server in leaving
            if server.admin != "ready" and not (server.in_flight or server.busy)
        ),
    )


def _serves(endpoint: Endpoint | None, server: Server) -> bool:
    return endpoint is not None and (endpoint.address, endpoint.port) == (server.address, server.port)


def _weighs_otherwise(endpoint: Endpoint, server: Server | None) -> bool:
    return server is not None and _serves(endpoint, server) and endpoint.weight != server.weight


def _needs_ready(endpoint: Endpoint, server: Server) -> bool:
    return _serves(endpoint, server) and not (server.admin == "ready" and server.listed)


def _awakenings(wanted: dict[tuple[str, str], Endpoint], present: dict[tuple[str, str], Server], gateway: Gateway) -> Iterable[Change]:
    # A server that is being added is up from the first moment.
    awake = {key[0] for key in wanted if key not in present or present[key].up}
    changed = sorted(backend for backend, told in gateway.awake.items() if told != (backend in awake))
    yield from (Change(WAKE, backend, "") for backend in changed if backend in awake)
    yield from (Change(SLEEP, backend, "") for backend in changed if backend not in awake)


def _additions(
    wanted: dict[tuple[str, str], Endpoint], present: dict[tuple[str, str], Server], servers: Sequence[Server]
) -> Iterable[Change]:
    # HAProxy 2.6 collides on hash rings where ids are not given, so each server gets the lowest one that is free.
    taken: dict[str, set[int]] = {}
    for server in servers:
        taken.setdefault(server.backend, set()).add(server.id)
    for key in sorted(wanted):
        if key not in present:
            ids = taken.setdefault(key[0], set())
            number = next(number for number in count(_FIRST_ID) if number not in ids)
            ids.add(number)
            yield Change(ADD, *key, endpoint=wanted[key], id=number)

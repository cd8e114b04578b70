"""How many batch requests may run at once, so that slots are left for people who chat. Pure.

Batch requests wait behind a gate of their own in HAProxy (roles/haproxy). While nobody chats it is as wide as the service has slots;
while somebody does, a share of them. It is never shut: those that are through have their turn, however many chat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping

from .config import Service
from .gateway import Gateway, backend_name

QUIET = 60.0  # seconds without an interactive request after which nobody is chatting
FIRST = 4  # while a service has no slot: as many as wake it and are then answered at once


@dataclass(frozen=True)
class Chat:
    """When a service was last asked by a person.

    Attributes:
        at: seconds of a clock that never goes back; -inf for never.
        arrived: interactive requests that had arrived by then, by HAProxy's count.
    """

    at: float = -math.inf
    arrived: int = 0


def listen(last: Chat, arrived: int, present: int, now: float) -> Chat:
    """Take note of the interactive requests that arrived ever, and that are ``present``. HAProxy's count starts anew with it."""
    return Chat(now if present or arrived > last.arrived else last.at, arrived)


def widths(
    services: Mapping[str, Service], gateway: Gateway, slots: Mapping[str, int], chats: Mapping[str, Chat], now: float
) -> dict[str, int]:
    """The gates whose width should change, by service.

    Args:
        services: by name.
        gateway: as HAProxy has them now.
        slots: of the servers that are up, by backend.
        chats: by service.
        now: of the same clock as the chats'.
    """
    found = {}
    for name, service in services.items():
        gate, there = gateway.gates.get(backend_name(name)), slots.get(backend_name(name), 0)
        if gate is None:
            continue
        chatting = now - chats.get(name, Chat()).at < QUIET
        wanted = max(math.floor(there * (service.batch_share if chatting else 1.0)), 1) if there else FIRST
        if wanted != gate.width:
            found[name] = wanted
    return found

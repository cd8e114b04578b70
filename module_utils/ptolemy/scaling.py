"""How many replicas a service should have: out within seconds, in only after fewer have been enough for a while. Pure."""

from __future__ import annotations

from .config import Service
from .load import History, replicas_for

HYSTERESIS = 0.15  # one replica less must hold the past peak with so much to spare, or the next peak would bring it back


def target(service: Service, history: History, previous: int) -> int:
    """Return how many replicas the service should have.

    Args:
        service: its bounds, and the share of its slots that should be busy.
        history: its loads.
        previous: what this function answered last; at the daemon's start the number of replicas that are there.
    """
    capacity = service.capacity * service.target_load
    needed = replicas_for(history.demand, capacity)
    if history.last.busy or history.last.waiting:
        needed = max(needed, 1)  # the first request wakes a sleeping service at once
    peak = history.peak
    enough = previous if peak is None else replicas_for(peak, capacity * (1 - HYSTERESIS))
    return min(max(needed, min(previous, enough), service.min), service.max)

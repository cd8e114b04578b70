"""The scaling simulation's peers: who decides how many replicas a service has. Ptolemy's own answer needs no code here."""

from __future__ import annotations

import math
from collections import deque
from typing import Callable, Deque, Mapping

from ptolemy.config import Service
from ptolemy.memory import Memory

# Changes the targets that ``Memory.learn`` has just set.
Peer = Callable[[Mapping[str, Service], Memory, float], None]


def ptolemy(services: Mapping[str, Service], memory: Memory, now: float) -> None:
    """``scaling.target``, as the daemon runs it."""


class Naive:
    """As many replicas as this second's requests need: no smoothing, no hysteresis, no delay."""

    def __call__(self, services: Mapping[str, Service], memory: Memory, now: float) -> None:
        for name, service in services.items():
            last = memory.loads[name].last
            needed = math.ceil((last.busy + last.waiting) / (service.capacity * service.target_load))
            memory.targets[name] = min(max(needed, service.min), service.max)


class Horizontal:
    """Kubernetes' HorizontalPodAutoscaler with its defaults, on requests busy and queued for each replica; wakes from 0 as KEDA does.

    Every 15 s `replicas x load / target load`, none where that is within 10 %; at most twice as many, or 4 more, in 15 s; in by the
    highest answer of the last 300 s.
    """

    PERIOD, TOLERANCE, WINDOW = 15.0, 0.1, 300.0

    def __init__(self) -> None:
        self._at = -math.inf
        self._targets: dict[str, int] = {}
        self._answers: dict[str, Deque[tuple[float, int]]] = {}

    def __call__(self, services: Mapping[str, Service], memory: Memory, now: float) -> None:
        if now >= self._at + self.PERIOD:
            self._at = now
            for name, service in services.items():
                self._targets[name] = self._answer(service, memory, now)
        memory.targets.update(self._targets)

    def _answer(self, service: Service, memory: Memory, now: float) -> int:
        last = memory.loads[service.name].last
        now_have = self._targets.get(service.name, service.min)
        load = (last.busy + last.waiting) / (service.capacity * service.target_load)
        wanted = math.ceil(load - 1e-9)
        if now_have and abs(load / now_have - 1) <= self.TOLERANCE:
            wanted = now_have
        wanted = min(max(min(wanted, max(2 * now_have, now_have + 4)), service.min), service.max)
        answers = self._answers.setdefault(service.name, deque())
        answers.append((now, wanted))
        while answers[0][0] < now - self.WINDOW:
            answers.popleft()
        return max(wanted, min(now_have, max(answer for _, answer in answers)))

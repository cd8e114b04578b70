"""Statuses as the daemon writes them, for tests of what shows them."""

from __future__ import annotations

import json
from typing import Any, Sequence

from ptolemy import status
from ptolemy.config import Canary, Config, Service
from ptolemy.failures import Failure
from ptolemy.gateway import Gateway
from ptolemy.memory import Memory
from ptolemy.slurm import Job
from values import SITE, gateway, job, server, service

CHAT = service(size=2)
NOW = 1300.0
BOTH = ([job(1, CHAT), job(2, CHAT)], gateway(server(1), server(2)))


def seen(
    jobs: Sequence[Job] = (),
    there: Gateway | None = None,
    of: Service = CHAT,
    canary: Canary | None = None,
    failures: Sequence[Failure] = (),
    stale: str = "",
) -> dict[str, Any]:
    """A status as ``status.read`` gives it."""
    config = Config(SITE, {of.name: of}, {of.name: canary} if canary else {})
    there = there or gateway()
    memory = Memory()
    memory.learn(config, jobs, there, NOW)
    memory.failures = failures
    told = {
        "time": NOW,
        "observed_at": NOW,
        "stale_reason": stale,
        "troubles": [],
        "last_change": {"sentence": "", "at": 0.0},
        "counters": {"ticks": 7, "skipped": 0, "changes": 0, "failed_changes": 0},
    }
    written: dict[str, Any] = json.loads(json.dumps({**told, "services": status.describe(config, jobs, there, memory)}))
    return written

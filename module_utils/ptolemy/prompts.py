"""What the instances of ComfyUI have to do, asked of themselves: ComfyUI answers a prompt at once and queues it, so HAProxy cannot know.

Each is asked once a second, away from the control loop. What is not known counts as busy: an instance that gives no answer is not idle.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Callable

from .asking import body_of
from .comfyui import FREE, remaining
from .config import COMFYUI, Config
from .gateway import Gateway, Server, backend_name, host_port

EVERY = 1.0  # seconds
AT_ONCE = 16
COLLECT = 5.0  # seconds after its last prompt in which clients fetch their pictures: for so long it counts as busy
DEAD_AFTER = 10.0  # seconds that HAProxy's checks must have failed for: a busy instance may miss some of them
MOST_BYTES = 4096  # of an answer


@dataclass
class _Instance:
    """What is known of one: its last answer, when it last had a prompt, and the question under way."""

    known: int | None = None
    busy_at: float = 0.0
    ask_at: float = 0.0
    asked: Future[int | None] | None = None


class Prompts:
    """Asks all instances, and puts their answers into what was observed of HAProxy.

    Args:
        ask: how many prompts the instance at an address has; None where it gives no answer.
    """

    def __init__(self, ask: Callable[[str], int | None] | None = None) -> None:
        self._ask = ask or fetch
        self._instances: dict[str, _Instance] = {}
        self._pool: ThreadPoolExecutor | None = None  # most sites have no ComfyUI

    def fill(self, config: Config, gateway: Gateway, now: float) -> Gateway:
        """The gateway with ``prompts`` and ``slots`` of the servers that are instances of ComfyUI. Never waits.

        Args:
            config: tells which services are.
            gateway: as HAProxy has it.
            now: seconds of a clock that never goes back.
        """
        slots = {backend_name(name): service.slots for name, service in config.services.items() if service.kind == COMFYUI}
        if not slots:
            return gateway
        ours = {server.name for server in gateway.servers if server.backend in slots}
        self._instances = {name: instance for name, instance in self._instances.items() if name in ours}
        servers = tuple(
            replace(server, prompts=self._prompts(server, now), slots=slots[server.backend]) if server.backend in slots else server
            for server in gateway.servers
        )
        return replace(gateway, servers=servers)

    def _prompts(self, server: Server, now: float) -> int:
        instance = self._instances.setdefault(server.name, _Instance(busy_at=now))
        if instance.asked is not None and instance.asked.done():
            answer, instance.asked = instance.asked.result(), None
            if answer is not None:
                instance.known = answer
                if answer:
                    instance.busy_at = now
        if not server.up and server.unchanged >= DEAD_AFTER:
            return 0
        if instance.asked is None and now >= instance.ask_at:
            instance.ask_at = now + EVERY
            self._pool = self._pool or ThreadPoolExecutor(AT_ONCE, "prompts")
            instance.asked = self._pool.submit(self._ask, host_port(server.address, server.port))
        return instance.known or int(now - instance.busy_at < COLLECT or instance.known is None)


def fetch(address: str) -> int | None:
    """How many prompts an instance has; None where it gives no answer, or none that can be read."""
    body = body_of(address, FREE, MOST_BYTES)
    try:
        return None if body is None else remaining(body)
    except ValueError:
        return None

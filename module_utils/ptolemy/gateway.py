"""What the gateway has, as its planners see it: servers, queues, gates, users. ``haproxy`` reads and changes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Mapping, Sequence

BACKEND_PREFIX = "svc_"
WEIGHT = 100  # of a server; HAProxy takes 1 to 256, so that the share of a canary can be told finely


@dataclass(frozen=True)
class Endpoint:
    """A llama-server that HAProxy should route to.

    Attributes:
        backend, name: HAProxy's names for it.
        address, port: where it listens.
        slots: how many requests it may have at once.
        weight: its part of the backend's requests, against the weights of the others.
    """

    backend: str
    name: str
    address: str
    port: int
    slots: int
    weight: int = WEIGHT

    @property
    def where(self) -> str:
        """Address and port in HAProxy's notation."""
        return host_port(self.address, self.port)


@dataclass(frozen=True)
class Server:
    """A dynamic server that HAProxy has.

    Attributes:
        backend, name: HAProxy's names for it.
        id: its numeric id, unique in the backend.
        address, port: where it points to.
        admin: ``ready``, ``drain`` or ``maint``: what it was told.
        up: its health check passes.
        in_flight: requests that it is answering now.
        slots: its maxconn.
        unchanged: seconds since its health last changed.
        weight: its part of the backend's requests, against the weights of the others.
        requests: how many it ever got from this process of HAProxy.
        errors: how many of them it refused, broke off, or answered with a status of 500 or more.
        response_ms: the mean time to the first byte of its last 1024 answers.
        listed: the configuration was told that it is there.
        prompts: of a ComfyUI, how many it has taken and not finished, see ``prompts``; None for other kinds.
    """

    backend: str
    name: str
    id: int
    address: str
    port: int
    admin: str
    up: bool
    in_flight: int
    slots: int
    unchanged: float = 0.0
    weight: int = WEIGHT
    requests: int = 0
    errors: int = 0
    response_ms: int = 0
    listed: bool = True
    prompts: int | None = None

    @property
    def busy(self) -> int:
        """What it has to do. A ComfyUI answers before it begins, and keeps websockets of clients that want nothing."""
        return self.in_flight if self.prompts is None else self.prompts

    @cached_property
    def job_id(self) -> int:
        """The Slurm job that it belongs to."""
        return int(self.name[1 : self.name.index("r")])


@dataclass(frozen=True)
class Gate:
    """The gate of a service's batch requests.

    Attributes:
        width: how many it lets through at once.
        waiting: requests before it.
        arrived: how many there ever were.
        interactive: those that reached the service without it: how many there are now.
        interactive_arrived: how many there ever were.
    """

    width: int
    waiting: int
    arrived: int
    interactive: int
    interactive_arrived: int


@dataclass(frozen=True)
class Gateway:
    """One observation of HAProxy.

    Attributes:
        pid: the process that answered; another one means a restart or reload, and that dynamic servers were lost.
        queued: requests that wait for a slot, by backend; its keys are the backends that the configuration has.
        arrived: requests that this process has ever sent to the backend, by backend.
        servers: the dynamic servers of those backends.
        awake: what `hold` was told of each backend: whether there is a server; None for nothing yet.
        gates: of batch requests, by the backend that they lead to.
        states: what /v1/models says of each service: its state, and under ``<service>/revision``, ``/slots`` and ``/about`` these.
    """

    pid: int
    queued: Mapping[str, int]
    arrived: Mapping[str, int]
    servers: Sequence[Server]
    awake: Mapping[str, bool | None]
    gates: Mapping[str, Gate] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class User:
    """What one user of the API does now.

    Attributes:
        name: of the user; of somebody for whom Open WebUI asks, ``<user>/<id>``.
        requests: that are being answered or wait.
        per_minute: requests that were let through in the last minute.
    """

    name: str
    requests: int
    per_minute: int


def host_port(address: str, port: int) -> str:
    """An address and a port as in URLs and in HAProxy's notation."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def backend_name(service: str) -> str:
    """The name of a service's backend in HAProxy."""
    return BACKEND_PREFIX + service


def server_name(job_id: int, restart: int, port: int) -> str:
    """The name of an endpoint's server: another run of the job, or another port, is another server."""
    return f"j{job_id}r{restart}p{port}"

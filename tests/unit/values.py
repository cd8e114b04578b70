"""Short makers of the control plane's values, for tests."""

from __future__ import annotations

from typing import Any

from ptolemy.config import Config, Service, Site
from ptolemy.gateway import Endpoint, Gateway, Server
from ptolemy.record import READY, Record
from ptolemy.slurm import Job, Node

SITE = Site(user="ptolemy", uid=6030)


def service(name: str = "chat", size: int = 1, **fields: Any) -> Service:
    """A service of a fixed size, unless min and max are given."""
    given = {"model": "demo", "model_path": "/models/demo.gguf", "model_sha256": "0" * 64, "partition": "gpu"}
    return Service(name=name, **{**given, "min": size, "max": size, **fields})


def config(*services: Service) -> Config:
    return Config(SITE, {service.name: service for service in services})


def record(of: Service, state: str = READY, **fields: Any) -> Record:
    return Record(**{"service": of.name, "revision": of.revision, "restart": 0, "state": state, "ports": (20000,), "slots": 8, **fields})


def job(number: int, of: Service, state: str = READY, slurm: str = "RUNNING", **fields: Any) -> Job:
    given: dict[str, Any] = {
        "id": number,
        "state": slurm,
        "user_id": 6030,
        "restart": 0,
        "host": "n1" if slurm == "RUNNING" else "",
        "submit": 990.0,
        "start": 1000.0,
        "end": 4e9,
        "reason": "None",
        "name": f"ptolemy-{of.name}",
        "record": record(of, state),
        "address": "10.0.0.1",
    }
    return Job(**{**given, **fields})


def endpoint(number: int = 1, port: int = 20000, backend: str = "svc_chat", **fields: Any) -> Endpoint:
    given: dict[str, Any] = {"backend": backend, "name": f"j{number}r0p{port}", "address": "10.0.0.1", "port": port, "slots": 8}
    return Endpoint(**{**given, **fields})


def server(number: int = 1, port: int = 20000, backend: str = "svc_chat", **fields: Any) -> Server:
    given: dict[str, Any] = {
        "backend": backend,
        "name": f"j{number}r0p{port}",
        "id": 1000 + number,
        "address": "10.0.0.1",
        "port": port,
        "admin": "ready",
        "up": True,
        "in_flight": 0,
        "slots": 8,
    }
    return Server(**{**given, **fields})


def gateway(*servers: Server, backends: tuple[str, ...] = ("svc_chat",), queued: int = 0, arrived: int = 0, **fields: Any) -> Gateway:
    counts = {"queued": dict.fromkeys(backends, queued), "arrived": dict.fromkeys(backends, arrived)}
    return Gateway(**{"pid": 1, **counts, "servers": servers, "awake": {}, **fields})


def node(name: str = "n1", closed: bool = False, partition: str = "gpu") -> Node:
    return Node(name, name, frozenset([partition]), closed)

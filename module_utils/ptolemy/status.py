"""What people see: the daemon's view as plain data, and ``ptolemy status`` and ``ptolemy wait``, which show what it last wrote."""

from __future__ import annotations

import json
import time
from typing import Any, Iterator, Mapping, Sequence

from .config import Canary, Config, Service
from .errors import PtolemyError
from .gateway import Gateway, Server, backend_name
from .memory import Memory
from .replica import gpu_of
from .slurm import RUNNING, Job

DEAD_AFTER = 60.0  # seconds without a word from the daemon, above its longest tick


def describe(config: Config, jobs: Sequence[Job], gateway: Gateway, memory: Memory) -> Sequence[Mapping[str, Any]]:
    """Services, replicas and servers as plain data."""
    alive: dict[str, list[Job]] = {}
    for job in jobs:
        if job.record is not None and not job.ended:
            alive.setdefault(job.record.service, []).append(job)
    servers: dict[str, list[Server]] = {}
    for server in gateway.servers:
        servers.setdefault(server.backend, []).append(server)
    return [
        {
            **_describe_service(
                service, alive.get(name, []), servers.get(backend_name(name), []), memory, _width(gateway, backend_name(name))
            ),
            "arrived": gateway.arrived.get(backend_name(name), 0),
            "replicas": [_describe_replica(job, config.site.port_first) for job in alive.get(name, [])],
            "failures": _describe_failures(service.revision, memory),
            "canary": _describe_canary(config.canaries[name], memory) if name in config.canaries else None,
        }
        for name, service in config.services.items()
    ]


def _describe_canary(canary: Canary, memory: Memory) -> Mapping[str, Any]:
    revision = canary.service.revision
    return {
        "revision": revision,
        "model": canary.service.model,
        "share": canary.share,
        "asked_at": canary.asked_at,
        "failures": [
            {"job": failure.job_id, "node": failure.node, "reason": failure.reason}
            for failure in memory.failures
            if failure.revision == revision and failure.at >= canary.asked_at
        ],
    }


def _describe_failures(revision: str, memory: Memory) -> Sequence[Mapping[str, Any]]:
    """The replicas of a revision that failed and were not followed by one that serves, the oldest first."""
    return [
        {"job": failure.job_id, "node": failure.node, "at": failure.at, "reason": failure.reason}
        for failure in memory.failures
        if failure.revision == revision and not failure.over
    ]


def _describe_replica(job: Job, port_first: int) -> Mapping[str, Any]:
    ports = list(job.record.ports) if job.record else []
    return {
        "job": job.id,
        "slurm": job.state,
        "reason": job.reason,
        "state": job.record.state if job.record and job.fresh else "requeued",
        "revision": job.record.revision if job.record else "",
        "opportunistic": bool(job.record and job.record.opportunistic),
        "host": job.host,
        "address": job.address,
        "submitted": job.submit,
        "started": job.start,
        "ends": job.end,
        "took": job.record.took if job.record else 0,
        "ports": ports,
        "gpus": sorted({gpu_of(port, port_first) for port in ports}),
        "why": job.record.reason if job.record else "",
    }


def _width(gateway: Gateway, backend: str) -> int:
    gate = gateway.gates.get(backend)
    return gate.width if gate else 0


def _describe_service(
    service: Service, alive: Sequence[Job], servers: Sequence[Server], memory: Memory, batch_at_once: int
) -> Mapping[str, Any]:
    serving = {server.job_id for server in servers if server.up and server.admin == "ready"}
    ready = sum(job.ready and job.id in serving and job.record is not None and job.record.revision == service.revision for job in alive)
    load, wanted = memory.loads.get(service.name), memory.targets.get(service.name, service.min)
    return {
        "service": service.name,
        "model": service.model,
        "revision": service.revision,
        "state": "ready" if serving else "off" if not service.max else "starting" if wanted else "asleep",
        "min": service.min,
        "max": service.max,
        "opportunistic": service.opportunistic,
        "replicas_wanted": wanted,
        "replicas_ready": ready,
        "gpus": service.gpus * sum(job.state == RUNNING for job in alive),
        "queued": load.last.waiting if load else 0,
        "oldest_wait": load.oldest_wait if load else 0.0,
        "tiers": {
            tier: {"queued": queue.waiting, "oldest_wait": queue.oldest_wait} for tier, queue in memory.queues.get(service.name, {}).items()
        },
        "batch_at_once": batch_at_once,
        "demand": load.demand if load else 0.0,
        "in_flight": sum(server.busy for server in servers),
        "servers": [
            {
                "name": server.name,
                "address": f"{server.address}:{server.port}",
                "admin": server.admin,
                "up": server.up,
                "in_flight": server.busy,
                "slots": server.slots,
                "weight": server.weight,
                "requests": server.requests,
                "errors": server.errors,
                "response_ms": server.response_ms,
            }
            for server in servers
        ],
    }


def read(path: str) -> dict[str, Any]:
    """What the daemon last wrote.

    Raises:
        PtolemyError: nothing is there, or it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            status = json.load(file)
    except OSError as error:
        raise PtolemyError(f"{path}: {error.strerror}; is ptolemyd running? systemctl status ptolemyd") from error
    except ValueError as error:
        raise PtolemyError(f"{path}: {error}") from error
    if not isinstance(status, dict):
        raise PtolemyError(f"{path}: not a status")
    return status


def render(status: Mapping[str, Any], now: float) -> Iterator[str]:
    """The lines of ``ptolemy status``."""
    silent = now - status["time"]
    if silent > DEAD_AFTER:
        yield f"STALE: ptolemyd has said nothing for {_span(silent)}; HAProxy goes on serving. See: systemctl status ptolemyd"
    elif status["stale_reason"]:
        since = (
            f"since {_clock(status['observed_at'])}, {_span(now - status['observed_at'])}" if status["observed_at"] else "since the start"
        )
        yield f"STALE: the view is stale {since}: {status['stale_reason']}"
    for trouble in status["troubles"]:
        if trouble != status["stale_reason"]:
            yield f"note: {trouble}"
    for service in status["services"]:
        bounds = f" ({service['min']} to {service['max']})" if service["min"] < service["max"] else ""
        waits = "".join(
            f", {row['queued']} {tier}, the oldest for {row['oldest_wait']:.0f} s"
            for tier, row in service["tiers"].items()
            if row["queued"]
        )
        yield (
            f"{service['service']}: {service['state']}, "
            f"{service['replicas_ready']} of {service['replicas_wanted']} replicas ready{bounds}, "
            f"{service['in_flight']} requests running, {service['queued']} queued{waits} "
            f"(model {service['model']}, revision {service['revision']})"
        )
        canary = service["canary"]
        if canary:
            share = f"has a share of {canary['share']:.0%}" if canary["share"] else "gets no requests of clients yet"
            since = _span(now - canary["asked_at"])
            yield f"  a rollout is going on since {since}: canary of revision {canary['revision']} (model {canary['model']}) {share}"
            yield from (f"    job {it['job']} failed on {it['node'] or 'no node'}: {it['reason']}" for it in canary["failures"])
        for replica in service["replicas"]:
            ends = f", {_span(replica['ends'] - now)} left" if replica["ends"] > now else ""
            where = f" on {replica['host']}" if replica["host"] else f" ({replica['reason']})"
            old = "" if replica["revision"] == service["revision"] else f", revision {replica['revision']}"
            extra = ", opportunistic" if replica["opportunistic"] else ""
            yield f"  job {replica['job']} {replica['slurm']}{where}: {replica['state']}{extra}{old}{ends} {replica['why']}".rstrip()
        for server in service["servers"]:
            health = "up" if server["up"] else "down"
            busy = f"{server['in_flight']} of {server['slots']} slots busy"
            yield f"    {server['name']} {server['address']} {server['admin']} {health}, {busy}"
    change = status["last_change"]
    yield f"last change {_clock(change['at'])}: {change['sentence']}" if change["sentence"] else "no change since ptolemyd started"


def wait(path: str, timeout: float) -> bool:
    """Wait until every service has its replicas ready, saying so whenever something changed. Extra ones may never get a GPU.

    Returns:
        False where ``timeout`` seconds were not enough.
    """
    deadline = time.monotonic() + timeout
    shown = ""
    while True:
        try:
            status = read(path)
            fresh = time.time() - status["time"] < DEAD_AFTER and not status["stale_reason"]
            parts = [f"{row['service']} {row['replicas_ready']}/{row['replicas_wanted']}" for row in status["services"]]
            line = ("ready: " if fresh else "stale: ") + ", ".join(parts)
            ordinary = {row["service"]: min(row["replicas_wanted"], row["max"] - row["opportunistic"]) for row in status["services"]}
            done = fresh and all(row["replicas_ready"] >= ordinary[row["service"]] for row in status["services"])
        except PtolemyError as error:
            line, done = str(error), False
        if line != shown:
            print(_clock(time.time()), line, flush=True)
            shown = line
        if done:
            return True
        if time.monotonic() > deadline:
            print("not ready in time; see: ptolemy status, journalctl -u ptolemyd, and the jobs' logs on their nodes", flush=True)
            return False
        time.sleep(0.5)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _span(seconds: float) -> str:
    whole = max(int(seconds), 0)
    if whole < 120:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    return f"{minutes} min" if minutes < 120 else f"{hours} h" if hours < 48 else f"{days} d"

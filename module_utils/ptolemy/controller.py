"""Observe, plan, apply: one tick of the control loop. The daemon calls it once a second, a module once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import AbstractSet, Callable, Iterable, Mapping, Sequence

from . import backends, replicas
from .config import Config, Service
from .errors import ChangeError, ConfigError
from .haproxy import Endpoint, Gateway, HAProxy, backend_name, server_name
from .job import script
from .slurm import Job, Slurm, job_name


@dataclass(frozen=True)
class Decision:
    """What one tick wants to change.

    Attributes:
        replicas: the changes to the jobs.
        backends: the changes to HAProxy.
        notes: sentences for the log, though nothing changes.
    """

    replicas: replicas.Plan
    backends: backends.Plan
    notes: Sequence[str] = ()


def endpoints(config: Config, jobs: Iterable[Job], draining: AbstractSet[int] = frozenset()) -> list[Endpoint]:
    """The endpoints that live jobs publish and that may get new requests.

    A record counts only where it is plausible: its job runs on a node with a known address, the service exists and is
    the one that the job is named for, the run is the present one, and the ports lie in the site's range.
    """
    found = []
    for job in jobs:
        record = job.record
        if record is None or not job.ready or not job.address or job.id in draining:
            continue
        if record.service not in config.services or job.name != job_name(record.service) or record.slots < 1:
            continue
        if not all(config.site.port_first <= port <= config.site.port_last for port in record.ports):
            continue
        backend = backend_name(record.service)
        found += [Endpoint(backend, server_name(job.id, job.restart, port), job.address, port, record.slots) for port in record.ports]
    return found


def decide(
    config: Config,
    jobs: Sequence[Job],
    gateway: Gateway,
    now: float,
    suspected: AbstractSet[tuple[str, str]] = frozenset(),
) -> Decision:
    """Plan one tick from one whole observation. Pure."""
    job_plan = replicas.plan(config.services, jobs, gateway.servers, now)
    server_plan = backends.plan(
        endpoints(config, jobs, job_plan.drain),
        gateway,
        accounted=frozenset(job.id for job in jobs),
        suspected=suspected,
        max_removal_share=config.site.max_removal_share,
        sever_after=config.site.sever_after,
    )
    if server_plan.held:
        # The same doubtful observation must not make the other planner replace what is still there.
        note = f"held the removal of {len(server_plan.held)} healthy servers whose jobs Slurm did not show"
        return Decision(replicas.Plan({}, frozenset(), ()), server_plan, (note,))
    missing = sorted(name for name in config.services if backend_name(name) not in gateway.queued)
    notes = tuple(f"{name}: HAProxy has no backend {backend_name(name)}; run site.yml" for name in missing)
    return Decision(job_plan, server_plan, (*job_plan.notes, *notes))


def restore(config: Config, last_jobs: Sequence[Job], gateway: Gateway) -> backends.Plan:
    """Plan one tick while Slurm gives no answer: give a restarted HAProxy back what was last known, take nothing away."""
    full = backends.plan(endpoints(config, last_jobs), gateway)
    additions = tuple(change for change in full.changes if change.verb == backends.ADD)
    return backends.Plan(additions)


@dataclass
class Applied:
    """What a decision came to.

    Attributes:
        done: what was changed, in order, one phrase each.
        failed: what was refused, one sentence each; the next tick plans it again.
    """

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def attempt(self, phrase: str, change: Callable[[], object]) -> bool:
        """Make one change; a refusal is noted and does not stop the others."""
        try:
            change()
        except (ChangeError, ConfigError) as error:
            self.failed.append(str(error))
            return False
        self.done.append(phrase)
        return True


def apply_backends(plan: backends.Plan, haproxy: HAProxy, applied: Applied) -> None:
    """Apply a plan of the backends planner, in its order."""
    for change in plan.changes:
        applied.attempt(str(change), partial(_change_server, haproxy, change))


def _change_server(haproxy: HAProxy, change: backends.Change) -> None:
    if change.endpoint is not None:
        haproxy.add(change.endpoint, change.id)
    verbs = {
        backends.ADD: haproxy.ready,
        backends.READY: haproxy.ready,
        backends.DRAIN: haproxy.drain,
        backends.SEVER: haproxy.sever,
        backends.REMOVE: haproxy.remove,
    }
    verbs[change.verb](change.backend, change.name)


def apply_replicas(plan: replicas.Plan, config: Config, slurm: Slurm, applied: Applied) -> None:
    """Apply a plan of the replicas planner: submit at most ``site.max_submissions``, then end."""
    room = config.site.max_submissions
    for name, missing in plan.submit.items():
        for _ in range(min(missing, room)):
            room -= 1
            if not applied.attempt(f"submit {name}", partial(_submit, config, config.services[name], slurm)):
                break  # one refusal is enough: the next would be the same
    if plan.end:
        applied.attempt("end " + ", ".join(map(str, plan.end)), partial(slurm.cancel, plan.end))


def _submit(config: Config, service: Service, slurm: Slurm) -> int:
    try:
        with open(config.site.job_template, encoding="utf-8") as file:
            template = file.read()
    except OSError as error:
        raise ConfigError(f"{config.site.job_template}: {error.strerror}; run site.yml, which writes it") from error
    return slurm.submit(script(template, config.site, service))


def summary(config: Config, jobs: Sequence[Job], gateway: Gateway) -> Sequence[Mapping[str, object]]:
    """Services, replicas, endpoints and servers as plain data, for ``ptolemy status`` and monitoring."""
    rows = []
    for service in config.services.values():
        backend = backend_name(service.name)
        servers = [server for server in gateway.servers if server.backend == backend]
        up_jobs = {server.job_id for server in servers if server.up and server.admin == "ready"}
        own = [job for job in jobs if not job.ended and job.record and job.record.service == service.name]
        ready = [job for job in own if job.ready and job.id in up_jobs and job.record and job.record.revision == service.revision]
        rows.append(
            {
                "service": service.name,
                "model": service.model,
                "revision": service.revision,
                "replicas_wanted": service.replicas,
                "replicas_ready": len(ready),
                "queued": gateway.queued.get(backend, 0),
                "in_flight": sum(server.in_flight for server in servers),
                "replicas": [
                    {
                        "job": job.id,
                        "slurm": job.state,
                        "reason": job.reason,
                        "state": job.record.state if job.record and job.fresh else "requeued",
                        "revision": job.record.revision if job.record else "",
                        "host": job.host,
                        "address": job.address,
                        "ends": job.end,
                        "ports": list(job.record.ports) if job.record else [],
                        "why": job.record.reason if job.record else "",
                    }
                    for job in own
                ],
                "servers": [
                    {
                        "name": server.name,
                        "address": f"{server.address}:{server.port}",
                        "admin": server.admin,
                        "up": server.up,
                        "in_flight": server.in_flight,
                        "slots": server.slots,
                    }
                    for server in servers
                ],
            }
        )
    return rows

"""Observe, plan, apply: one tick of the control loop. The daemon calls it once a second, a module once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import AbstractSet, Callable, Iterable, Mapping, Sequence

from . import backends, replicas
from .config import COMFYUI, Config
from .errors import ChangeError, ConfigError
from .gates import widths
from .gateway import WEIGHT, Endpoint, Gateway, backend_name, server_name
from .haproxy import HAProxy
from .job import script
from .memory import Memory
from .slurm import Job, Node, Slurm, job_name

CONNECTIONS = 1000  # that one instance of ComfyUI may have


@dataclass(frozen=True)
class Decision:
    """What one tick wants to change.

    Attributes:
        replicas: the changes to the jobs.
        backends: the changes to HAProxy, in order.
        notes: sentences for the log, though nothing changes.
        gates: how many batch requests should run at once, by service, where that changes.
    """

    replicas: replicas.Plan
    backends: Sequence[backends.Change]
    notes: Sequence[str] = ()
    gates: Mapping[str, int] = field(default_factory=dict)


def endpoints(config: Config, jobs: Iterable[Job], draining: AbstractSet[int] = frozenset()) -> list[Endpoint]:
    """The endpoints that live jobs publish and that may get new requests.

    A record counts only where it is plausible: its job runs on a node with a known address, the service exists and is
    the one that the job is named for, the run is the present one, and the ports lie in the site's range.
    """
    found = []
    tried: set[str] = set()  # the names of the canaries' endpoints
    for job in jobs:
        record = job.record
        if record is None or not job.ready or not job.address or job.id in draining:
            continue
        if record.service not in config.services or job.name != job_name(record.service) or record.slots < 1:
            continue
        if not all(config.site.port_first <= port <= config.site.port_last for port in record.ports):
            continue
        backend = backend_name(record.service)
        canary = config.canaries.get(record.service)
        if canary and record.revision == canary.service.revision:
            if not canary.share:
                continue
            tried.update(server_name(job.id, job.restart, port) for port in record.ports)
        # A ComfyUI queues by itself, and has websockets beside: only a runaway is kept from it.
        slots = CONNECTIONS if config.services[record.service].kind == COMFYUI else record.slots
        found += [Endpoint(backend, server_name(job.id, job.restart, port), job.address, port, slots) for port in record.ports]
    return _weighed(config, found, tried)


def _weighed(config: Config, found: Sequence[Endpoint], tried: AbstractSet[str]) -> list[Endpoint]:
    """Give a canary's endpoints, and those beside it, the weights by which it gets its share of the requests."""
    if not tried:  # hardly ever is there a rollout
        return list(found)
    count = Counter((endpoint.backend, endpoint.name in tried) for endpoint in found)
    weights: dict[tuple[str, bool], int] = {}
    for name, canary in config.canaries.items():
        present, on_trial = (count[backend_name(name), which] for which in (False, True))
        if canary.share and present and on_trial:
            ratio = canary.share / (1 - canary.share) * present / on_trial
            weights[backend_name(name), True] = max(round(WEIGHT * min(ratio, 1.0)), 1)
            weights[backend_name(name), False] = max(round(WEIGHT / max(ratio, 1.0)), 1)
    return [replace(endpoint, weight=weights.get((endpoint.backend, endpoint.name in tried), WEIGHT)) for endpoint in found]


def decide(config: Config, jobs: Sequence[Job], nodes: Mapping[str, Node], gateway: Gateway, memory: Memory, now: float) -> Decision:
    """Plan one tick from one whole observation, which ``memory`` has learnt. Pure."""
    # A name service that fails while the daemon starts must not take away what HAProxy reaches.
    addresses = {server.job_id: server.address for server in gateway.servers}
    jobs = [job if job.address or not job.ready else replace(job, address=addresses.get(job.id, "")) for job in jobs]
    seen = replicas.Seen(jobs, gateway.servers, nodes, memory.failures, memory.asked, now)
    job_plan = replicas.plan(config.services, memory.targets, seen, config.canaries)
    changes = backends.plan(endpoints(config, jobs, job_plan.drain), gateway, config.site.sever_after)
    missing = sorted(name for name in config.services if backend_name(name) not in gateway.queued)
    notes = tuple(f"{name}: HAProxy has no backend {backend_name(name)}; run site.yml" for name in missing)
    gates = widths(config.services, gateway, memory.slots, memory.chats, now)
    return Decision(job_plan, changes, (*job_plan.notes, *notes), gates)


def restore(config: Config, last_jobs: Sequence[Job], gateway: Gateway) -> Sequence[backends.Change]:
    """Plan one tick while Slurm gives no answer: give a restarted HAProxy back what was last known, take nothing away."""
    return [change for change in backends.plan(endpoints(config, last_jobs), gateway) if change.verb in (backends.ADD, backends.WAKE)]


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


def apply_backends(changes: Sequence[backends.Change], haproxy: HAProxy, applied: Applied) -> None:
    """Apply the changes of the backends planner, in their order."""
    for change in changes:
        applied.attempt(str(change), partial(_change_server, haproxy, change))


def apply_gates(gates: Mapping[str, int], haproxy: HAProxy, applied: Applied) -> None:
    """Set the widths of the gates."""
    for service, width in gates.items():
        applied.attempt(f"{service}: {width} batch requests at once", partial(haproxy.widen, service, width))


def _change_server(haproxy: HAProxy, change: backends.Change) -> None:
    if change.endpoint is not None:
        if change.verb == backends.ADD:
            haproxy.add(change.endpoint, change.id)
        else:
            haproxy.weigh(change.backend, change.name, change.endpoint.weight)
        return
    if change.verb in (backends.WAKE, backends.SLEEP):
        haproxy.wake(change.backend, change.verb == backends.WAKE)
        return
    verbs = {backends.READY: haproxy.ready, backends.DRAIN: haproxy.drain, backends.SEVER: haproxy.sever, backends.REMOVE: haproxy.remove}
    verbs[change.verb](change.backend, change.name)


def apply_replicas(plan: replicas.Plan, config: Config, slurm: Slurm, memory: Memory, now: float, applied: Applied) -> None:
    """Apply a plan of the replicas planner: submit at most ``site.max_submissions``, release, ask, end."""
    refused: set[tuple[str, bool]] = set()
    began = time.monotonic()
    for order in plan.submit[: config.site.max_submissions]:
        if time.monotonic() - began > config.site.command_timeout:
            break  # Slurm is slow: look again before asking for more
        phrase = f"submit {order.service}" + (" (opportunistic)" if order.opportunistic else "") + (" (canary)" if order.canary else "")
        kind = (order.service, order.canary)
        # One refusal is enough: the service's next one would be the same.
        if kind not in refused and not applied.attempt(phrase, partial(_submit, config, order, slurm, memory)):
            refused.add(kind)
    for job_id in plan.release:
        applied.attempt(f"release {job_id}", partial(slurm.release, job_id))
    if plan.leave and applied.attempt(_jobs("ask to end", plan.leave), partial(slurm.leave, plan.leave)):
        memory.asked.update(dict.fromkeys(plan.leave, now))
    if plan.end:
        applied.attempt(_jobs("end", plan.end), partial(slurm.cancel, plan.end))


def _jobs(verb: str, ids: Iterable[int]) -> str:
    return f"{verb} {', '.join(map(str, ids))}"


def _submit(config: Config, order: replicas.Order, slurm: Slurm, memory: Memory) -> None:
    try:
        with open(config.site.job_template, encoding="utf-8") as file:
            template = file.read()
    except OSError as error:
        raise ConfigError(f"{config.site.job_template}: {error.strerror}; run site.yml, which writes it") from error
    service = config.canaries[order.service].service if order.canary else config.services[order.service]
    text = script(template, config.site, service, order.opportunistic, order.avoid, order.outside)
    memory.submitted(slurm.submit(text))

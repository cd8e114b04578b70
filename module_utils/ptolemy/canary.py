"""How a rollout's canary fares, in lines for people: on its way to its start, and under its share of the requests.

Looks at what the daemon last wrote; one look, no waiting. The module ``ptolemy_wait`` repeats it.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from .config import Canary, Config
from .errors import ConfigError, PtolemyError
from .gateway import host_port
from .progress import Look, Row, doubts, row_of, servers_of
from .record import READY
from .slurm import RUNNING

ENOUGH = 20  # answers of which a mean time is compared with others
NOTICEABLE = 50  # milliseconds; what is slower by less is never called slow


class Trial:
    """A service's canary: what the services file says, and what the daemon says.

    Args:
        config: the services file as it is now; the daemon may not have taken it up yet.
        status: what the daemon last wrote.
        name: the service.

    Raises:
        ConfigError: the service has no canary.
        PtolemyError: a replica of it has failed: waiting would not help.
    """

    def __init__(self, config: Config, status: Row, name: str) -> None:
        if name not in config.canaries:
            raise ConfigError(f"{name}: no rollout is going on; rollout.yml begins one")
        self._name = name
        self._canary: Canary = config.canaries[name]
        row = row_of(status, name) or {}
        told: Mapping[str, Any] = row.get("canary") or {}
        revision = self._canary.service.revision
        self._taken_up = (told.get("revision"), told.get("share")) == (revision, self._canary.share)
        self._servers: list[Row] = row.get("servers", [])
        self._replicas: list[Row] = [replica for replica in row.get("replicas", []) if replica["revision"] == revision]
        if self._taken_up and told["failures"]:
            last = told["failures"][-1]
            raise PtolemyError(f"{name}: the canary (job {last['job']}) failed on {last['node'] or 'no node'}: {last['reason']}")

    def started(self, status: Row, now: float) -> Look:
        """Look whether it is ready, though no client reaches it yet."""
        stale = list(doubts(status, now))
        waiting = [replica["reason"] for replica in self._replicas if replica["slurm"] == "PENDING"]
        step = "ptolemy status on the gateway, and the job's log on its node"
        if waiting:
            step = f"the canary waits for Slurm ({', '.join(waiting)}): squeue --start on the gateway, or free a GPU with scale.yml"
        return Look(not stale and bool(self._ready()), [*stale, *self._lines()], step)

    def watched(self, status: Row, now: float, seconds: float, max_error_rate: float, max_slowdown: float) -> Look:
        """Look how it does among clients.

        Args:
            status: what the daemon last wrote.
            now: Unix time.
            seconds: for which it is watched.
            max_error_rate: the greatest share of its requests that may end in an error.
            max_slowdown: how many times as long as the others it may take to its first byte.

        Raises:
            PtolemyError: it does worse than that.
        """
        stale = list(doubts(status, now))
        on_trial = [server for replica in self._replicas for server in servers_of(replica, self._servers)]
        others = [server for server in self._servers if server not in on_trial and server["admin"] == "ready"]
        requests, errors, took = _sums(on_trial)
        _, _, others_took = _sums(others)
        if errors > max_error_rate * requests:
            raise PtolemyError(
                f"{self._name}: {errors} of the canary's {requests} requests ended in an error; {max_error_rate:.1%} were allowed"
            )
        if requests >= ENOUGH and others and took > max(others_took * max_slowdown, others_took + NOTICEABLE):
            raise PtolemyError(
                f"{self._name}: the canary takes {took:.0f} ms to the first byte, the others {others_took:.0f} ms; "
                f"{max_slowdown:g} times as long was allowed"
            )
        spent = now - self._canary.shared_at
        serves = self._taken_up and any(server["up"] for server in on_trial)
        line = f"{self._name}: the canary has answered {requests} requests, {errors} errors, first byte after {took:.0f} ms"
        line += f" (the others: {others_took:.0f} ms)" if others else ""
        shown = f"{line}; watched for {min(spent, seconds):.0f} of {seconds:g} s"
        return Look(not stale and serves and spent >= seconds, [*stale, shown], "ptolemy status on the gateway")

    def endpoints(self) -> list[str]:
        """The URLs of its endpoints, empty until it is ready."""
        return [f"http://{host_port(replica['address'], port)}" for replica in self._ready() for port in replica["ports"]]

    def _ready(self) -> list[Row]:
        return [replica for replica in self._replicas if replica["slurm"] == RUNNING and replica["state"] == READY and replica["address"]]

    def _lines(self) -> Iterator[str]:
        head = f"{self._name}: canary of revision {self._canary.service.revision} (model {self._canary.service.model})"
        if not self._taken_up:
            yield f"{head}: ptolemyd has not taken the services file up yet"
        elif not self._replicas:
            yield f"{head}: to be submitted"
        for replica in self._replicas:
            where = f"on {replica['host']}" if replica["host"] else f"waiting ({replica['reason']})"
            yield f"{head}: job {replica['job']} {where}: {replica['state']}"


def _sums(servers: list[Row]) -> tuple[int, int, float]:
    """Requests, errors, and the mean time to the first byte in milliseconds."""
    requests = sum(server["requests"] for server in servers)
    took = sum(server["response_ms"] * server["requests"] for server in servers) / requests if requests else 0.0
    return requests, sum(server["errors"] for server in servers), took

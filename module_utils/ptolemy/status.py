"""What people see: ``ptolemy status`` and ``ptolemy wait``, from what the daemon last wrote."""

from __future__ import annotations

import json
import time
from typing import Any, Iterator, Mapping

from .errors import PtolemyError

DEAD_AFTER = 60.0  # seconds without a word from the daemon, above its longest tick


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
        yield (
            f"{service['service']}: {service['replicas_ready']} of {service['replicas_wanted']} replicas ready, "
            f"{service['in_flight']} requests running, {service['queued']} queued "
            f"(model {service['model']}, revision {service['revision']})"
        )
        for replica in service["replicas"]:
            ends = f", {_span(replica['ends'] - now)} left" if replica["ends"] > now else ""
            where = f" on {replica['host']}" if replica["host"] else f" ({replica['reason']})"
            old = "" if replica["revision"] == service["revision"] else f", revision {replica['revision']}"
            yield f"  job {replica['job']} {replica['slurm']}{where}: {replica['state']}{old}{ends} {replica['why']}".rstrip()
        for server in service["servers"]:
            health = "up" if server["up"] else "down"
            busy = f"{server['in_flight']} of {server['slots']} slots busy"
            yield f"    {server['name']} {server['address']} {server['admin']} {health}, {busy}"
    change = status["last_change"]
    yield f"last change {_clock(change['at'])}: {change['sentence']}" if change["sentence"] else "no change since ptolemyd started"


def wait(path: str, timeout: float) -> bool:
    """Wait until every service has all its replicas ready, saying so whenever something changed.

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
            done = fresh and all(row["replicas_ready"] >= row["replicas_wanted"] for row in status["services"])
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

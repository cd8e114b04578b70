"""``ptolemy exporter``: what the daemon last wrote, for Prometheus and for the status page, and where Prometheus finds llama-servers.

A process of its own, so that no visitor can hold up the control loop. The text format is Prometheus' exposition format 0.0.4, https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Iterator, Mapping, Sequence

from . import record, status
from .config import load
from .errors import ConfigError, PtolemyError
from .slurm import RUNNING
from .watch import KEY_HEADER, Watch

PATIENCE = 5.0  # seconds that a visitor may take to say what they want
STATES = ("ready", "starting", "asleep", "off")
WAITING = "waiting"
KINDS = (WAITING, *record.STATES)
TARGETS = "/targets/"
# The shape of the gateway's own errors, see roles/haproxy.
UNKNOWN = json.dumps(
    {
        "error": {
            "message": "ptolemyd gives no answer: the status is not known.",
            "type": "server_error",
            "param": None,
            "code": "status_unknown",
        }
    }
).encode()
TEXT, JSON = "text/plain; version=0.0.4; charset=utf-8", "application/json"


def metrics(seen: Mapping[str, Any]) -> Iterator[str]:
    """The lines for one status, as ``status.read`` gives it."""
    counters = seen["counters"]
    yield from _metric("status_timestamp_seconds", "gauge", "When ptolemyd last wrote its status.", [({}, seen["time"])])
    yield from _metric(
        "observation_timestamp_seconds", "gauge", "When ptolemyd last saw both Slurm and HAProxy.", [({}, seen["observed_at"])]
    )
    yield from _metric("stale", "gauge", "1 while Slurm or HAProxy gives no answer.", [({}, int(bool(seen["stale_reason"])))])
    yield from _metric("troubles", "gauge", "What ptolemyd complains about now.", [({}, len(seen["troubles"]))])
    yield from _metric("ticks_total", "counter", "Turns of the control loop.", [({}, counters["ticks"])])
    yield from _metric("skipped_ticks_total", "counter", "Turns in which Slurm or HAProxy gave no answer.", [({}, counters["skipped"])])
    yield from _metric("changes_total", "counter", "Changes to servers and jobs.", [({}, counters["changes"])])
    yield from _metric("failed_changes_total", "counter", "Changes that failed.", [({}, counters["failed_changes"])])

    services = seen["services"]
    states = [({"service": row["service"], "state": state}, int(row["state"] == state)) for row in services for state in STATES]
    yield from _metric("service_state", "gauge", "1 for the state that the service is in.", states)
    for name, key, words in (
        ("replicas_wanted", "replicas_wanted", "Replicas that the service should have."),
        ("replicas_ready", "replicas_ready", "Replicas of the present revision that serve."),
        ("requests_running", "in_flight", "Requests that servers are answering."),
        ("demand_slots", "demand", "Slots that the service needs, smoothed."),
        ("batch_at_once", "batch_at_once", "Batch requests that may be let through at once."),
    ):
        yield from _metric(name, "gauge", words, [({"service": row["service"]}, row[key]) for row in services])
    slots = [({"service": row["service"]}, sum(server["slots"] for server in row["servers"] if server["up"])) for row in services]
    yield from _metric("slots", "gauge", "Slots of the servers that are up.", slots)
    for name, key, words in (
        ("queue_requests", "queued", "Requests that wait."),
        ("queue_oldest_wait_seconds", "oldest_wait", "How long the first of them has waited."),
    ):
        tiers = [({"service": row["service"], "tier": tier}, queue[key]) for row in services for tier, queue in row["tiers"].items()]
        yield from _metric(name, "gauge", words, tiers)
    arrived = [({"service": row["service"]}, row["arrived"]) for row in services]
    yield from _metric("requests_total", "counter", "Requests that came to the service since HAProxy was started or reloaded.", arrived)
    yield from _replicas(services)


def _replicas(services: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What becomes of replicas and rollouts."""
    kinds = [
        ({"service": row["service"], "state": kind}, sum(_kind(replica) == kind for replica in row["replicas"]))
        for row in services
        for kind in KINDS
    ]
    yield from _metric("replicas", "gauge", "Replica jobs by their state; waiting is for a GPU.", kinds)
    gpus = [
        ({"service": row["service"], "node": node}, sum(len(replica["gpus"]) for replica in row["replicas"] if replica["host"] == node))
        for row in services
        for node in sorted({replica["host"] for replica in row["replicas"] if replica["host"]})
    ]
    yield from _metric("gpus", "gauge", "GPUs that the service's replicas have on a node.", gpus)
    old = [({"service": row["service"]}, sum(_is_old(replica, row) for replica in row["replicas"])) for row in services]
    yield from _metric("replicas_outdated", "gauge", "Replicas of neither the present revision nor the canary's.", old)
    failed = [({"service": row["service"]}, len(row["failures"])) for row in services]
    yield from _metric("replica_failures", "gauge", "Replicas of the present revision that failed lately; 0 as soon as one serves.", failed)
    canaries = [({"service": row["service"]}, row["canary"]) for row in services if row["canary"]]
    if not canaries:
        return
    for name, key, words in (
        ("rollout_start_timestamp_seconds", "asked_at", "When the rollout that is going on began."),
        ("rollout_share", "share", "Share of the requests that its canary has; 0 while it starts and is tested."),
    ):
        yield from _metric(name, "gauge", words, [(labels, canary[key]) for labels, canary in canaries])
    failed = [(labels, len(canary["failures"])) for labels, canary in canaries]
    yield from _metric("rollout_failures", "gauge", "Canaries of the rollout that failed.", failed)


def _kind(replica: Mapping[str, Any]) -> str:
    """One of ``KINDS``. A job without a record of this run of it is starting."""
    if replica["slurm"] != RUNNING:
        return WAITING
    return replica["state"] if replica["state"] in record.STATES else record.STARTING


def _is_old(replica: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    present = (row["revision"], row["canary"]["revision"] if row["canary"] else row["revision"])
    return bool(replica["revision"]) and replica["revision"] not in present


def _metric(name: str, kind: str, words: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    yield f"# HELP ptolemy_{name} {words}"
    yield f"# TYPE ptolemy_{name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{label}="{text}"' for label, text in labels.items())  # names of services need no quoting
        yield f"ptolemy_{name}{{{shown}}} {value}" if shown else f"ptolemy_{name} {value}"


def handler(path: str, watch: Watch) -> type[BaseHTTPRequestHandler]:
    """Answers GET /metrics from the status file ``path``, /status.json and /targets/SERVICE from ``watch``; 503 where nothing is known."""

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_GET(self) -> None:
            if self.path == "/metrics":
                return self._metrics()
            if self.path == "/status.json":
                return self._document()
            if self.path.startswith(TARGETS):
                return self._targets(self.path[len(TARGETS) :])
            return self._answer(404, TEXT, b"see /metrics, /status.json and /targets/SERVICE\n")

        def _targets(self, service: str) -> None:
            """Where the status is old or there is no such service, Prometheus keeps what it was told before."""
            try:
                found = watch.targets(service, time.time())
            except (PtolemyError, KeyError, TypeError) as error:
                return self._answer(503, TEXT, f"{error}\n".encode())
            if found is None:
                return self._answer(404, TEXT, b"no such service\n")
            return self._answer(200, JSON, json.dumps(found).encode())

        def _metrics(self) -> None:
            try:
                return self._answer(200, TEXT, ("\n".join(metrics(status.read(path))) + "\n").encode())
            except (PtolemyError, KeyError, TypeError) as error:
                return self._answer(503, TEXT, f"{error}\n".encode())

        def _document(self) -> None:
            try:
                body, secret = watch.document(self.headers.get(KEY_HEADER, ""), time.time())
                # HAProxy may give everybody the same answer for a second, but never an operator's.
                return self._answer(200, JSON, body, "no-store" if secret else "max-age=1")
            except (PtolemyError, KeyError, TypeError):
                # Everybody reads this: the reason may hold a path, and stands in the journal and in `ptolemy status`.
                return self._answer(503, JSON, UNKNOWN)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, code: int, kind: str, body: bytes, cache: str = "no-store") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", cache)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of every scrape."""

    return Handler


def main(services_file: str, listen: str, key_file: str = "") -> int:
    """Answer on ``listen`` (HOST:PORT) until SIGTERM or SIGINT; ``key_file`` holds the site's backend key, or is not there.

    Raises:
        ConfigError: the services file is wrong, or the address cannot be used.
    """
    path = load(services_file).site.status_file
    watch = Watch(services_file, key_file)
    host, _, port = listen.rpartition(":")
    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), handler(path, watch))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"--listen {listen}: {error}") from error
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    print(f"answering http://{host}:{server.server_port}/metrics from {path}", file=sys.stderr, flush=True)
    looking = threading.Thread(target=watch.run, args=(stop,))
    looking.start()
    with server:
        server.serve_forever()
    stop.set()
    looking.join(PATIENCE)
    return 0

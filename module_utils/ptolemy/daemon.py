"""ptolemyd: the control loop under systemd. It keeps no state on disk: every start plans anew from Slurm and HAProxy."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from functools import partial
from typing import Any, Sequence

from . import controller, keys, status
from .clock import SteadyClock
from .config import Config, Service, load
from .errors import ConfigError, ObservationError, PtolemyError
from .files import put, stamp_of
from .gateway import Gateway
from .haproxy import HAProxy
from .memory import Memory
from .prompts import Prompts
from .record import STARTING
from .slurm import RUNNING, Job, Slurm

log = logging.getLogger("ptolemyd")

HURRY = 4  # so many times as often the loop turns while replicas start or leave
USERS_EVERY = 5.0  # seconds between two looks at who asks how much
MOST_USERS = 50  # of them are told


class Daemon:
    """The loop of DESIGN.md: observe, plan, apply, about once a second.

    Args:
        path: the services file; a change to it takes effect with the next tick.

    Raises:
        ConfigError: the services file is wrong at the start. Later a wrong one is logged, and the last good one stays.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._config_stamp = stamp_of(path)
        self._config = load(path)
        self._connect()
        self._clock = SteadyClock()
        self._memory = Memory()
        self._prompts = Prompts()
        self._keys_stamp: tuple[int, ...] = ()
        self._jobs: Sequence[Job] = ()
        self._observed_at = 0.0
        self._shown: Sequence[Any] = ()
        self._troubles: list[str] = []
        self._counters = {"ticks": 0, "skipped": 0, "changes": 0, "failed_changes": 0}
        self._last = {"sentence": "", "at": 0.0}
        self._users_at = -USERS_EVERY

    @property
    def config(self) -> Config:
        """The services file in force."""
        return self._config

    @property
    def pause(self) -> float:
        """Seconds from one tick to the next: fewer while replicas start or leave, so that nothing waits for the loop."""
        moving = self._memory.asked or any(job.state == RUNNING and job.record and job.record.state == STARTING for job in self._jobs)
        return self._config.site.interval / (HURRY if moving else 1)

    def _connect(self) -> None:
        site = self._config.site
        self._slurm = Slurm(site.uid, site.command_timeout)
        self._haproxy = HAProxy(site.haproxy_socket, site.awake_map, site.states_map)

    def tick(self) -> str:
        """One turn of the loop. Returns one sentence on what it changed, or an empty string.

        Where Slurm gives no answer, nothing is taken away and no job is touched; where HAProxy gives none, nothing is done.
        """
        self._counters["ticks"] += 1
        troubles: list[str] = []
        self._reload(troubles)
        applied = controller.Applied()
        try:
            gateway = self._haproxy.observe()
        except ObservationError as error:
            return self._skip([*troubles, str(error)], applied)
        gateway = self._prompts.fill(self._config, gateway, time.monotonic())
        self._publish_keys(gateway, troubles)
        try:
            jobs = self._slurm.jobs(self._memory.expected(gateway))
            nodes = self._slurm.nodes()
        except ObservationError as error:
            controller.apply_backends(controller.restore(self._config, self._jobs, gateway), self._haproxy, applied)
            return self._skip([*troubles, str(error)], applied)
        self._jobs, self._observed_at = jobs, time.time()
        now, step = self._clock.now()
        if step:
            log.warning("the clock was set by %+.0f s; what depends on the time of day follows it slowly", step)
        self._memory.learn(self._config, jobs, gateway, now)
        decision = controller.decide(self._config, jobs, nodes, gateway, self._memory, now)
        controller.apply_backends(decision.backends, self._haproxy, applied)
        controller.apply_gates(decision.gates, self._haproxy, applied)
        controller.apply_replicas(decision.replicas, self._config, self._slurm, self._memory, now, applied)
        self._shown = status.describe(self._config, jobs, gateway, self._memory)
        self._tell_states(gateway, applied)
        self._tell_users()
        self._warn([*troubles, *decision.notes, *applied.failed])
        return self._close(applied)

    def _reload(self, troubles: list[str]) -> None:
        stamp = stamp_of(self._path)
        if stamp == self._config_stamp:
            return
        try:
            self._config = load(self._path)
        except ConfigError as error:
            troubles.append(f"{error} (the last good one stays in force)")
            return
        self._config_stamp = stamp
        self._connect()
        log.info("read %s: %s", self._path, ", ".join(self._config.services) or "no services")

    def _publish_keys(self, gateway: Gateway, troubles: list[str]) -> None:
        """Give HAProxy the keys where their file changed, or where another process answers. Whoever changes the file does so, too."""
        path = self._config.site.keys_file
        stamp = (gateway.pid, *stamp_of(path))
        if stamp == self._keys_stamp:
            return
        try:
            changed = keys.publish(path, self._haproxy)
        except PtolemyError as error:
            troubles.append(str(error))
            return
        self._keys_stamp = stamp
        if changed:
            log.info("%d entries of the keys' map brought in line with %s", changed, path)

    def _tell_states(self, gateway: Gateway, applied: controller.Applied) -> None:
        for row in self._shown:
            service = row["service"]
            slots = sum(server["slots"] for server in row["servers"] if server["up"] and server["admin"] == "ready")
            facts = (
                (service, row["state"], f"{service} is {row['state']}"),
                (f"{service}/revision", row["revision"], f"{service} has the revision {row['revision']}"),
                (f"{service}/slots", str(slots), f"{service} has {slots} slots"),
                (f"{service}/about", about(self._config.services[service]), f"{service} runs {row['model']}"),
            )
            for key, value, sentence in facts:
                # A gateway that was not yet configured anew has no such entry, and `set map` would fail.
                if gateway.states.get(key, value) != value:
                    applied.attempt(sentence, partial(self._haproxy.tell, key, value))

    def _tell_users(self) -> None:
        """Who asks how much, for operators. Nobody's answers depend on it, so that a failure is no trouble: what it tells gets old."""
        began = time.monotonic()
        if began - self._users_at < USERS_EVERY:
            return
        self._users_at = began
        try:
            users = self._haproxy.users()[:MOST_USERS]
        except ObservationError as error:
            log.debug("%s", error)
            return
        shown = [{"user": user.name, "requests": user.requests, "per_minute": user.per_minute} for user in users]
        # Of the account's group, which the exporter has: what people do is not everybody's business.
        _replace(self._config.site.users_file, {"time": time.time(), "users": shown}, 0o640)

    def _skip(self, reasons: Sequence[str], applied: controller.Applied) -> str:
        self._counters["skipped"] += 1
        self._warn([*reasons, *applied.failed])
        return self._close(applied, stale_reason=reasons[-1])

    def _close(self, applied: controller.Applied, stale_reason: str = "") -> str:
        self._counters["changes"] += len(applied.done)
        self._counters["failed_changes"] += len(applied.failed)
        sentence = "; ".join(applied.done)
        if sentence:
            self._last = {"sentence": sentence, "at": time.time()}
        self._write_status(stale_reason)
        return sentence

    def _warn(self, troubles: Sequence[str]) -> None:
        """Log a trouble when it begins and when it is over; meanwhile ``ptolemy status`` shows it."""
        for trouble in troubles:
            if trouble not in self._troubles:
                log.warning("%s", trouble)
        for over in self._troubles:
            if over not in troubles:
                log.info("over: %s", over)
        self._troubles = list(dict.fromkeys(troubles))

    def _write_status(self, stale_reason: str) -> None:
        """Tell people and monitoring; the daemon itself never reads it back."""
        shown = {
            "time": time.time(),
            "observed_at": self._observed_at,
            "stale_reason": stale_reason,
            "last_change": self._last,
            "counters": self._counters,
            "troubles": self._troubles,
            "services": self._shown,
        }
        _replace(self._config.site.status_file, shown, 0o644)


def main(path: str) -> int:
    """Run until SIGTERM or SIGINT.

    Raises:
        ConfigError: as ``Daemon``.
        PtolemyError: another ptolemyd runs on this host.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # journald adds the time
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    daemon = Daemon(path)
    only_one = lock(os.path.dirname(daemon.config.site.status_file))
    log.info("keeping %s", ", ".join(daemon.config.services) or "no services")
    notify("READY=1")
    while not stop.is_set():
        began = time.monotonic()
        sentence = daemon.tick()
        if sentence:
            log.info("%s", sentence)
        notify("WATCHDOG=1")
        stop.wait(max(daemon.pause - (time.monotonic() - began), 0.05))
    notify("STOPPING=1")
    os.close(only_one)
    return 0


def lock(directory: str) -> int:
    """Make sure that no other ptolemyd runs on this host. The kernel gives the lock up when the process ends, however it ends.

    Args:
        directory: the daemon's own; in it a directory is made that only its account may open, and that is locked.

    Returns:
        The open file descriptor that holds the lock.

    Raises:
        PtolemyError: another one holds it, or the directory cannot be used.
    """
    path = os.path.join(directory, "only-one")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PtolemyError(f"{path}: {error.strerror}; run ptolemyd as the service account, by systemctl start ptolemyd") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise PtolemyError("another ptolemyd runs on this host; see systemctl status ptolemyd") from error
    return descriptor


def notify(message: str) -> None:
    """Tell systemd, where it asked to be told: sd_notify(3) by its socket protocol. Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        log.debug("systemd was not told %s", message)


def about(service: Service) -> str:
    """What /v1/models says that a service runs: keys of a JSON object, without a space, which would end a word for HAProxy."""
    return json.dumps(service.about, separators=(",", ":"))[1:-1]


def _replace(path: str, shown: Any, mode: int) -> None:
    """Write JSON to a file in one step; a failure is logged."""
    try:
        put(path, json.dumps(shown), mode)  # not dump, which takes five times as long
    except OSError as error:
        log.warning("%s: %s", path, error.strerror)

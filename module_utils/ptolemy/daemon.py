"""ptolemyd: the control loop under systemd. It keeps no state: every start plans anew from Slurm and HAProxy."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from typing import AbstractSet, Any, Sequence

from . import controller
from .config import Config, load
from .errors import ConfigError, ObservationError
from .haproxy import HAProxy
from .slurm import Job, Slurm

log = logging.getLogger("ptolemyd")

REMIND = 60.0  # seconds until a lasting trouble is logged again


class Daemon:
    """The loop of DESIGN.md: observe, plan, apply, about once a second.

    Args:
        path: the services file; a change to it takes effect with the next tick.

    Raises:
        ConfigError: the services file is wrong at the start. Later a wrong one is logged, and the last good one stays.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._config_stamp = _stamp(path)
        self._config = load(path)
        self._connect()
        self._jobs: Sequence[Job] = ()
        self._suspected: AbstractSet[tuple[str, str]] = frozenset()
        self._observed_at = 0.0
        self._shown: Sequence[Any] = ()
        self._troubles: dict[str, float] = {}
        self._counters = {"ticks": 0, "skipped": 0, "changes": 0, "failed_changes": 0}
        self._last = {"sentence": "", "at": 0.0}

    @property
    def config(self) -> Config:
        """The services file in force."""
        return self._config

    def _connect(self) -> None:
        site = self._config.site
        self._slurm = Slurm(site.uid, site.command_timeout)
        self._haproxy = HAProxy(site.haproxy_socket)

    def tick(self) -> str:
        """One turn of the loop. Returns one sentence on what it changed, or an empty string.

        Where Slurm gives no answer, nothing is taken away and no job is touched; where HAProxy gives none, nothing is done.
        """
        self._counters["ticks"] += 1
        troubles: list[str] = []
        self._reload(troubles)
        applied = controller.Applied()
        try:
            self._jobs = self._slurm.jobs()
            slurm_trouble = ""
        except ObservationError as error:
            slurm_trouble = str(error)
        try:
            gateway = self._haproxy.observe()
        except ObservationError as error:
            return self._skip([*troubles, *filter(None, [slurm_trouble]), str(error)], applied)
        if slurm_trouble:
            controller.apply_backends(controller.restore(self._config, self._jobs, gateway), self._haproxy, applied)
            return self._skip([*troubles, slurm_trouble], applied)
        self._observed_at = time.time()
        decision = controller.decide(self._config, self._jobs, gateway, self._observed_at, self._suspected)
        self._suspected = decision.backends.suspected
        controller.apply_backends(decision.backends, self._haproxy, applied)
        controller.apply_replicas(decision.replicas, self._config, self._slurm, applied)
        self._warn([*troubles, *decision.notes, *applied.failed])
        self._shown = controller.summary(self._config, self._jobs, gateway)
        return self._close(applied)

    def _reload(self, troubles: list[str]) -> None:
        stamp = _stamp(self._path)
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
        """Log a trouble when it begins, once a minute while it lasts, and when it is over."""
        now = time.monotonic()
        for trouble in troubles:
            if now - self._troubles.get(trouble, float("-inf")) >= REMIND:
                log.warning("%s", trouble)
                self._troubles[trouble] = now
        for over in self._troubles.keys() - set(troubles):
            if now - self._troubles[over] >= self._config.site.interval:
                log.info("over: %s", over)
                del self._troubles[over]

    def _write_status(self, stale_reason: str) -> None:
        """Tell people and monitoring; the daemon itself never reads it back."""
        path = self._config.site.status_file
        status = {
            "time": time.time(),
            "observed_at": self._observed_at,
            "stale_reason": stale_reason,
            "last_change": self._last,
            "counters": self._counters,
            "troubles": sorted(self._troubles),
            "services": self._shown,
        }
        try:
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(status, file)
            os.replace(path + ".new", path)
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)


def main(path: str) -> int:
    """Run until SIGTERM or SIGINT. Raises ConfigError as ``Daemon``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # journald adds the time
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    daemon = Daemon(path)
    log.info("keeping %s", ", ".join(daemon.config.services) or "no services")
    notify("READY=1")
    while not stop.is_set():
        began = time.monotonic()
        sentence = daemon.tick()
        if sentence:
            log.info("%s", sentence)
        notify("WATCHDOG=1")
        stop.wait(max(daemon.config.site.interval - (time.monotonic() - began), 0.05))
    notify("STOPPING=1")
    return 0


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


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)

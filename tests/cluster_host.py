"""What the tests that need a cluster know of it: its hosts, its gateway, and how to wait for something."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent / "load"))

from chat_load import Load

from turns import PATIENCE

ROOT = Path(__file__).parents[1]
SERVICES = ("demo", "demo-b")
REQUESTS = int(os.environ.get("PTOLEMY_TEST_REQUESTS", "1000"))  # that a load has at least
MOST_REQUESTS = 100_000
THOROUGH = bool(os.environ.get("PTOLEMY_TEST_THOROUGH"))  # more kills, and tests that take minutes
STATUS = "/run/ptolemy/status.json"
OUTAGE = float(os.environ.get("PTOLEMY_TEST_OUTAGE", "10"))  # seconds without slurmctld


# What `podman exec` would set.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "container": "podman"}
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd")


class Cluster:
    """A lab that is up; see lab/verify for the environment."""

    def __init__(self) -> None:
        self.prefix = os.environ["PTOLEMY_TEST_PREFIX"]
        self.base_url = os.environ["PTOLEMY_TEST_BASE_URL"]
        self.api_key = Path(os.environ["PTOLEMY_TEST_API_KEY_FILE"]).read_text().strip()
        self._pid_files: dict[str, Path] = {}
        self._last_command = 0.0

    def pid(self, host: str) -> str:
        """The process on this machine that is a host's first, also once the host was killed and started again."""
        if host not in self._pid_files:
            inspect = ["podman", "container", "inspect", "--format", "{{.PidFile}}", f"{self.prefix}-{host}"]
            shown = subprocess.run(inspect, check=True, capture_output=True, text=True, timeout=60).stdout
            self._pid_files[host] = Path(shown.strip())
        return self._pid_files[host].read_text().strip()

    def run(self, host: str, *argv: str, user: str = "root", check: bool = True, stdin: str | None = None, timeout: float = 60) -> str:
        """Run a command on a host; returns what it printed.

        Tests ask all the time, and `podman exec` costs a quarter of a second. lab/connection_plugins says why nsenter is called twice.
        """
        enter = ["nsenter", "--no-fork", "--target", self.pid(host)]
        command = [*enter, "--pid", "/bin/sh", "-c", '"$@"; exit $?', "sh", *enter, *NAMESPACES]
        command += [*(() if user == "root" else ("runuser", "-u", user, "--")), *argv]
        done = subprocess.run(command, input=stdin or "", env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False)
        self._last_command = time.time()
        assert not (check and done.returncode), f"{' '.join(argv)} on {host}: {done.returncode} {done.stderr}{done.stdout}"
        return done.stdout

    def path(self, host: str, path: str) -> Path:
        """A file of a host, as this machine sees it."""
        return Path(f"/proc/{self.pid(host)}/root{path}")

    def ansible(self, *arguments: str) -> dict:
        """Run `ansible` on the head as an administrator would; returns the module's result."""
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.json"}
        environment["ANSIBLE_LOAD_CALLBACK_PLUGINS"] = "true"
        done = subprocess.run(
            ["ansible", "--inventory", str(ROOT / "inventory/lab"), "head", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "{" in done.stdout, done.stderr
        # Other callbacks print their own lines behind the JSON.
        result, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])
        return result["plays"][0]["tasks"][0]["hosts"]["head"]

    def status(self) -> dict:
        """What ptolemyd has written: up to a second ago, so perhaps before what a test has just done."""
        return json.loads(self.path("head", STATUS).read_text())

    def service(self, name: str) -> dict:
        return next(row for row in self.status()["services"] if row["service"] == name)

    def servers(self, name: str) -> dict[str, dict]:
        """What HAProxy itself has for a service, by server name."""
        rows = self.haproxy("show servers state svc_" + name).splitlines()
        columns = rows[1].lstrip("# ").split()
        found = (dict(zip(columns, row.split())) for row in rows[2:] if row.strip())
        return {row["srv_name"]: row for row in found if row["srv_name"].startswith("j")}

    def haproxy(self, command: str) -> str:
        """Ask HAProxy's admin socket."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(10)
            admin.connect(str(self.path("head", "/run/haproxy/admin.sock")))
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()

    def total(self, server: str) -> int:
        """How many sessions a server has had."""
        for row in self.haproxy("show stat -1 4 -1").splitlines():
            if f",{server}," in row:
                return int(row.split(",")[7])
        return 0

    def until(self, condition, what: str, timeout: float = PATIENCE) -> float:
        """Wait for a condition; returns the seconds it took."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(AssertionError, json.JSONDecodeError, OSError):
                if condition():
                    return time.monotonic() - began
            if time.monotonic() - began > timeout:
                shown = self.run("head", "sh", "-c", "ptolemy status; squeue; journalctl -n 20 --no-pager -u ptolemyd", check=False)
                raise AssertionError(f"not within {timeout:g} s: {what}\n{shown}")
            time.sleep(0.1)

    def jobs(self, service: str) -> list[int]:
        """The ids of a service's replicas."""
        return [row["job"] for row in self.service(service)["replicas"]]

    def until_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until every service has all its replicas, and nothing else is left, as seen after the last command on a host."""

        def settled() -> bool:
            status, written = self.status(), self.path("head", STATUS).stat().st_mtime
            return (
                written > self._last_command
                and not status["stale_reason"]
                and all(
                    row["replicas_ready"] == row["replicas_wanted"] == len(row["replicas"])
                    and all(server["up"] and server["admin"] == "ready" for server in row["servers"])
                    for row in status["services"]
                )
            )

        self.until(settled, "all replicas ready", timeout)

    def ticks(self, count: int = 2) -> None:
        """Let ptolemyd look a few more times."""
        first = self.status()["counters"]["ticks"]

        def looked() -> bool:
            nonlocal first
            now = self.status()["counters"]["ticks"]
            first = min(first, now)  # a new process counts afresh
            return now >= first + count

        self.until(looked, f"{count} ticks")

    @contextlib.contextmanager
    def service_as(self, name: str, **fields):
        """Run a service with other settings for a while, as an edited services file would have it."""
        path = "/etc/ptolemy/services.json"
        before = self.run("head", "cat", path)
        changed = json.loads(before)
        changed["services"][name] |= fields
        try:
            self.write("head", path, json.dumps(changed))
            self.ticks()
            yield
        finally:
            self.write("head", path, before)
            self.ticks()

    def write(self, host: str, path: str, text: str) -> None:
        """Replace a file in one step."""
        self.run(host, "sh", "-c", f"cat >{path}.new && chmod 644 {path}.new && mv {path}.new {path}", stdin=text)

    @contextlib.contextmanager
    def load(self, clients: int = 64, services: tuple[str, ...] = SERVICES, tokens: int = 4, least: int = REQUESTS, pause: float = 0.0):
        """Send a load beside the test's own steps: ``least`` requests, and more while the steps last.

        Without a pause the load takes all of the machine that is left, which a playbook needs, too.
        """
        load = Load(self.base_url, self.api_key, services, MOST_REQUESTS, clients, tokens, pause)
        thread = threading.Thread(target=lambda: asyncio.run(load.run()))
        thread.start()
        try:
            self.until(lambda: load.result.answered >= clients, "a load under way")
            yield load
            self.until(lambda: load.sent >= least, f"{least} requests sent", 600)
            assert load.sent < MOST_REQUESTS, "the load was over before the test's steps were"
        finally:
            load.enough = True
            thread.join(300)
        now = time.monotonic()
        waiting = ", ".join(f"{number} for {now - since:.0f} s" for number, since in sorted(load.pending.items()))
        assert not thread.is_alive(), f"unanswered after 300 s: requests {waiting}; so far: {load.result}"


class Played(NamedTuple):
    """How a playbook ended."""

    status: int
    shown: str

    @property
    def changed(self) -> int:
        """How many tasks changed something, of all hosts."""
        return sum(map(int, re.findall(r" changed=(\d+)", self.shown)))


def try_playbook(name: str, *options: str, **extra: object) -> Played:
    """Run a playbook on the lab as an administrator would, with options and extra variables."""
    done = subprocess.run(
        ["ansible-playbook", *options, "-i", str(ROOT / "inventory/lab"), f"playbooks/{name}.yml", "--extra-vars", json.dumps(extra)],
        cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return Played(done.returncode, done.stdout + done.stderr)


def playbook(name: str, *options: str, **extra: object) -> Played:
    """Run a playbook that must succeed."""
    played = try_playbook(name, *options, **extra)
    assert played.status == 0, played.shown
    return played


def podman(*arguments: str) -> None:
    """Do something to a container itself."""
    subprocess.run(["podman", *arguments], check=True, capture_output=True, timeout=120)


def in_network_of(cluster: Cluster, host: str, *argv: str) -> list[str]:
    """A command line that runs a program of this machine in a host's network."""
    return ["nsenter", "--target", cluster.pid(host), "--net", *argv]


def unharmed(load: Load) -> None:
    """Every request got its whole answer."""
    assert (load.result.errors, load.result.cut) == ({}, {})
    assert load.result.answered == load.sent


@pytest.fixture(scope="session")
def shared() -> Cluster:
    return Cluster()


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """The cluster, settled before each test."""
    shared.until_ready()
    return shared

"""A real HAProxy on loopback with the role's own configuration, rendered by Ansible as in production, without containers.

The tests of the gateway and its benchmark start the same one.
"""

from __future__ import annotations

import contextlib
import getpass
import grp
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptolemy import keys
from ptolemy.errors import ChangeError
from ptolemy.gateway import Endpoint
from ptolemy.haproxy import HAProxy

HERE = Path(__file__).parent
ROOT = HERE.parent
HAPROXY = os.environ.get("HAPROXY") or shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or ""
API_KEY = "sk-client-0123456789abcdef"
BACKEND_KEY = "bk-server-0123456789abcdef"
SERVICES: Mapping[str, Mapping[str, object]] = {
    "demo": {"context": 4096, "model": "tiny"},
    "demo-b.v1": {"context": 4096, "affinity": "conversation"},
    "draw": {"kind": "comfyui"},
}


def free_port() -> int:
    """A port of all addresses that nothing uses, and that the kernel gives to no outgoing connection before it is used."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(lowest // 2, lowest), 200):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise OSError(f"no free port from {lowest // 2} to {lowest}")


class Gateway:
    """One HAProxy in master-worker mode, as systemd runs it."""

    def __init__(self, name: str, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.port, self.stats_port, self.status_port = free_port(), free_port(), free_port()
        self.openwebui_port, self.openwebui_server_port = free_port(), free_port()
        self.log_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.log_socket.bind(("127.0.0.1", 0))
        self.log_socket.setblocking(False)
        self.admin_socket = directory / "admin.sock"
        self.ptolemyd = HAProxy(str(self.admin_socket), str(directory / "ptolemy" / "awake.map"), str(directory / "ptolemy" / "states.map"))
        self.process: subprocess.Popen[bytes] | None = None
        self.next_id = 1000
        self.scheme = "https" if settings.get("haproxy_tls_certificate") else "http"
        self.settings = {
            "haproxy_config_dir": str(directory),
            "haproxy_admin_socket": str(self.admin_socket),
            "haproxy_hold_address": f"abns@ptolemy-test-{os.getpid()}-{name}",
            "haproxy_gate_address": f"abns@ptolemy-gate-{os.getpid()}-{name}",
            "haproxy_peers_address": f"abns@ptolemy-peers-{os.getpid()}-{name}",
            "haproxy_keys_file": str(directory / "keys.map"),
            "haproxy_port": self.port,
            "status_port": self.status_port,
            "haproxy_stats_bind": f"127.0.0.1:{self.stats_port}",
            "haproxy_log_target": f"127.0.0.1:{self.log_socket.getsockname()[1]}",
            "haproxy_hold_seconds": 300,
            "haproxy_queue_timeout": "1h",
            "haproxy_server_timeout": "1h",
            "haproxy_request_timeout": "30s",
            "haproxy_maxconn": 2000,
            "haproxy_bufsize": 262144,
            "haproxy_tls_certificate": "",
            "haproxy_status_page": True,
            "haproxy_user_header": "X-OpenWebUI-User-Id",
            "haproxy_openwebui_server": f"127.0.0.1:{self.openwebui_server_port}",
            "haproxy_openwebui_port": self.openwebui_port,
            "haproxy_openwebui_hostname": "chat.test",
            "haproxy_openwebui_wrong_logins": 3,
            **settings,
        }

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        with open(self.directory / "haproxy.log", "ab") as log:
            command = [HAPROXY, "-W", "-f", str(self.directory / "haproxy.cfg")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **unit_environment()})
        self.wait_for_worker(other_than="")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
            self.process = None

    def reload(self) -> None:
        self.wait_for_worker(other_than=self.worker(), reload_every=3)

    def wait_for_worker(self, other_than: str, reload_every: float = 0) -> None:
        began, signals = time.monotonic(), 0
        while (waited := time.monotonic() - began) < 20:
            # A master that has only just started its worker may miss the signal.
            if self.process and reload_every and waited >= signals * reload_every:
                self.process.send_signal(signal.SIGUSR2)
                signals += 1
            with contextlib.suppress(OSError):
                if self.worker() not in ("", other_than):
                    return
            time.sleep(0.02)
        raise AssertionError(f"no HAProxy: {(self.directory / 'haproxy.log').read_text()}")

    def worker(self) -> str:
        lines = self.ask("show info").splitlines()
        return next((line.split()[1] for line in lines if line.startswith("Pid:")), "")

    def ask(self, command: str) -> str:
        """Send one command of the runtime API."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.admin_socket))
            client.sendall(command.encode() + b"\n")
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        return answer.decode().strip()

    def add(self, service: str, name: str, port: int, slots: int = 4) -> None:
        """Add a server, by what ptolemyd itself uses."""
        self.next_id += 1
        self.ptolemyd.add(Endpoint(f"svc_{service}", name, "127.0.0.1", port, slots), self.next_id)
        self.ptolemyd.wake(f"svc_{service}", True)

    @contextlib.contextmanager
    def key(self, secret: str = "sk-other-0123456789abcdef", **fields: Any) -> Iterator[str]:
        """One more key for a while, made as `ptolemy keys` does."""
        key = keys.Key(**{"name": "other", "user": "other", "sha256": keys.fingerprint(secret), **fields})
        path = str(self.directory / "keys.map")
        keys.change(path, lambda present: keys.added(present, key))
        keys.publish(path, self.ptolemyd)
        try:
            yield secret
        finally:
            keys.change(path, lambda present: keys.revoked(present, key.name))
            keys.publish(path, self.ptolemyd)

    def remove(self, service: str, name: str) -> None:
        deadline = time.monotonic() + 5
        while True:
            try:
                return self.ptolemyd.remove(f"svc_{service}", name)
            except ChangeError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def servers(self, service: str) -> dict[str, str]:
        """The state of each server, by name."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines()]
        status = rows[0].index("status")
        return {r[1]: r[status] for r in rows if r[0] == f"svc_{service}" and r[1] not in ("BACKEND", "FRONTEND")}

    def busy(self, service: str, name: str) -> int:
        """How many requests a server is answering."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines()]
        return next(int(row[4]) for row in rows if row[:2] == [f"svc_{service}", name])

    def queued(self, service: str) -> int:
        """How many requests wait, by ptolemyd's own count: those in the queue, and those that `hold` has."""
        return self.ptolemyd.observe().queued[f"svc_{service}"]

    def log_lines(self) -> list[str]:
        lines = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.append(self.log_socket.recv(65536).decode())
        return lines


def unit_environment() -> dict[str, str]:
    """What the role's unit file sets for HAProxy."""
    unit = (ROOT / "roles" / "haproxy" / "templates" / "unit.conf.j2").read_text().splitlines()
    words = [word for line in unit if line.startswith("Environment=") for word in line.removeprefix("Environment=").split()]
    return dict(word.split("=", 1) for word in words)


def render(base: Path, gateways: Sequence[Gateway], services: Mapping[str, Mapping[str, object]] = SERVICES) -> None:
    """Write the role's files of each gateway into its directory.

    Args:
        base: for Ansible's own files.
        gateways: with their settings.
        services: what they serve.
    """
    group = grp.getgrgid(os.getgid()).gr_name
    variables: dict[str, Any] = {
        "ptolemy_services": services,
        "ptolemy_aliases": {"default": "demo", "gpt-4o-mini": "demo"},
        "ptolemy_api_key": API_KEY,
        "ptolemy_backend_key": BACKEND_KEY,
        "ptolemy_user": group,
        "haproxy_binary": HAPROXY,
        "haproxy_owner": getpass.getuser(),
        "variants": [gateway.settings for gateway in gateways],
        "ansible_python_interpreter": sys.executable,
    }
    if os.getuid() != 0:
        variables |= {"haproxy_user": getpass.getuser(), "haproxy_group": group, "haproxy_chroot": ""}
    (base / "vars.json").write_text(json.dumps(variables))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", "-e", f"@{base}/vars.json"]
    environment = {
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
        "ANSIBLE_LIBRARY": str(ROOT / "library"),
        "ANSIBLE_MODULE_UTILS": str(ROOT / "module_utils"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_LOCAL_TEMP": str(base),
        "ANSIBLE_REMOTE_TEMP": str(base),
    }
    done = subprocess.run(
        [*command, str(HERE / "render_gateway.yml")],
        cwd=base,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

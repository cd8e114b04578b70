"""What is measured: the stub servers, and the gateways before them, each as it would be set up for them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from local_gateway import API_KEY, Gateway, free_port, render
from processes import running, wait_for_port

HERE = Path(__file__).parent
SERVERS, SLOTS = 8, 32  # as two GPUs have it: four llama-servers of 32 slots each
MODEL = "demo"
BATCH_KEY = "sk-batch-0123456789abcdef"
NGINX_MODULES = "/usr/lib/nginx/modules"
LITELLM = "1.106.12"  # the newest whose `proxy` extra could be installed from the index
LITELLM_HOME = Path.home() / ".cache" / "ptolemy" / f"litellm-{LITELLM}"


@dataclass(frozen=True)
class Proxy:
    """Something that answers chats.

    Attributes:
        name: in tables.
        ports: of loopback; more than one only for the stub servers themselves.
        key: that a client sends.
        pid: the process whose descendants, with itself, are the proxy; 0 for the stub servers.
    """

    name: str
    ports: Sequence[int]
    key: str = API_KEY
    pid: int = 0


def needs(peers: Sequence[str]) -> list[str]:
    """Debian packages that a run lacks."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    wanted = {"haproxy": shutil.which(os.environ.get("HAPROXY", "haproxy"), path=path), "wrk": shutil.which("wrk", path=path)}
    wanted["nginx-light"] = shutil.which("nginx", path=path)
    wanted["libnginx-mod-http-lua"] = os.path.exists(f"{NGINX_MODULES}/ngx_http_lua_module.so") or None
    return [package for package, found in wanted.items() if not found]


def nginx(directory: Path, name: str, **values: object) -> contextlib.AbstractContextManager[int]:
    """Start an nginx with one of the configurations here."""
    text = Template((HERE / f"{name}.conf").read_text()).substitute(directory=directory, here=HERE, modules=NGINX_MODULES, **values)
    (directory / f"{name}.conf").write_text(text)
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx"
    return running([program, "-p", str(directory), "-c", str(directory / f"{name}.conf")], directory / f"{name}.log")


@contextlib.contextmanager
def stub_servers(directory: Path, servers: int = SERVERS, slots: int = SLOTS) -> Iterator[Proxy]:
    """The stub servers."""
    ports = [free_port() for _ in range(servers)]
    listen = "\n".join(f"    listen 127.0.0.1:{port} backlog=16384;" for port in ports)
    with nginx(directory, "stub", listen=listen, slots=slots) as pid:
        for port in ports:
            wait_for_port(port, directory / "stub.log")
        yield Proxy("direct", ports, pid=pid)


@contextlib.contextmanager
def ptolemy(directory: Path, ports: Sequence[int], slots: int = SLOTS, maxconn: int = 9900) -> Iterator[tuple[Proxy, Gateway]]:
    """Our gateway: the role's own files, rendered by Ansible; servers and the gate's width set as ptolemyd sets them."""
    home = directory / "ptolemy"
    home.mkdir()
    gateway = Gateway("bench", home)
    render(directory, [gateway], maxconn)
    with contextlib.ExitStack() as stack:
        stack.callback(gateway.log_socket.close)
        sink = [sys.executable, str(HERE / "log_sink.py"), str(gateway.log_socket.fileno()), str(home / "requests.log")]
        stack.enter_context(running(sink, home / "sink.log", pass_fds=[gateway.log_socket.fileno()]))
        stack.callback(gateway.stop)
        gateway.start()
        for number, port in enumerate(ports):
            gateway.add(MODEL, f"j1r0p{number}", port, slots)
        gateway.ptolemyd.widen(MODEL, slots * len(ports))
        stack.enter_context(gateway.key(BATCH_KEY, name="batch", user="batch", tier="batch"))
        assert gateway.process
        yield Proxy("Ptolemy", [gateway.port], pid=gateway.process.pid), gateway


@contextlib.contextmanager
def plain_nginx(directory: Path, ports: Sequence[int], files: int = 19000) -> Iterator[Proxy]:
    """Debian's nginx: no keys, no look-up of the model, no tiers, no queue; an access log, as by default."""
    port = free_port()
    servers = "\n".join(f"    server 127.0.0.1:{stub};" for stub in ports)
    with nginx(directory, "nginx", port=port, servers=servers, files=files, connections=files) as pid:
        wait_for_port(port, directory / "nginx.log")
        yield Proxy("nginx", [port], pid=pid)

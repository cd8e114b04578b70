"""What is measured: the stub servers, and the gateways before them, each as it would be set up for them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from local_gateway import API_KEY, HAPROXY, Gateway, free_port, render
from names import DIRECT, LITELLM, NGINX, OURS
from processes import running, wait_for_port

HERE = Path(__file__).parent
SERVERS, SLOTS = 8, 32  # as two GPUs have it: four llama-servers of 32 slots each
MODEL = "demo"
BATCH_KEY = "sk-batch-0123456789abcdef"
PEOPLE_KEY = "sk-people-0123456789abcdef"  # Open WebUI's
NGINX_PROGRAM = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or ""
NGINX_MODULES = "/usr/lib/nginx/modules"
LITELLM_VERSION = "1.106.12"  # the newest whose `proxy` extra could be installed from the index
LITELLM_HOME = Path.home() / ".cache" / "ptolemy" / f"litellm-{LITELLM_VERSION}"


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


def missing() -> list[str]:
    """Debian's packages that a run needs and this machine lacks."""
    found = {
        "haproxy": HAPROXY,
        "nginx-light": NGINX_PROGRAM,
        "libnginx-mod-http-lua": os.path.exists(f"{NGINX_MODULES}/ngx_http_lua_module.so"),
        "wrk": shutil.which("wrk"),
    }
    return [package for package, there in found.items() if not there]


def nginx(directory: Path, name: str, **values: object) -> contextlib.AbstractContextManager[int]:
    """Start an nginx with one of the configurations here."""
    text = Template((HERE / f"{name}.conf").read_text()).substitute(directory=directory, here=HERE, modules=NGINX_MODULES, **values)
    (directory / f"{name}.conf").write_text(text)
    return running([NGINX_PROGRAM, "-p", str(directory), "-c", str(directory / f"{name}.conf")], directory / f"{name}.log")


@contextlib.contextmanager
def stub_servers(directory: Path, servers: int = SERVERS, slots: int = SLOTS) -> Iterator[Proxy]:
    """The stub servers."""
    ports = [free_port() for _ in range(servers)]
    listen = "\n".join(f"    listen 127.0.0.1:{port} backlog=16384;" for port in ports)
    with nginx(directory, "stub", listen=listen, slots=slots) as pid:
        for port in ports:
            wait_for_port(port, directory / "stub.log")
        yield Proxy(DIRECT, ports, pid=pid)


@contextlib.contextmanager
def ptolemy(directory: Path, ports: Sequence[int], slots: int, name: str = OURS, **settings: object) -> Iterator[Proxy]:
    """Our gateway: the role's own files, rendered by Ansible; servers and the gate's width set as ptolemyd sets them.

    Args:
        directory: for its files.
        ports: of the stub servers.
        slots: of each of them.
        name: in tables.
        settings: of the role, where they differ from its defaults.
    """
    home = Path(tempfile.mkdtemp(prefix="ptolemy-", dir=directory))
    home.chmod(0o755)
    # No Open WebUI behind it: its connections would count against the open files, too.
    gateway = Gateway(home.name, home, **{"haproxy_openwebui_server": "", **settings})
    render(directory, [gateway])
    with contextlib.ExitStack() as stack:
        stack.callback(gateway.log_socket.close)
        log = gateway.log_socket.fileno()
        sink = [sys.executable, str(HERE / "log_sink.py"), str(log), str(home / "requests.log")]
        stack.enter_context(running(sink, home / "sink.log", pass_fds=[log]))
        stack.callback(gateway.stop)
        gateway.start()
        for number, port in enumerate(ports):
            gateway.add(MODEL, f"j1r0p{number}", port, slots)
        gateway.ptolemyd.widen(MODEL, slots * len(ports))
        stack.enter_context(gateway.key(BATCH_KEY, name="batch", user="batch", tier="batch"))
        stack.enter_context(gateway.key(PEOPLE_KEY, name="people", user="people", speaks_for_users=True))
        assert gateway.process
        yield Proxy(name, [gateway.port], pid=gateway.process.pid)


@contextlib.contextmanager
def plain_nginx(directory: Path, ports: Sequence[int], files: int = 19000) -> Iterator[Proxy]:
    """Debian's nginx: no keys, no look-up of the model, no tiers, no queue; an access log, as by default."""
    port = free_port()
    servers = "\n".join(f"    server 127.0.0.1:{stub};" for stub in ports)
    with nginx(directory, "nginx", port=port, servers=servers, files=files, connections=files) as pid:
        wait_for_port(port, directory / "nginx.log")
        yield Proxy(NGINX, [port], pid=pid)


def install_litellm() -> None:
    """Put the LiteLLM proxy into a virtual environment of its own, once.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    if (LITELLM_HOME / "complete").exists():
        return
    venv.create(LITELLM_HOME, clear=True, with_pip=True)
    pip = [f"{LITELLM_HOME}/bin/pip", "install", "--quiet", "--disable-pip-version-check", f"litellm[proxy]=={LITELLM_VERSION}"]
    subprocess.run(pip, check=True, timeout=900)
    (LITELLM_HOME / "complete").touch()


@contextlib.contextmanager
def litellm(directory: Path, ports: Sequence[int]) -> Iterator[Proxy]:
    """The LiteLLM proxy with a worker for each core: it checks a key, as we do; no database, no telemetry, nothing fetched."""
    port = free_port()
    deployments = [
        {"model_name": MODEL, "litellm_params": {"model": "openai/stub", "api_base": f"http://127.0.0.1:{stub}/v1", "api_key": "none"}}
        for stub in ports
    ]
    settings = {
        "model_list": deployments,
        "general_settings": {"master_key": API_KEY},
        "litellm_settings": {"telemetry": False, "request_timeout": 3600},
    }
    # JSON is YAML.
    (directory / "litellm.yaml").write_text(json.dumps(settings))
    environment = {
        "PATH": f"{LITELLM_HOME}/bin:/usr/bin:/bin",
        "HOME": str(directory),
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_DOCS": "True",
        "DO_NOT_TRACK": "1",
    }
    command = [LITELLM_HOME / "bin" / "litellm", "--config", directory / "litellm.yaml", "--host", "127.0.0.1", "--port", port]
    workers = os.cpu_count() or 1
    # Without the time-out, workers that import for more than 5 s are killed and started again, for ever.
    command += ["--num_workers", workers, "--telemetry", "False", "--timeout_worker_healthcheck", 120]
    log = directory / "litellm.log"
    with running([str(word) for word in command], log, environment) as pid:
        deadline = time.monotonic() + 240  # it imports for a minute on a slow machine
        while log.read_text(errors="replace").count("Application startup complete") < workers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"LiteLLM's {workers} workers are not ready: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
        yield Proxy(LITELLM, [port], pid=pid)

"""llama-servers as they are measured: with their own defaults, or as this project's replicas start them, one or more on a GPU."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import under_slurm
from local_gateway import API_KEY, BACKEND_KEY, Gateway, free_port, render
from processes import running
from proxies import BATCH_KEY, Proxy
from ptolemy.engines import LlamaServer
from ptolemy.keys import backend_key

SERVICE = "demo"
START_TIMEOUT = 150.0
KEY = backend_key(SERVICE, BACKEND_KEY)
# As the example inventory has it for many short requests.
FLAGS = ("--cache-ram", "0", "--flash-attn", "on")
# How a conversation finds its server: the service's `affinity`, and what stands in the place of that choice to compare with it.
HOME = "  use-server %[var(txn.home)] if { var(txn.home) -m found }\n"
GATEWAYS = {
    "leastconn": "",
    "conversation": HOME,
    "hash": "  balance hash var(txn.talk)\n  hash-type consistent\n  hash-balance-factor 125\n",
}


@dataclass(frozen=True)
class Setup:
    """What runs.

    Attributes:
        name: in tables.
        plain: llama-server's defaults; else the command line of this project's replicas.
        servers: on each GPU.
        slots: of each; 0 leaves it to llama-server.
        flags: further arguments.
        environment: further variables.
        mps: the servers of a GPU share it through NVIDIA's multi-process service.
        slurm: the servers are those of a real replica, a job of an unprivileged account, whose runner sees to MPS itself.
        gateway: HAProxy before them, with a name of ``GATEWAYS``; empty: none.
        gpus: how many.
        model: another one than the run's.
    """

    name: str
    plain: bool = False
    servers: int = 4
    slots: int = 32
    flags: tuple[str, ...] = FLAGS
    environment: dict[str, str] = field(default_factory=dict)
    mps: bool = False
    slurm: bool = False
    gateway: str = ""
    gpus: int = 1
    model: str = ""


def parse(text: str) -> Setup:
    """Read a setup: ``name: plain servers=1 slots=64 mps slurm gateway=conversation gpus=2 model=1b flags=-ub,1024 env=A=B``.

    ``flags`` replaces the example inventory's, ``more`` adds to them.

    Raises:
        ValueError: says which word is unknown.
    """
    name, _, rest = text.partition(":")
    values: dict[str, object] = {}
    flags: tuple[str, ...] = FLAGS
    environment: dict[str, str] = {}
    for word in shlex.split(rest):
        key, _, value = word.partition("=")
        if key in ("servers", "slots", "gpus"):
            values[key] = int(value)
        elif key in ("plain", "mps", "slurm") and not value:
            values[key] = True
        elif key in ("gateway", "model") and value and (key == "model" or value in GATEWAYS):
            values[key] = value
        elif key == "flags":
            flags = tuple(filter(None, value.split(",")))
        elif key == "more":
            flags += tuple(value.split(","))
        elif key == "env" and "=" in value:
            variable, _, content = value.partition("=")
            environment[variable] = content
        else:
            raise ValueError(f"{text!r}: {word!r} is not known; see bench/gpu/engines.py, parse")
    if values.get("plain") and flags == FLAGS:
        flags = ()
    return Setup(name.strip(), flags=flags, environment=environment, **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Engine:
    """A running llama-server."""

    port: int
    pid: int
    log: Path


def command(setup: Setup, program: Path, model: Path, context: int, port: int) -> list[str]:
    """The command line of one server."""
    if setup.plain:
        sizes = ["--parallel", str(setup.slots), "--ctx-size", str(setup.slots * context)] if setup.slots else []
        return [str(program), "--port", str(port), "--model", str(model), "--alias", SERVICE, *sizes, *setup.flags]
    files = {"llama_server": str(program), "model_path": str(model)}
    return LlamaServer({**files, "service": SERVICE, "slots": setup.slots, "context": context, "flags": setup.flags}, "").begin(port)


@contextlib.contextmanager
def engines(setup: Setup, program: Path, model: Path, context: int, gpus: Sequence[str], base: Path) -> Iterator[list[Engine]]:
    """Start the servers of a setup and wait until all are healthy.

    Without ``gpus`` (names for CUDA_VISIBLE_DEVICES) it is a build for CPUs. Their logs come into ``base``.

    Raises:
        RuntimeError: one did not become healthy; with the end of its log.
    """
    started = []
    with contextlib.ExitStack() as stack:
        if setup.slurm:
            started = stack.enter_context(_job(setup, program, model, context, len(gpus[: setup.gpus]), base))
        for gpu in [] if setup.slurm else gpus[: setup.gpus] or [""]:
            environment = {**os.environ, "LLAMA_API_KEY": KEY, **setup.environment}
            if gpu:
                environment["CUDA_VISIBLE_DEVICES"] = gpu
            if setup.mps:
                environment["CUDA_MPS_PIPE_DIRECTORY"] = stack.enter_context(_mps(gpu, base))
            for _ in range(setup.servers):
                port = free_port()
                log = base / f"{port}.log"
                words = command(setup, program, model, context, port)
                started.append(Engine(port, stack.enter_context(running(words, log, environment)), log))
        deadline = time.monotonic() + START_TIMEOUT
        for engine in started:
            _wait(engine, deadline)
        _check(started[0])
        yield started


@contextlib.contextmanager
def _job(setup: Setup, program: Path, model: Path, context: int, gpus: int, base: Path) -> Iterator[list[Engine]]:
    """The servers of a replica under Slurm."""
    sizes = {"gpus": max(gpus, 1), "servers_per_gpu": setup.servers, "slots": setup.slots, "context": context, "flags": setup.flags}
    service = {"name": SERVICE, "cpus_per_gpu": 1, "memory_per_gpu": "1G", **sizes}
    devices = [f"/dev/nvidia{number}" for number in range(gpus)]
    with under_slurm.replica(program, model, service, setup.environment, devices, base) as (ports, log):
        yield [Engine(port, _listening(port), log) for port in ports]


def _listening(port: int) -> int:
    """The process whose command line names this port."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"--port" in words and words[words.index(b"--port") + 1] == str(port).encode():
                return int(entry.name)
    raise RuntimeError(f"no server of port {port}")


def _check(engine: Engine) -> None:
    """Raise ValueError unless a server's logits are numbers: nonsense that is not finite would cost something else than real weights do."""
    body = {"messages": [{"role": "user", "content": "able"}], "max_tokens": 2, "logprobs": True, "top_logprobs": 3}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{engine.port}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=START_TIMEOUT) as answer:
        tokens = json.load(answer)["choices"][0]["logprobs"]["content"]
    found = [one["logprob"] for token in tokens for one in (token, *token["top_logprobs"])]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in found):
        raise ValueError(f"the model's logits are no numbers: {found}")


def _wait(engine: Engine, deadline: float) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(f"http://127.0.0.1:{engine.port}/health", timeout=2):
            return
        if Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    raise RuntimeError(f"llama-server on port {engine.port} is not healthy: {engine.log.read_text(errors='replace')[-1500:]}")


@contextlib.contextmanager
def _mps(gpu: str, base: Path) -> Iterator[str]:
    """NVIDIA's multi-process service for one GPU: kernels of several processes run at the same time instead of in turns."""
    program = shutil.which("nvidia-cuda-mps-control")
    if not program:
        raise RuntimeError("nvidia-cuda-mps-control is not installed")
    # Sockets lie in it, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp") as directory:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": directory, "CUDA_MPS_LOG_DIRECTORY": str(base)}
        if gpu:
            variables["CUDA_VISIBLE_DEVICES"] = gpu
        with running([program, "-f"], base / "mps.log", {**os.environ, **variables}):
            deadline = time.monotonic() + 10
            while not (Path(directory) / "control").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            try:
                yield directory
            finally:
                environment = {**os.environ, **variables}
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run([program], input="quit\n", text=True, env=environment, timeout=20, check=False, capture_output=True)


@contextlib.contextmanager
def gateway(setup: Setup, ports: Sequence[int], base: Path) -> Iterator[Proxy]:
    """This project's HAProxy before the servers, as ptolemyd would have set it up; its key is one for batches, too."""
    home = Path(tempfile.mkdtemp(prefix="gateway-", dir=base))
    home.chmod(0o755)
    made = Gateway(home.name, home, haproxy_openwebui_server="")
    render(base, [made], {SERVICE: {"context": 4096, "affinity": "none" if setup.gateway == "leastconn" else "conversation"}})
    configuration = home / "haproxy.cfg"
    configuration.write_text(configuration.read_text().replace(HOME, GATEWAYS[setup.gateway]))
    with contextlib.ExitStack() as stack:
        stack.callback(made.log_socket.close)
        stack.callback(made.stop)
        made.start()
        for port in ports:
            made.add(SERVICE, f"j1r0p{port}", port, setup.slots)
        made.ptolemyd.widen(SERVICE, setup.slots * len(ports))
        stack.enter_context(made.key(BATCH_KEY, name="batch", user="batch", tier="batch"))
        assert made.process
        yield Proxy(setup.gateway, [made.port], API_KEY, made.process.pid)


def timings(engine: Engine) -> dict[str, float]:
    """Milliseconds of the server's loop, on average, where it was built with DEBUG_TIMINGS: pre_decode, decode, post_decode, sampl."""
    found = re.findall(r"avg t_(\w+)\s*= ([\d.]+) ms", engine.log.read_text(errors="replace"))
    return {name: float(value) for name, value in found}

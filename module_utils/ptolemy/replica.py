"""The replica runner: the job's own process. It starts llama-servers, publishes them, and sees them off.

The job script ``exec``s it, so that it is the batch shell: under proctrack/cgroup Slurm signals nothing else.
USR1 (Slurm's warning before the time limit or a preemption) makes the replica ask to be drained; TERM (the end) lets
running requests finish for a while, then stops the servers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Iterator, Mapping, Sequence

from .process import one_line
from .record import DRAINING, FAILED, READY, STARTING, Record, encode

POLL = 0.25  # seconds between two looks at the servers
PROBE_TIMEOUT = 2.0
STABLE_AFTER = 600.0  # seconds without an exit after which a server's earlier exits are forgotten
MOST_EXITS = 5  # exits within that time that end the job
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0  # seconds until an exited server is started again
LEAVE_TIME = 2.5  # seconds that the gateway gets to notice the end of the job before idleness counts
KILL_AFTER = 5.0  # seconds from a server's TERM to its KILL
# Ports are dealt out by GPU, which Slurm gives to one job at a time: our own jobs on a node can never meet.
SERVERS_A_GPU, GPUS_A_NODE = 16, 64


class ReplicaError(Exception):
    """The replica cannot go on; the message is the reason that is published and logged."""


@dataclass
class LlamaServer:
    """One llama-server and what became of it.

    Attributes:
        device: the value of CUDA_VISIBLE_DEVICES for it; empty leaves the environment as it is.
        ports: the ports it may use, the first free one is taken at each start.
    """

    device: str
    ports: Sequence[int]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    healthy: bool = False
    start_at: float = 0.0
    exits: list[float] = field(default_factory=list)


class Replica:
    """All llama-servers of one job.

    Args:
        spec: see ``job.spec``.
        environment: the job's environment.

    Raises:
        ReplicaError: Slurm gave the job no GPU, or what the spec names is not on this node.
    """

    def __init__(self, spec: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._spec = spec
        self._environment = environment
        self._job_id = environment.get("SLURM_JOB_ID", "")
        self._restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
        # Resolved once, so that an upgrade of the node does not change a running replica.
        self._program = os.path.realpath(spec["llama_server"])
        self._key = _read_key(spec["key_file"])
        for path in (self._program, spec["model_path"]):
            if not os.path.isfile(path):
                raise ReplicaError(f"{path} is not on {socket.gethostname()}; run site.yml for this node")
        self.servers = [
            LlamaServer(device, list(ports_for(gpu, number, spec["port_first"], spec["port_last"])))
            for gpu, device in gpus(environment)
            for number in range(spec["servers_per_gpu"])
        ]
        self._state = STARTING
        self._publisher = Publisher(self._job_id)
        self._drain = self._stop = False

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status. Raises ReplicaError where it cannot go on."""
        signal.signal(signal.SIGUSR1, self._on_drain)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        deadline = time.monotonic() + self._spec["start_timeout"]
        try:
            while not self._stop:
                for server in self.servers:
                    self._look_after(server)
                self._advance(deadline)
                self._publisher.step()
                time.sleep(POLL)
            self._finish_requests()
        except ReplicaError as error:
            self._publisher.last_word(self._record(FAILED, str(error)))
            raise
        finally:
            self._stop_servers()
        return 0

    def _on_drain(self, *_: object) -> None:
        self._drain = True

    def _on_stop(self, *_: object) -> None:
        self._stop = True

    def _advance(self, deadline: float) -> None:
        if self._state == STARTING and all(server.healthy for server in self.servers):
            self._state = READY
            say(f"ready: {len(self.servers)} endpoints on ports {', '.join(str(server.port) for server in self.servers)}")
        elif self._state == STARTING and time.monotonic() > deadline:
            raise ReplicaError(f"not all servers were healthy within {self._spec['start_timeout']} s; see the job's log")
        if self._drain and self._state != DRAINING:
            self._state = DRAINING
            say("asking to be drained")
        self._publisher.want(self._record(self._state))

    def _record(self, state: str, reason: str = "") -> Record:
        ports = tuple(server.port for server in self.servers) if state in (READY, DRAINING) else ()
        return Record(self._spec["service"], self._spec["revision"], self._restart, state, ports, self._spec["slots"], reason)

    def _look_after(self, server: LlamaServer) -> None:
        now = time.monotonic()
        if server.process is None:
            if now >= server.start_at:
                self._start(server)
            return
        status = server.process.poll()
        if status is not None:
            server.process, server.healthy = None, False
            server.exits = [at for at in server.exits if now - at < STABLE_AFTER] + [now]
            if len(server.exits) >= MOST_EXITS:
                raise ReplicaError(f"llama-server on port {server.port} ended {MOST_EXITS} times, the last time with {_status(status)}")
            pause = min(FIRST_PAUSE * 2.0 ** (len(server.exits) - 1), LAST_PAUSE)
            server.start_at = now + pause
            say(f"llama-server on port {server.port} ended with {_status(status)}; starting it again in {pause:g} s")
        elif not server.healthy and self._is_ours(server.port):
            server.healthy = True
            say(f"llama-server on port {server.port} is healthy")

    def _start(self, server: LlamaServer) -> None:
        # Once published, a server keeps its port: HAProxy knows it by that.
        choices = [server.port] if self._state in (READY, DRAINING) else server.ports
        port = next(filter(_is_free, choices), 0)
        if not port:
            if self._state == STARTING:
                raise ReplicaError(f"none of the ports {', '.join(map(str, server.ports))} is free on {socket.gethostname()}")
            server.start_at = time.monotonic() + FIRST_PAUSE
            return
        server.port = port
        environment = dict(self._environment)
        if server.device:
            environment["CUDA_VISIBLE_DEVICES"] = server.device
        command = self.command(port)
        say(f"starting on GPU {server.device or 'as Slurm says'}: {' '.join(command)}")
        try:
            server.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise ReplicaError(f"{self._program} could not be started: {error.strerror}") from error

    def command(self, port: int) -> list[str]:
        """The command line of a llama-server; the service's own flags come last, so that they win."""
        spec = self._spec
        return [
            self._program,
            *("--host", "0.0.0.0"),  # the cluster's network; every path but /health asks for the key
            *("--port", str(port)),
            *("--api-key-file", spec["key_file"]),
            *("--model", spec["model_path"]),
            *("--alias", spec["service"]),
            *("--parallel", str(spec["slots"])),
            *("--ctx-size", str(spec["context"] * spec["slots"])),  # llama-server divides it among its slots
            *("--n-gpu-layers", "999"),
            *("--fit", "off"),  # sizes are the operator's decision, not that of what else is on the GPU
            "--metrics",
            "--no-slots",  # /slots shows prompts
            "--no-webui",
            "--offline",
            *spec["flags"],
        ]

    def _is_ours(self, port: int) -> bool:
        """It is healthy and answers to our key by our name: another user's process may have taken the port."""
        try:
            self._get(port, "/health")
            models = json.loads(self._get(port, "/v1/models"))
            return any(model.get("id") == self._spec["service"] for model in models["data"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _get(self, port: int, path: str) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {self._key}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a site's http_proxy is not for loopback
        with opener.open(request, timeout=PROBE_TIMEOUT) as answer:
            body: bytes = answer.read()
            return body

    def _finish_requests(self) -> None:
        """Let running requests end, for at most ``stop_grace`` seconds: the gateway sends no new ones to an ending job."""
        now = time.monotonic()
        earliest, deadline = now + LEAVE_TIME, now + self._spec["stop_grace"]
        running = 0
        say(f"told to stop; requests have {self._spec['stop_grace']} s to finish")
        while time.monotonic() < deadline:
            running = sum(self._running(server) for server in self.servers)
            if not running and (time.monotonic() >= earliest or self._state == STARTING):
                return
            time.sleep(POLL)
        say(f"stopping with {running} requests unfinished")

    def _running(self, server: LlamaServer) -> int:
        if server.process is None or server.process.poll() is not None:
            return 0
        try:
            metrics = self._get(server.port, "/metrics").decode(errors="replace")
        except OSError:
            return 0
        wanted = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
        return sum(int(float(line.split()[1])) for line in metrics.splitlines() if line.startswith(wanted))

    def _stop_servers(self) -> None:
        alive = [server.process for server in self.servers if server.process is not None and server.process.poll() is None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + KILL_AFTER
        for process in alive:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        say(f"stopped {len(alive)} servers")


class Publisher:
    """Keeps the job's Slurm comment at the wanted record, without ever blocking the servers' care.

    Args:
        job_id: the job whose comment it is.
    """

    TIMEOUT = 10.0
    PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts; the last one is repeated: slurmctld may be away for long

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._wanted = self._published = self._under_way = ""
        self._attempt: subprocess.Popen[bytes] | None = None
        self._attempt_ends = self._next_at = 0.0
        self._failures = 0

    def want(self, record: Record) -> None:
        """Say what the comment should be."""
        self._wanted = encode(record)

    def step(self) -> None:
        """Start an attempt where one is due, or look how the one under way went."""
        now = time.monotonic()
        if self._attempt is not None:
            status = self._attempt.poll()
            if status is None and now > self._attempt_ends:
                self._attempt.kill()
                self._attempt.wait()
                status = -signal.SIGKILL
            if status is not None:
                self._settle(status, now)
        elif self._wanted != self._published and now >= self._next_at:
            self._under_way, self._attempt_ends = self._wanted, now + self.TIMEOUT
            self._attempt = self._scontrol(self._wanted)

    def last_word(self, record: Record) -> None:
        """Publish a record at once, waiting for it at most ``TIMEOUT`` seconds."""
        attempt = self._scontrol(encode(record))
        try:
            attempt.wait(self.TIMEOUT)
        except subprocess.TimeoutExpired:
            attempt.kill()
            attempt.wait()

    def _settle(self, status: int, now: float) -> None:
        self._attempt = None
        if status == 0:
            self._published, self._failures = self._under_way, 0
            return
        pause = self.PAUSES[min(self._failures, len(self.PAUSES) - 1)]
        self._failures += 1
        self._next_at = now + pause
        say(f"scontrol could not publish the record ({_status(status)}); trying again in {pause:g} s")

    def _scontrol(self, comment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["scontrol", "update", f"JobId={self._job_id}", f"Comment={comment}"], stdin=subprocess.DEVNULL)


def gpus(environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """The job's GPUs: (index on the node, value of CUDA_VISIBLE_DEVICES that names it inside the job).

    With ConstrainDevices the two differ: a job sees only its own GPUs, numbered from 0.

    Raises:
        ReplicaError: Slurm gave the job none.
    """
    indices = list(_numbers(environment.get("SLURM_JOB_GPUS", "")))
    if not indices:
        raise ReplicaError("Slurm gave this job no GPU (SLURM_JOB_GPUS is not set); is the partition's GresTypes=gpu with File= or nvml?")
    visible = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if len(visible) != len(indices):
        visible = [""] * len(indices)
    return list(zip(indices, visible))


def ports_for(gpu: int, number: int, first: int, last: int) -> range:
    """The ports that the ``number``-th server of a GPU may use: no two servers of a node share one."""
    return range(first + gpu * SERVERS_A_GPU + number, last + 1, GPUS_A_NODE * SERVERS_A_GPU)


def _numbers(text: str) -> Iterator[int]:
    """Read Slurm's notation: "0,2-4" gives 0, 2, 3, 4."""
    for run in filter(None, text.split(",")):
        low, _, high = run.partition("-")
        yield from range(int(low), int(high or low) + 1)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port just left (TIME_WAIT) looks taken
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def _read_key(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError as error:
        raise ReplicaError(f"{path}: {error.strerror}; run site.yml for this node") from error


def _status(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def say(message: str) -> None:
    """Write a line to the job's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), "ptolemy:", message, flush=True)


def main() -> int:
    """Run the replica whose spec is on standard input."""
    try:
        spec = json.load(sys.stdin)
        return Replica(spec, os.environ).run()
    except ReplicaError as error:
        say(f"ending the job: {error}")
    except (ValueError, KeyError) as error:
        say(f"ending the job: its spec cannot be read: {one_line(repr(error))}")
    return 1

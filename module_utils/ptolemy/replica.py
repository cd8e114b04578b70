"""The replica runner: the job's own process. It starts servers (``engines``), publishes them, and sees them off.

The job script ``exec``s it, so that it is the batch shell: under proctrack/cgroup Slurm signals nothing else.

    USR1  Slurm's warning before the time limit or a preemption: ask to be drained, and serve on
    USR2  ptolemyd has drained it: end as soon as no request runs
    TERM  the end: let running requests finish for a while, then stop the servers
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Iterator, Mapping, Sequence

from .comfyui import ComfyUI
from .config import COMFYUI
from .engines import Engine, LlamaServer, ReplicaError, present
from .keys import backend_key
from .model_cache import StoppedError, WrongModelError, take
from .mps import Mps
from .process import one_line
from .publisher import Publisher, last_lines, say, told
from .record import DRAINING, FAILED, READY, STARTING, Record

POLL = 0.25  # seconds between two looks at the servers
PROBE_EVERY = 5.0  # seconds between two probes of a healthy server
MOST_SILENCES = 3  # probes in a row without an answer after which a server is killed, so that others get its requests
STUCK_AFTER = 60.0  # seconds without progress after which it is killed; a batch of a long prompt may take long on a CPU
STABLE_AFTER = 600.0  # seconds without an exit after which a server's earlier exits are forgotten
MOST_EXITS = 5  # exits within that time that end the job
MOST_EXITS_AT_START = 2  # the same for a server that was never healthy: the next job may get another node or GPU
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0  # seconds until an exited server is started again
LEAVE_TIME = 2.5  # seconds that the gateway gets to notice the end of the job before idleness counts
KILL_AFTER = 5.0  # seconds from a server's TERM to its KILL
# Ports are dealt out by GPU, which Slurm gives to one job at a time: our own jobs on a node can never meet.
SERVERS_A_GPU, GPUS_A_NODE = 16, 64


@dataclass
class Server:
    """One server and what became of it.

    Attributes:
        device: the value of CUDA_VISIBLE_DEVICES for it; empty leaves the environment as it is.
        ports: the ports it may use, the first free one is taken at each start.
        running: the requests that it had when it last told; what never told is not idle.
    """

    device: str
    ports: Sequence[int]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    healthy: bool = False
    running: int = 1
    silences: int = 0
    probe_at: float = 0.0
    progress_at: float = 0.0
    start_at: float = 0.0
    exits: list[float] = field(default_factory=list)


class Replica:
    """All servers of one job.

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
        self._key = _key_of(spec["service"], spec["key_file"])
        self._engine = self._make_engine()
        self._engine.check()
        self._mps = Mps(environment, self._engine.program, spec["servers_per_gpu"])
        self.servers = [
            Server(device, list(ports_for(gpu, number, spec["port_first"], spec["port_last"])))
            for gpu, device in gpus(environment)
            for number in range(spec["servers_per_gpu"])
        ]
        self._state = STARTING
        self._began, self._took = time.monotonic(), 0
        self._publisher = Publisher(self._job_id)
        self._drain = self._leave = self._stop = False
        self._idle_since = float("inf")

    def _make_engine(self) -> Engine:
        if self._spec.get("kind") == COMFYUI:
            return ComfyUI(self._spec, self._key, self._job_id, self._restart)
        return LlamaServer(self._spec, self._key)

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status. Raises ReplicaError where it cannot go on."""
        signal.signal(signal.SIGUSR1, self._on_drain)
        signal.signal(signal.SIGUSR2, self._on_leave)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        deadline = time.monotonic() + self._spec["start_timeout"]
        try:
            self._take_model(deadline)
            while not self._stop and not (self._leave and self._has_been_idle()):
                for server in self.servers:
                    self._look_after(server)
                self._advance(deadline)
                self._publisher.step()
                time.sleep(POLL)
            if self._stop:
                self._finish_requests()
        except ReplicaError as error:
            self._publisher.last_word(self._record(FAILED, f"{error}{last_lines()}"))
            raise
        finally:
            self._stop_servers()
            self._engine.end()
        return 0

    def _take_model(self, deadline: float) -> None:
        """Have the model on the node's own disk, where there is a cache. It may take minutes."""

        def going() -> bool:
            return not self._stop and not self._leave and time.monotonic() < deadline

        try:
            self._spec = take(self._spec, going, say)
        except WrongModelError as error:
            raise ReplicaError(str(error)) from error
        except StoppedError:
            if time.monotonic() >= deadline:
                raise ReplicaError(f"the model was not in the cache within {self._spec['start_timeout']} s; see start_timeout") from None
            self._stop = True  # there is no server to finish
            return
        if self._spec.get("cache_dir"):
            self._engine = self._make_engine()  # with the copies' paths
            present(self._spec["model_path"], self._spec.get("mmproj_path"))

    def _on_drain(self, *_: object) -> None:
        self._drain = True

    def _on_leave(self, *_: object) -> None:
        self._drain = self._leave = True

    def _on_stop(self, *_: object) -> None:
        self._stop = True

    def _advance(self, deadline: float) -> None:
        if self._state == STARTING and all(server.healthy for server in self.servers):
            self._state = READY
            self._took = math.ceil(time.monotonic() - self._began)
            say(f"ready: {len(self.servers)} endpoints on ports {', '.join(str(server.port) for server in self.servers)}")
        elif self._state == STARTING and time.monotonic() > deadline:
            raise ReplicaError(f"not all servers were healthy within {self._spec['start_timeout']} s; see the job's log")
        if self._drain and self._state != DRAINING:
            self._state = DRAINING
            say("asking to be drained")
        self._publisher.want(self._record(self._state))

    def _record(self, state: str, reason: str = "") -> Record:
        ports = tuple(server.port for server in self.servers) if state in (READY, DRAINING) else ()
        spec = self._spec
        return Record(
            spec["service"], spec["revision"], self._restart, state, ports, spec["slots"], reason, spec["opportunistic"], self._took
        )

    def _look_after(self, server: Server) -> None:
        now = time.monotonic()
        if server.process is None:
            if now >= server.start_at:
                self._start(server)
            return
        status = server.process.poll()
        if status is not None:
            server.process, server.healthy = None, False
            server.exits = [at for at in server.exits if now - at < STABLE_AFTER] + [now]
            if self._state == STARTING and self._mps.leave(f"{self._engine.name} on port {server.port} ended with {told(status)}"):
                server.exits = []
                return
            if len(server.exits) >= (MOST_EXITS_AT_START if self._state == STARTING else MOST_EXITS):
                name = f"{self._engine.name} on port {server.port}"
                raise ReplicaError(f"{name} ended {len(server.exits)} times, the last time with {told(status)}")
            pause = min(FIRST_PAUSE * 2.0 ** (len(server.exits) - 1), LAST_PAUSE)
            server.start_at = now + pause
            say(f"{self._engine.name} on port {server.port} ended with {told(status)}; starting it again in {pause:g} s")
        elif not server.healthy and self._engine.is_ours(server.port):
            server.healthy, server.silences, server.probe_at, server.progress_at = True, 0, now + PROBE_EVERY, now
            say(f"{self._engine.name} on port {server.port} is healthy")
        elif server.healthy and now >= server.probe_at:
            self._probe(server)

    def _probe(self, server: Server) -> None:
        """Kill a server that has frozen: its connections break, and HAProxy sends what was not answered yet to another one."""
        server.silences = 0 if self._engine.answers(server.port) else server.silences + 1
        if self._engine.computes(server.port):
            server.progress_at = time.monotonic()
        server.probe_at = time.monotonic() + PROBE_EVERY
        stuck = time.monotonic() - server.progress_at
        if server.process is not None and (server.silences >= MOST_SILENCES or stuck > STUCK_AFTER):
            say(f"{self._engine.name} on port {server.port} is silent ({server.silences} probes) or stuck ({stuck:.0f} s): killing it")
            server.process.kill()

    def _start(self, server: Server) -> None:
        # Once published, a server keeps its port: HAProxy knows it by that.
        choices = [server.port] if self._state in (READY, DRAINING) else server.ports
        port = next(filter(_is_free, choices), 0)
        if not port:
            if self._state == STARTING:
                raise ReplicaError(f"none of the ports {', '.join(map(str, server.ports))} is free on {socket.gethostname()}")
            server.start_at = time.monotonic() + FIRST_PAUSE
            return
        server.port = port
        environment = {**self._environment, **self._engine.environment(port), **self._mps.variables(server.device)}
        command = self._engine.begin(port)
        say(f"starting on GPU {server.device or 'as Slurm says'}: {' '.join(command)}")
        try:
            server.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise ReplicaError(f"{self._engine.program} could not be started: {error.strerror}") from error

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

    def _has_been_idle(self) -> bool:
        """No request has run for ``LEAVE_TIME``: one that the gateway sent before it drained this replica has come by then."""
        now = time.monotonic()
        idle = not any(self._running(server) for server in self.servers)
        self._idle_since = min(self._idle_since, now) if idle else float("inf")
        return now - self._idle_since >= LEAVE_TIME

    def _running(self, server: Server) -> int:
        if server.process is None or server.process.poll() is not None or not server.healthy:
            return 0
        told = self._engine.running(server.port)
        # A busy one may miss a question: it has its requests all the same.
        server.running = server.running if told is None else told
        return server.running

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
        self._mps.stop()
        say(f"stopped {len(alive)} servers")


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


def gpu_of(port: int, first: int) -> int:
    """The index on its node of the GPU that a port was dealt out for: the inverse of ``ports_for``."""
    return (port - first) // SERVERS_A_GPU % GPUS_A_NODE


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


def _key_of(service: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.readline().strip()
    except OSError as error:
        raise ReplicaError(f"{path}: {error.strerror}; run site.yml for this node") from error
    return backend_key(service, secret)


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

"""Find the setting with which a service's llama-servers answer most, on one GPU: the job that ``playbooks/tune.yml`` submits.

Servers are started as a replica starts them (``engines``, ``mps``), but on loopback and on ports of the system's choice, which no replica
may use, and with a key of their own: nothing of the live service is touched. It runs without Slurm, too:

    CUDA_VISIBLE_DEVICES=0 python3 -m ptolemy tune SPEC.json > result.json

where the least spec is ``{"llama_server": ..., "model_path": ..., "prompt_tokens": 400, "answer_tokens": 128}``; see ``DEFAULTS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any, Mapping, Optional, Sequence

from . import fit, gguf
from .engines import LlamaServer, ReplicaError
from .errors import GgufError, PtolemyError
from .model_cache import StoppedError, WrongModelError, take
from .mps import Mps
from .process import one_line, run
from .publisher import told
from .replica import KILL_AFTER
from .server_memory import UncheckedError, need
from .tune_load import Profile, closed_loop
from .tune_plan import FINAL, Choice, Result, Setting, Space, Trial, choose, next_trial, setting_of

# What a spec may say, with what holds where it says nothing. Keys of ``job.spec`` come on top.
DEFAULTS: Mapping[str, Any] = {
    "service": "tune",
    "context": 0,  # tokens of a slot; 0: what the profile needs
    "start_timeout": 900,
    "present": {"servers_per_gpu": 1, "slots": 8, "flags": []},
    "servers": [1, 2, 4, 8],
    "slots": [8, 16, 32, 48, 64],
    "most_slots": 512,
    "prompt_tokens": 0,
    "shared_tokens": 0,
    "answer_tokens": 0,
    "streamed": True,
    "first_token_seconds": 0.0,
    "between_tokens_seconds": 0.0,
    "minutes": 10.0,
    "gpu_memory": 0,  # bytes; 0: nvidia-smi tells
    "unasked_seconds": 0.0,  # the job ends if nobody has asked for so long how far it is; 0: never
}
SHORTEST_WINDOW = 2.0  # seconds
LEAST_PATIENCE = 30.0  # seconds until a window begins in any case: before each slot has answered twice, all prompts come at once
OVERTIME = 120.0
FINAL_WINDOWS = 2.0  # the windows of the end are so many times as long
POLL = 0.1
COMMENT = 900  # bytes of progress in the job's comment, which may have 1024
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]


class TuneError(PtolemyError):
    """Nothing could be measured; the message says why, and the mend."""


class Tuner:
    """One search.

    Args:
        spec: see ``DEFAULTS``.
        environment: the job's.
    """

    def __init__(self, spec: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._spec, self._environment = {**DEFAULTS, **spec}, environment
        self._began = time.monotonic()
        # The search is planned to end by then; what it began may take longer, within what the job's time limit leaves.
        self._planned = self._began + self._spec["minutes"] * 60
        self._deadline = self._planned + OVERTIME
        # 10 s of 10 minutes: some ten trials and the longer ones of the end, with the start of the servers.
        self._window = min(max(self._spec["minutes"], SHORTEST_WINDOW), 15.0)
        prompt, answer, shared = (int(self._spec[key]) for key in ("prompt_tokens", "answer_tokens", "shared_tokens"))
        self._profile = Profile(prompt, answer, shared, bool(self._spec["streamed"]))
        if not (0 <= self._profile.shared < self._profile.prompt and self._profile.answer > 0):
            raise TuneError("prompt_tokens and answer_tokens must be above 0, and shared_tokens below prompt_tokens")
        length = self._profile.prompt + self._profile.answer
        self._spec["context"] = self._spec["context"] or -(-length // 256) * 256
        if length > self._spec["context"]:
            raise TuneError(f"a request of {length} tokens does not fit into the context of a slot, {self._spec['context']}")
        self._key = secrets.token_hex(16)
        self._stop, self._asked_at = "", time.monotonic()
        self._lines: list[str] = []

    def run(self) -> dict[str, Any]:
        """Search until the time is over. Returns the result, for ``tuned``. Raises TuneError or ReplicaError."""
        signal.signal(signal.SIGUSR1, self._on_asked)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        self._take_model()
        gpu, memory = self._gpu()
        setting = setting_of(self._spec["present"])
        space = Space(
            setting,
            self._spec["servers"],
            self._spec["slots"],
            self._spec["most_slots"],
            _fitting(self._spec, memory) if memory else lambda _: True,
            self._spec["first_token_seconds"],
            self._spec["between_tokens_seconds"],
        )
        self._say(f"{self._spec['service']} on {gpu}: {self._profile}; the present setting is {setting}")
        trials: list[Trial] = []
        while self._going():
            proposal = next_trial(space, trials, self._planned - time.monotonic(), self._window * (FINAL_WINDOWS - 1))
            if proposal is None:
                break
            trials.append(self._try(*proposal))
            self._say(_told(trials[-1], space))
        if self._stop:
            self._say(f"the search ends: {self._stop}")
        choice = choose(space, trials)
        if choice is None:
            raise TuneError(self._stop or f"the present setting could not be measured: {trials[0].failure if trials else 'no time'}")
        self._say(f"chosen: {choice.trial.setting}: {choice.reason}")
        return self._result(gpu, space, trials, choice)

    def _result(self, gpu: str, space: Space, trials: Sequence[Trial], choice: Choice) -> dict[str, Any]:
        return {
            "service": self._spec["service"],
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "host": socket.gethostname(),
            "gpu": gpu,
            "seconds": round(time.monotonic() - self._began),
            "window": self._window,
            "profile": str(self._profile),
            "bounds": {"first": space.first, "between": space.between},
            "stopped": self._stop,
            "present": space.present.values(),
            "chosen": choice.trial.setting.values(),
            "reason": choice.reason,
            "trials": [{**asdict(trial), "setting": trial.setting.values(), "name": str(trial.setting)} for trial in trials],
        }

    # ------------------------------------------------------------------------------------------------------- one setting

    def _try(self, setting: Setting, phase: str) -> Trial:
        """Start the servers of a setting, load them, and stop them."""
        began = time.monotonic()
        window = self._window * (FINAL_WINDOWS if phase == FINAL else 1.0)
        result: Optional[Result] = None
        failure = ""
        with tempfile.TemporaryDirectory(prefix="ptolemy-tune-") as directory:
            servers = _Servers(self._spec, setting, self._key, self._environment, directory)
            try:
                ports = servers.start(min(began + self._spec["start_timeout"], self._deadline), self._going)
                patience = max(4 * window, LEAST_PATIENCE)
                seen = asyncio.run(closed_loop(ports, setting.slots, self._key, self._profile, window, patience, self._going))
                if not self._going():
                    failure = "cut short"
                elif seen.requests:
                    result = seen
                else:
                    failure = seen.error or f"no answer within {window:g} s"
            except (ReplicaError, OSError, ValueError, KeyError) as error:
                failure = one_line(str(error))
            finally:
                servers.stop()
        return Trial(setting, phase, time.monotonic() - began, result, failure)

    # --------------------------------------------------------------------------------------------------- the job around it

    def _take_model(self) -> None:
        """As a replica does: from the node's own disk, where there is a cache."""
        LlamaServer({**self._spec, "cache_dir": ""}, self._key).check()
        try:
            self._spec = dict(take(self._spec, self._going, self._say))
        except WrongModelError as error:
            raise TuneError(str(error)) from error
        except StoppedError:
            raise TuneError(self._stop or "the model was not in the cache before the time was over; set more tune_minutes") from None

    def _gpu(self) -> tuple[str, int]:
        """The GPU's name and bytes; those of a CPU are not known, and nothing has to fit into them."""
        try:
            shown = run(NVIDIA_SMI, 30.0).splitlines()
        except PtolemyError:
            shown = []
        number = (self._environment.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
        if not shown:
            return f"{os.cpu_count()} CPU cores", self._spec["gpu_memory"]
        name, memory, driver = (word.strip() for word in shown[min(int(number) if number.isdigit() else 0, len(shown) - 1)].split(","))
        return f"{name}, driver {driver}", self._spec["gpu_memory"] or int(memory) * 2**20

    def _going(self) -> bool:
        """Whether to go on; the rest of the time is over, somebody said stop, or nobody waits any more."""
        limit, now = self._spec["unasked_seconds"], time.monotonic()
        if limit and now - self._asked_at > limit:
            self._stop = self._stop or f"nobody asked for {limit:g} s how far it is"
        return not self._stop and now < self._deadline

    def _on_asked(self, *_: object) -> None:
        self._asked_at = time.monotonic()

    def _on_stop(self, number: int, _: object) -> None:
        self._stop = f"it was told to stop by {signal.Signals(number).name}"

    def _say(self, line: str) -> None:
        """A line of progress: for the log, and as the job's comment for who waits. It is no record, so ptolemyd passes it over."""
        print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)
        self._lines = [*self._lines, one_line(line).encode("ascii", "replace").decode().replace("|", "/")]
        while sum(map(len, self._lines)) + len(self._lines) > COMMENT:
            del self._lines[0]
        job = self._environment.get("SLURM_JOB_ID")
        if job and self._spec["unasked_seconds"]:
            try:
                run(["scontrol", "update", f"JobId={job}", "Comment=" + "\n".join(self._lines)], 10.0)
            except PtolemyError as error:
                print(f"ptolemy: {error}", file=sys.stderr, flush=True)


class _Servers:
    """The llama-servers of one setting, on one GPU."""

    def __init__(self, spec: Mapping[str, Any], setting: Setting, key: str, environment: Mapping[str, str], directory: str) -> None:
        flags = [*setting.flags, "--host", "127.0.0.1"]  # the last one wins
        self._engine = LlamaServer({**spec, "slots": setting.slots, "flags": flags}, key)
        self._environment, self._directory, self._count = environment, directory, setting.servers
        self._mps = Mps(environment, self._engine.program, setting.servers)
        self._device = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, deadline: float, going: Any) -> list[int]:
        """Start all and wait until they are healthy. Returns their ports. Raises ReplicaError."""
        while True:
            ports = _free_ports(self._count)
            variables = self._mps.variables(self._device)
            self._processes = [self._begin(port, variables) for port in ports]
            ended = self._wait(ports, deadline, going)
            if ended is None:
                return ports
            why = f"llama-server ended with {told(ended.returncode)}: {self._last_lines(ports[self._processes.index(ended)])}"
            self._end()
            if not self._mps.leave(why):
                raise ReplicaError(why)

    def _begin(self, port: int, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        environment = {**self._environment, **self._engine.environment(port), **variables}
        with open(self._log(port), "wb") as log:
            return subprocess.Popen(
                self._engine.begin(port), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, ports: Sequence[int], deadline: float, going: Any) -> Optional[subprocess.Popen[bytes]]:
        """Wait until all are healthy; returns one that ended instead, if so."""
        left = set(ports)
        while left:
            ended = next((process for process in self._processes if process.poll() is not None), None)
            if ended:
                return ended
            if time.monotonic() > deadline or not going():
                raise ReplicaError(f"{len(left)} of {len(ports)} servers were not healthy in time")
            left = {port for port in left if not self._engine.is_ours(port)}
            time.sleep(POLL)
        return None

    def stop(self) -> None:
        """End all that was started."""
        self._end()
        self._mps.stop()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + KILL_AFTER
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def _log(self, port: int) -> str:
        return os.path.join(self._directory, f"{port}.log")

    def _last_lines(self, port: int) -> str:
        with open(self._log(port), encoding="utf-8", errors="replace") as log:
            return one_line(" | ".join(log.read()[-600:].splitlines()[-4:]))


def _free_ports(count: int) -> list[int]:
    """Ports of the system's choice: in its range of outgoing connections, above those of replicas (site.EPHEMERAL_FIRST)."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _fitting(spec: Mapping[str, Any], memory: int) -> Any:
    """Whether a setting fits into a GPU, by the model's header; what is not known may be tried, and fails by itself."""
    try:
        header = gguf.read_model(gguf.shard_paths(spec["model_path"]))
    except GgufError as error:
        raise TuneError(str(error)) from error

    def fits(setting: Setting) -> bool:
        try:
            run_of = fit.run_from(setting.slots, spec["context"], [*setting.flags])
            return need(header, run_of).total * setting.servers <= int(memory * fit.USABLE)
        except (UncheckedError, GgufError):
            return True

    return fits


def _told(trial: Trial, space: Space) -> str:
    """A trial in one line."""
    end = " (again, for longer)" if trial.phase == FINAL else ""
    if trial.result is None:
        return f"{trial.setting}{end}: failed: {trial.failure}"
    return f"{trial.setting}{end}: {numbers(trial.result)}{'' if space.keeps(trial.result) else ', beyond the bounds'}"


def numbers(result: Result) -> str:
    """A result's numbers in words."""
    words = f"{result.requests:.1f} requests/s, {result.tokens:,.0f} tokens/s, first token {result.first[0]:.2f} / {result.first[1]:.2f} s"
    return words + (f", {result.errors} errors ({result.error})" if result.errors else "")


def main(path: str) -> int:
    """Tune as a spec says; prints the result as one line of JSON.

    Args:
        path: of the spec; - for standard input.
    """
    try:
        spec = json.loads(_text(path))
        with contextlib.redirect_stdout(sys.stderr):  # what is printed on stdout is the result alone
            found = Tuner(spec, os.environ).run()
        print(json.dumps(found), flush=True)
    except (PtolemyError, ReplicaError) as error:
        print(f"ptolemy: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"ptolemy: the spec cannot be read: {one_line(repr(error))}", file=sys.stderr)
        return 2
    return 0


def _text(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    with open(path, encoding="utf-8") as file:
        return file.read()

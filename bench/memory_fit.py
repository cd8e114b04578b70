"""The fit check against llama-server: what it says that a server needs, and what the server then takes.

Files with the shapes of real models are written (memory_models.py), a llama-server is started on each with several settings, and its own
report is read: the sizes of its buffers and, on a GPU, what the driver says that the process holds after it has answered.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memory_models import ALL, HELD_OUT, SHAPES, ensure
from tables import write_between

sys.path.insert(0, str(Path(__file__).parents[1] / "module_utils"))
from ptolemy.fit import run_from
from ptolemy.gguf import read_model
from ptolemy.server_memory import need

MEASURED = Path(__file__).with_suffix(".jsonl")
START_TIMEOUT, ANSWER_TIMEOUT = 180.0, 300.0
MIB = 2**20
BUFFER = re.compile(r"(\S+)\s+(model|KV|compute|RS) buffer size =\s+([\d.]+) MiB")
EMBEDDING = ("qwen3-embedding-0.6b-f16", "bge-large-f16")


@dataclass(frozen=True)
class Case:
    """One server: slots of ``context`` tokens each, and flags as a service has them."""

    model: str
    slots: int
    context: int
    flags: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return f"{self.model}, {self.slots} x {self.context}{''.join(' ' + flag for flag in self.flags)}"


@dataclass
class Measured:
    """What a server reported, in MiB, of the GPU if there is one."""

    case: Case
    device: str
    model: float = 0
    cache: float = 0
    compute: float = 0
    process: float = 0
    started: float = 0
    problem: str = ""
    host: dict[str, float] = field(default_factory=dict)


def cases(gpu: bool) -> Iterator[Case]:
    """On a CPU only what fits into a small machine's memory; nothing is computed there."""
    for model in SHAPES:
        if model in EMBEDDING:
            yield from embeddings(model)
            continue
        yield Case(model, 4, 2048)
        yield Case(model, 1, 8192, ("-fa", "off"))
        yield Case(model, 8, 1024, ("-ub", "1024", "-fa", "on"))
        if gpu:
            yield Case(model, 16, 8192, ("-fa", "on"))
            yield Case(model, 32, 2048, ("-fa", "on", "--cache-ram", "0"))
    yield Case("llama-8b-q4_k", 8, 4096, ("-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"))
    yield Case("llama-8b-q4_k", 8, 4096, ("-fa", "on", "-ctk", "q4_0", "-ctv", "q4_0"))
    yield Case("qwen3-8b-q8_0", 8, 4096, ("--kv-unified",))
    yield Case("gemma3-12b-q4_0", 4, 4096, ("--kv-unified",))
    yield Case("gemma3-12b-q4_0", 4, 4096, ("--swa-full",))
    yield Case("gpt-oss-20b-mxfp4", 4, 4096, ("-ub", "2048", "-b", "2048"))
    yield Case("llama-1b-f16", 4, 4096, ("-ub", "2048", "-b", "2048"))
    yield Case("llama-1b-f16", 3, 1000)
    if gpu:
        yield Case("llama-8b-q4_k", 1, 131072)
        yield Case("llama-8b-q4_k", 4, 16384, ("-fa", "off"))
        yield Case("llama-8b-q4_k", 64, 4096, ("-ub", "1024"))
        yield Case("qwen3-30b-a3b-q4_k", 16, 16384, ("-ub", "2048", "-b", "2048"))
        for model in HELD_OUT:
            yield Case(model, 8, 4096)
            yield Case(model, 4, 6000, ("-fa", "off"))
            yield Case(model, 16, 2048, ("-fa", "on", "-ub", "1024", "-ctk", "q8_0", "-ctv", "q8_0"))
            yield Case(model, 3, 8192, ("-ctk", "bf16", "-ctv", "bf16", "--kv-unified"))


def embeddings(model: str) -> Iterator[Case]:
    """With the arguments that a service of that kind gets."""
    for slots, context in ((4, 512),) if ALL[model].context == 512 else ((4, 2048), (8, 8192)):
        yield Case(
            model, slots, context, ("--embeddings", "--batch-size", str(context), "--ubatch-size", str(context), "--pooling", "mean")
        )


def measure(server: str, folder: Path, case: Case, gpu: bool) -> Measured:
    """Start the server as a replica would, let it answer on a GPU, read its report, stop it."""
    path = ensure(folder, case.model)
    log = folder / "server.log"
    port = _free_port()
    command = [server, "--host", "127.0.0.1", "--port", str(port), "--model", str(path), "--parallel", str(case.slots)]
    command += ["--ctx-size", str(case.context * case.slots), "--n-gpu-layers", "999", "--fit", "off", "--no-webui", "--offline"]
    command += ["-lv", "4", *case.flags] + ([] if gpu else ["--no-warmup", "--no-repack"])
    found = Measured(case, "CUDA0" if gpu else "CPU")
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, port, log, gpu)
        found.started = time.monotonic() - began
        _read(log.read_text(errors="replace"), found)
        if gpu:
            _answer(port, case)
            found.process = _held(process.pid)
    except (OSError, RuntimeError) as error:
        found.problem = f"{error}: {' | '.join(log.read_text(errors='replace').splitlines()[-3:])}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path, gpu: bool) -> None:
    """Until it is healthy; on a CPU, until its buffers are there."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with {process.returncode}")
        if not gpu and "reserve took" in log.read_text(errors="replace"):
            return
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("llama-server was not healthy in time")


def _read(log: str, found: Measured) -> None:
    for device, kind, size in BUFFER.findall(log):
        if found.device in ("CPU", device):
            name = {"model": "model", "KV": "cache", "RS": "cache", "compute": "compute"}[kind]
            setattr(found, name, getattr(found, name) + float(size))
        else:
            found.host[f"{device} {kind}"] = found.host.get(f"{device} {kind}", 0) + float(size)


def _answer(port: int, case: Case) -> None:
    """Fill the slots, so that everything is allocated that is only allocated on use."""
    chance = random.Random(1)
    length = max(min(case.context - 24, 6144 // min(case.slots, 3)), 16)
    tokens = [chance.randrange(300, 30000) for _ in range(length)]
    embedding = "--embeddings" in case.flags
    path = "/embeddings" if embedding else "/completion"

    def ask(number: int) -> None:
        prompt = tokens[number % 7 :]
        body: dict[str, Any] = {"input": prompt} if embedding else {"prompt": prompt, "n_predict": 8, "cache_prompt": False}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT) as answer:
            answer.read()

    with concurrent.futures.ThreadPoolExecutor(case.slots) as pool:
        list(pool.map(ask, range(case.slots)))


def _held(pid: int) -> float:
    """MiB of GPU memory that the process holds, as the driver says; the whole GPU's where it tells no process."""
    query = ["nvidia-smi", "--format=csv,noheader,nounits"]
    listed = subprocess.run([*query, "--query-compute-apps=pid,used_gpu_memory"], capture_output=True, text=True, timeout=30, check=True)
    for line in listed.stdout.splitlines():
        number, used = (word.strip() for word in line.split(","))
        if number == str(pid) and used.isdigit():
            return float(used)
    whole = subprocess.run([*query, "--query-gpu=memory.used"], capture_output=True, text=True, timeout=30, check=True)
    return float(whole.stdout.split()[0])


def run(options: argparse.Namespace) -> None:
    """Measure every case that ``options.measured`` does not hold yet."""
    done = {json.dumps(entry["case"]) for entry in load(options.measured)}
    end = time.monotonic() + options.seconds
    for case in cases(options.gpu):
        if json.dumps(asdict(case)) in done or options.only not in case.words:
            continue
        if time.monotonic() > end:
            print("out of time; start again for the rest", file=sys.stderr)
            return
        found = measure(options.server, options.models, case, options.gpu)
        with options.measured.open("a") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        words = found.problem or f"{found.model:.0f} + {found.cache:.0f} + {found.compute:.0f} MiB, process {found.process:.0f}"
        print(f"{case.words}: {words} ({found.started:.1f} s)", flush=True)


def load(path: Path) -> list[dict[str, Any]]:
    """The entries of a file of ``Measured``; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(measured: Path, folder: Path, machine: str) -> str:
    """What the page shows: for each model how far off the formula is, against what the process held."""
    rows: dict[str, list[tuple[float, dict[str, float], float]]] = {}
    refused: list[str] = []
    cpu: list[tuple[float, float]] = []
    for entry in load(measured):
        case = Case(**{**entry["case"], "flags": tuple(entry["case"]["flags"])})
        header = read_model([str(ensure(folder, case.model, tokens=False))])
        said = need(header, run_from(case.slots, case.context, case.flags))
        if entry["problem"]:
            why = "llama-server aborted" if "ended with -6" in entry["problem"] else f"the check says {said.total / MIB / 1024:.1f} GiB"
            refused.append(f"{case.words} ({why})")
            continue
        if entry["device"] == "CPU":
            cpu.append((said.cache / MIB - entry["cache"], said.buffers / MIB - entry["compute"]))
            continue
        driver = entry["process"] - entry["model"] - entry["cache"] - entry["compute"]
        parts = {
            "weights": said.weights / MIB - entry["model"],
            "KV cache": said.cache / MIB - entry["cache"],
            "buffers": said.buffers / MIB - entry["compute"],
            "CUDA": said.driver / MIB - driver,
        }
        rows.setdefault(case.model, []).append((said.total / MIB / entry["process"] - 1, parts, entry["process"]))
    count = sum(map(len, rows.values()))
    lines = [f"llama.cpp b11312 on {machine}: {count} settings of {len(rows)} models.", ""]
    lines += ["| model | settings | a server held | the check said |", "|---|--:|--:|--:|"]
    for model, cases_of in rows.items():
        errors, sizes = [error for error, _, _ in cases_of], [size / 1024 for _, _, size in cases_of]
        held_out = " *" if model in HELD_OUT else ""
        size = f"{min(sizes):.1f} to {max(sizes):.1f} GiB" if len(sizes) > 1 else f"{sizes[0]:.1f} GiB"
        lines.append(f"| {model}{held_out} | {len(errors)} | {size} | {_span(errors, 100, '.1f')} % |")
    every = [it for cases_of in rows.values() for it in cases_of]
    lines.append(f"| all | {count} | | {_span([error for error, _, _ in every], 100, '.1f')} % |")
    parts_words = (f"{part} {_span([parts[part] for _, parts, _ in every], 1, '.0f')} MiB" for part in every[0][1])
    lines += ["", f"Off by, part by part: {', '.join(parts_words)}. * looked at only once the formulas were fixed."]
    if cpu:
        caches, buffers = ([it[part] for it in cpu] for part in (0, 1))
        words = f"KV cache off by {_span(caches, 1, '.0f')} MiB, buffers by {_span(buffers, 1, '.0f')} MiB"
        lines += ["", f"A build for CPUs, {len(cpu)} settings: {words}; the most is the F16 copy of another cache, which only CUDA makes."]
    if refused:
        lines += ["", f"Did not start: {'; '.join(refused)}."]
    return "\n".join(lines) + "\n"


def _span(values: Sequence[float], scale: float, form: str) -> str:
    low, high = (f"{round(scale * value, 6) + 0.0:+{form}}".replace("-", "\u2212") for value in (min(values), max(values)))
    low, high = (re.sub(r"^[+\u2212](0(?:\.0*)?)$", r"\1", word) for word in (low, high))
    return low if low == high else f"{low} to {high}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="path of llama-server; left out, only the table is made of what was measured before")
    parser.add_argument("--gpu", action="store_true", help="the server computes on a GPU")
    parser.add_argument(
        "--models", type=Path, default=Path("/tmp/ptolemy-memory-models"), help="where the models are written; sparse files"
    )
    parser.add_argument("--measured", type=Path, default=MEASURED, help="JSON lines, added to")
    parser.add_argument("--only", default="", help="cases whose description holds this")
    parser.add_argument("--seconds", type=float, default=3600, help="start no case after that")
    parser.add_argument("--machine", default="one H100 (81,559 MiB, driver 580.159, CUDA 13.0)", help="for the table's first line")
    parser.add_argument("--page", type=Path, help="a page in which the table between this benchmark's markers is replaced")
    options = parser.parse_args(arguments)
    if options.server:
        run(options)
    if options.gpu or not options.server:
        with tempfile.TemporaryDirectory() as folder:
            words = table(options.measured, Path(folder), options.machine)
        print(words)
        if options.page:
            write_between(options.page, "memory-fit", f"\n{words}\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What a GPU gives: llama.cpp's own ceiling, llama-server alone, several of them, and this project's gateway before them.

    python bench/gpu/run.py --build BIN --vocabulary llama.cpp/models/ggml-vocab-llama-bpe.gguf --results out.jsonl     # the plan below
    python bench/gpu/run.py ... --loads chat --setups "six: servers=6 slots=24 mps" "one: plain servers=1 slots=64"     # a search
    python bench/gpu/run.py --results out.jsonl --page docs/performance.md                                              # tables and plots

Needs numpy and gguf; for the setups with a gateway, Debian's haproxy (or HAPROXY=/path/to/haproxy) and ansible-core. Models are
written (random weights, real shapes) or taken, and each result is a line of --results as soon as it is there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "gateway"), str(HERE.parent), str(ROOT / "tests"), str(ROOT / "module_utils")]

import ceiling  # noqa: E402
import performance  # noqa: E402
from engines import KEY, Engine, Setup, engines, gateway, parse, timings  # noqa: E402
from loads import LOADS, Load, Prompts, single_words  # noqa: E402
from models import MODELS, ensure  # noqa: E402
from proxies import BATCH_KEY, Proxy  # noqa: E402
from tables import percentile  # noqa: E402
from traffic import Traffic, closed_loop  # noqa: E402
from watch import Window, gpu_names  # noqa: E402

PLAN = (
    "llama-server's defaults: plain servers=1 slots=0",
    "llama-server, 64 slots: plain servers=1 slots=64",
    "4 servers of 32 slots: servers=4 slots=32",
    "the same through the gateway: servers=4 slots=32 gateway=leastconn",
)
BUILD = (
    "-DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_CURL=OFF"
    " -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_CUDA_NCCL=OFF"
)
_began = time.monotonic()


def say(words: str) -> None:
    """One line of progress."""
    seconds = int(time.monotonic() - _began)
    print(f"[{seconds // 60:02d}:{seconds % 60:02d}] {words}", file=sys.stderr, flush=True)


def build(source: Path, into: Path, cuda: bool) -> Path:
    """Build the two programs; returns the folder that holds them."""
    options = [*BUILD.split(), *(["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"] if cuda else [])]
    subprocess.run(["cmake", "-S", source, "-B", into, *options], check=True)
    targets = ["--target", "llama-server", "llama-batched-bench"]
    subprocess.run(["cmake", "--build", into, "--parallel", str(os.cpu_count()), *targets], check=True)
    return into / "bin"


def measure(given: argparse.Namespace, setup: Setup, name: str, running: Sequence[Engine], proxy: Proxy, words: Sequence[str]) -> Traffic:
    """One line of the results, after one closed loop."""
    load = LOADS[name]
    if load.pause:
        load = replace(load, pause=given.pause, people=given.people)
    slots = (setup.slots or 4) * len(running)
    key = "" if load.streamed or not setup.gateway else BATCH_KEY
    window = Window([engine.pid for engine in running], proxy.pid, given.gpu_ids[: setup.gpus])
    prompts = Prompts(load, words, "demo")
    loop = closed_loop(proxy, load, prompts, round(slots * load.people), given.seconds, given.patience, window, key)
    traffic = asyncio.run(loop)
    seconds = (traffic.ended - traffic.began) / 1e9
    found = summary(traffic, load)
    place = {"kind": "run", "setup": asdict(setup), "load": name, "people": load.people, "pause": load.pause}
    place |= {"model": setup.model or given.model}
    place |= {"gpu": given.gpu, "machine": given.gpu_ids[0] if given.gpu_ids else os.uname().nodename}
    found |= {
        "seconds": seconds,
        "slots": slots,
        "slots_busy": sum(reply.ended - reply.sent for reply in traffic.replies) / 1e9 / seconds / slots if seconds else 0.0,
        "busy": window.busy,
        "power": window.power,
        "memory": window.memory,
        "main_thread": window.main,
        "other_threads": window.rest,
        "gateway_cpu": window.gateway_cpu,
        "loop": [times for engine in running if (times := timings(engine))],
        "errors": dict(traffic.errors),
        "replies": [_microseconds(traffic, reply.sent, reply.first, reply.ended) for reply in traffic.replies],
    }
    _write(given.results, place | found)
    say(
        f"{setup.name}: {name}: {found['per_second']:.1f}/s, first token {found['first'][0]:.2f}/{found['first'][1]:.2f} s, slots busy "
        f"{100 * found['slots_busy']:.0f} %, GPU {window.busy:.0f} %, main {window.main:.2f}, cached {found['cached']:.0f}, "
        f"{sum(traffic.errors.values())} errors "
        f"{dict(traffic.errors.most_common(2)) if traffic.errors else ''} {found['loop'][:1] or ''}"
    )
    return traffic


def summary(traffic: Traffic, load: Load) -> dict[str, Any]:
    """What a window's answers come to: requests/s, tokens/s, and p50 and p99 of times in seconds."""
    seconds = (traffic.ended - traffic.began) / 1e9
    replies = traffic.replies
    gaps = [(later - one) / 1e9 for reply in replies for one, later in zip(reply.marks, reply.marks[1:])]
    times = {
        "first": [(reply.first - reply.sent) / 1e9 for reply in replies],
        "whole": [(reply.ended - reply.sent) / 1e9 for reply in replies],
        "gap": gaps,
    }
    mean = sum(reply.cached for reply in replies) / len(replies) if replies else 0.0
    prompts = sum(reply.prompt for reply in replies) / len(replies) if replies else 0.0
    return {
        "requests": len(replies),
        "per_second": len(replies) / seconds if seconds else 0.0,
        "tokens_per_second": len(replies) * load.out / seconds if seconds else 0.0,
        "prompt": prompts,
        "cached": mean,
        **{name: [percentile(values, share) for share in (0.5, 0.99)] if values else [0.0, 0.0] for name, values in times.items()},
    }


def run_setup(given: argparse.Namespace, setup: Setup, loads: Sequence[str], words: Sequence[str]) -> None:
    """Start a setup once, and measure all loads with it."""
    context = max(LOADS[name].context for name in loads)
    model = model_path(given, setup.model or given.model)
    with tempfile.TemporaryDirectory(prefix="ptgpu-") as base, contextlib.ExitStack() as stack:
        folder = Path(base)
        folder.chmod(0o755)
        running = stack.enter_context(engines(setup, given.build / "llama-server", model, context, given.gpu_ids, folder))
        ports = [engine.port for engine in running]
        proxy = stack.enter_context(gateway(setup, ports, folder)) if setup.gateway else Proxy("direct", ports, KEY)
        for name in loads:
            if time.monotonic() - _began > given.limit:
                return say(f"{setup.name}: {name}: left out, the limit of {given.limit:g} s is reached")
            measure(given, setup, name, running, proxy, words)
    return None


def rehearse() -> None:
    """Start the gateway once without servers, so that what it lacks is told before minutes of a GPU are spent."""
    with tempfile.TemporaryDirectory(prefix="ptgpu-") as base:
        Path(base).chmod(0o755)
        try:
            with gateway(Setup("rehearsal", gateway="leastconn"), [], Path(base)):
                say("the gateway starts")
        except Exception as error:  # noqa: BLE001  whatever it is
            sys.exit(f"the gateway does not start; it needs what Debian's haproxy brings (HAProxy, its user and /var/lib/haproxy): {error}")


def model_path(given: argparse.Namespace, name: str) -> Path:
    """A file, or a model of this benchmark by its name."""
    return ensure(given.models, name, given.vocabulary) if name in MODELS else Path(name)


def _microseconds(traffic: Traffic, *times: int) -> list[int]:
    return [(time - traffic.began) // 1000 for time in times]


def _write(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, help="a folder with llama-server and llama-batched-bench")
    parser.add_argument("--source", type=Path, help="llama.cpp's source instead, which is built into --build")
    parser.add_argument("--vocabulary", type=Path, help="llama.cpp's models/ggml-vocab-llama-bpe.gguf")
    parser.add_argument("--models", type=Path, default=Path("/tmp/ptolemy-models"), help="where models are written")
    parser.add_argument("--model", default="8b", help=f"{', '.join(MODELS)}, or a GGUF file with Llama 3's tokenizer and template")
    parser.add_argument("--gpus", help="indices or UUIDs for CUDA_VISIBLE_DEVICES, as 0,1 (all); none: the CPU")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=["short", "classify", "chat"])
    parser.add_argument("--setups", nargs="*", default=list(PLAN), help="see bench/gpu/engines.py, parse")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds on average between the turns of a conversation")
    parser.add_argument("--people", type=float, default=1.5, help="conversations for each slot, for loads with pauses")
    parser.add_argument("--ceiling", action="store_true", help="measure llama-batched-bench, too")
    parser.add_argument("--bench-flags", default="", help="further arguments of llama-batched-bench, as '-ub 1024'")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each window")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds until a window begins in any case")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which nothing new is begun")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines, which is added to")
    parser.add_argument("--page", type=Path, help="write tables and plots of the results into this page, and measure nothing")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    # An end by a signal ends all that was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.page:
        performance.write(given.page, given.results)
        return
    if not given.build or not given.vocabulary:
        sys.exit("--build and --vocabulary are needed")
    try:
        setups = [parse(text) for text in given.setups]
    except ValueError as error:
        sys.exit(str(error))
    if any(setup.gateway for setup in setups):
        rehearse()
    names = gpu_names()
    ids = list(names) if given.gpus is None else [] if given.gpus == "none" else given.gpus.split(",")
    given.gpu_ids = [list(names)[int(one)] if one.isdigit() else one for one in ids]
    given.gpu = names.get(given.gpu_ids[0], "") if given.gpu_ids else "CPU"
    if given.source:
        given.build = build(given.source, given.build, bool(given.gpu_ids))
    given.results.parent.mkdir(parents=True, exist_ok=True)
    if given.ceiling:
        model = model_path(given, given.model)
        for name in given.loads:
            flags = shlex.split(given.bench_flags)
            rows = ceiling.measure(given.build / "llama-batched-bench", model, LOADS[name], "".join(given.gpu_ids[:1]), flags, 120)
            place = {"kind": "ceiling", "load": name, "model": given.model, "gpu": given.gpu, "flags": flags}
            place["machine"] = given.gpu_ids[0] if given.gpu_ids else os.uname().nodename
            _write(given.results, {**place, "rows": rows})
            say(f"ceiling: {name}: {ceiling.per_second(rows, LOADS[name]):.1f}/s")
    words = single_words(given.vocabulary)
    for setup in setups:
        if time.monotonic() - _began > given.limit:
            say(f"{setup.name}: left out, the limit of {given.limit:g} s is reached")
            continue
        try:
            run_setup(given, setup, given.loads, words)
        except Exception as error:  # noqa: BLE001  what does not start is told, and the others are measured
            say(f"{setup.name}: {error}")
            _write(given.results, {"kind": "failed", "setup": asdict(setup), "gpu": given.gpu, "why": str(error)[-500:]})


if __name__ == "__main__":
    main()

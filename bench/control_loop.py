#!/usr/bin/env python3
"""How long a turn of ptolemyd's loop takes: real HAProxy, real sockets, a squeue and a sinfo that print what a large cluster would.

    python bench/control_loop.py                       # 1,000 endpoints, a table on standard output
    python bench/control_loop.py --endpoints 5000 --page docs/benchmarks.md

Needs the program haproxy (2.6 or newer). A second HAProxy stands for the llama-servers and answers the health checks.
What is measured is the daemon's own tick: squeue and sinfo as processes, parsing, planning, HAProxy's runtime API, the status file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "module_utils"))

from ptolemy.config import load  # noqa: E402
from ptolemy.daemon import Daemon  # noqa: E402
from ptolemy.record import READY, Record, encode  # noqa: E402
from tables import write_between  # noqa: E402

PORT, PER_JOB, SERVICES = 20000, 8, 10
UNCHANGED = 30  # ticks

GATEWAY = """
global
  stats socket {directory}/admin.sock mode 600 level admin
  maxconn 4000
defaults
  mode http
  timeout connect 3s
  timeout client 1m
  timeout server 1m
  timeout check 3s
  option httpchk
  http-check send meth GET uri /health
{backends}
"""
STUB = """
global
  maxconn 4000
defaults
  mode http
  timeout client 1m
frontend endpoints
  bind 0.0.0.0:{first}-{last}
  http-request return status 200
"""


def haproxy(directory: Path, name: str, text: str) -> subprocess.Popen[bytes]:
    program = os.environ.get("HAPROXY") or shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        sys.exit("haproxy is not installed: apt-get install haproxy, or name it: HAPROXY=/path/to/haproxy")
    (directory / f"{name}.cfg").write_text(text)
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen([program, "-db", "-f", str(directory / f"{name}.cfg")], stdout=log, stderr=log)


def squeue(jobs: int, revisions: dict[str, str]) -> str:
    """What squeue prints: one line a job, in the adapter's format."""
    names = sorted(revisions)
    lines = []
    for number in range(1, jobs + 1):
        service = names[number % len(names)]
        record = Record(service, revisions[service], 0, READY, tuple(range(PORT, PORT + PER_JOB)), 32, took=40)
        times = [f"2026-11-01T{clock}" for clock in ("08:00:00", "08:00:09")]
        fields = [
            number,
            "RUNNING",
            os.getuid(),
            0,
            f"node{number}",
            *times,
            "2036-01-01T08:00:09",
            "N/A",
            "None",
            f"ptolemy-{service}",
        ]
        lines.append("".join(f"{field!s:<40}|" for field in (*fields, encode(record))))
    return "\n".join(lines) + "\n"


def sinfo(jobs: int) -> str:
    return "".join(f"node{number}|127.1.{number // 250}.{number % 250 + 1}|gpu|mixed\n" for number in range(1, jobs + 1))


@contextlib.contextmanager
def cluster(endpoints: int) -> Iterator[tuple[Daemon, Path]]:
    """A daemon whose Slurm is two files, and whose HAProxy is real."""
    with tempfile.TemporaryDirectory(prefix="ptbench-") as base:
        directory = Path(base)
        site = {
            "user": "bench",
            "uid": os.getuid(),
            "haproxy_socket": f"{base}/admin.sock",
            "status_file": f"{base}/status.json",
        }
        site["job_template"] = f"{base}/replica.sh"
        (directory / "replica.sh").write_text("#!/bin/bash\n$sbatch_options\n$spec\n")
        jobs = endpoints // PER_JOB
        model = {"model": "m", "model_path": "/m.gguf", "model_sha256": "0" * 64, "partition": "gpu"}
        size = {f"service-{number}": len(range(1, jobs + 1)[(number - 1) % SERVICES :: SERVICES]) for number in range(SERVICES)}
        services = {name: {**model, "min": count, "max": count} for name, count in size.items()}
        (directory / "services.json").write_text(json.dumps({"site": site, "services": services}))
        revisions = {name: service.revision for name, service in load(f"{base}/services.json").services.items()}
        for name, text in (("squeue", squeue(jobs, revisions)), ("sinfo", sinfo(jobs))):
            (directory / f"{name}.txt").write_text(text)
            (directory / name).write_text(f"#!/bin/sh\nexec cat {base}/{name}.txt\n")
            (directory / name).chmod(0o755)
        os.environ["PATH"] = f"{base}:{os.environ['PATH']}"
        backends = "\n".join(f"backend svc_{name}\n  server hold 127.0.0.1:9 backup maxconn 1" for name in services)
        running = [
            haproxy(directory, "gateway", GATEWAY.format(directory=base, backends=backends)),
            haproxy(directory, "stub", STUB.format(first=PORT, last=PORT + PER_JOB - 1)),
        ]
        try:
            wait_for(directory / "admin.sock")
            yield Daemon(f"{base}/services.json"), directory
        finally:
            for process in running:
                process.terminate()
                process.wait(10)


def wait_for(path: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        time.sleep(0.02)
    sys.exit(f"haproxy does not answer at {path}: {(path.parent / 'gateway.log').read_text()}")


def timed(daemon: Daemon) -> tuple[float, str]:
    began = time.perf_counter()
    sentence = daemon.tick()
    return time.perf_counter() - began, sentence


def measure(endpoints: int) -> list[tuple[str, float, float]]:
    """Seconds of a tick: what it was, median, worst."""
    with cluster(endpoints) as (daemon, directory):
        first, sentence = timed(daemon)
        added = sentence.count("add ")
        if added != endpoints:
            sys.exit(f"{added} of {endpoints} endpoints were added: {sentence[:300]}")
        unchanged: list[float] = []
        while len(unchanged) < UNCHANGED:
            seconds, sentence = timed(daemon)
            if sentence:
                sys.exit(f"a tick changed something although nothing had happened: {sentence[:300]}")
            unchanged.append(seconds)
            time.sleep(0.2)
        listed = directory / "squeue.txt"
        lines = listed.read_text().splitlines(keepends=True)
        listed.write_text("".join(line.replace("RUNNING", "COMPLETING") if index % 10 == 0 else line for index, line in enumerate(lines)))
        (directory / "sbatch").write_text("#!/bin/sh\necho 999999\n")
        (directory / "sbatch").chmod(0o755)
        tenth, sentence = timed(daemon)
    return [
        (f"from nothing: {endpoints:,} servers added", first, first),
        (f"nothing changed ({UNCHANGED} ticks)", statistics.median(unchanged), max(unchanged)),
        (
            f"a tenth of the jobs ended: {sentence.count('drain ')} servers drained, {sentence.count('submit ')} jobs submitted",
            tenth,
            tenth,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--page", type=Path, help="a page in which the table between this benchmark's markers is replaced")
    given = parser.parse_args()
    rows = measure(given.endpoints - given.endpoints % PER_JOB)
    text = f"One tick with {given.endpoints:,} endpoints, Python {platform.python_version()}, {os.cpu_count()} cores:\n\n"
    text += "| tick | median | worst |\n| --- | --- | --- |\n"
    text += "".join(f"| {what} | {median * 1000:,.0f} ms | {worst * 1000:,.0f} ms |\n" for what, median, worst in rows)
    print(text)
    if given.page:
        write_between(given.page, "control-loop", f"\n{text}")


if __name__ == "__main__":
    main()

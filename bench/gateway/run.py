#!/usr/bin/env python3
"""The gateway against its peers on loopback: requests/s, added latency, CPU, and 10,000 requests at once.

    python bench/gateway/run.py --page docs/benchmarks.md     # about a quarter of an hour on 2 cores
    python bench/gateway/run.py --quick --peers nginx         # seconds: does it still work? its numbers say nothing

Needs Debian's haproxy (or HAPROXY=/path/to/haproxy), nginx-light, libnginx-mod-http-lua and wrk. LiteLLM goes into
~/.cache/ptolemy by itself, by pip. The tables come on standard output; --page also writes them, and the plots beside the page.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT / "tests"), str(ROOT / "module_utils")]

import crowd  # noqa: E402
import latency  # noqa: E402
import page  # noqa: E402
import proxies  # noqa: E402
import rates  # noqa: E402
from local_gateway import HAPROXY  # noqa: E402
from names import BATCH, LITELLM, NGINX, OURS, SMALL  # noqa: E402
from results import Results  # noqa: E402
from tables import has_markers  # noqa: E402

PEERS = ("nginx", "litellm")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of requests/s and of latency; in each, everyone has a turn.
        seconds: of one turn; wrk knows whole ones only.
        streams: at once.
        crowd: requests at once.
        crowds: how often.
        patience: seconds until a request of a crowd has failed.
        tries: of a peer, each with half as many.
    """

    rounds: int = 3
    seconds: int = 3
    streams: Sequence[int] = (1, 64, 256)
    crowd: int = 10_000
    crowds: int = 3
    patience: float = 60.0
    tries: int = 4


QUICK = Size(rounds=1, seconds=1, streams=(1, 64), crowd=400, crowds=1, patience=20.0, tries=1)
_began = time.monotonic()


def say(words: str) -> None:
    """One line of progress."""
    seconds = int(time.monotonic() - _began)
    print(f"[{seconds // 60:02d}:{seconds % 60:02d}] {words}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def running(servers: int, slots: int, gateways: Sequence[str], maxconn: int) -> Iterator[list[proxies.Proxy]]:
    """The stub servers and gateways before them, in this order."""
    with tempfile.TemporaryDirectory(prefix="ptbench-") as base, contextlib.ExitStack() as stack:
        directory = Path(base)
        directory.chmod(0o755)  # nginx's workers have an account of their own
        stub = stack.enter_context(proxies.stub_servers(directory, servers, slots))
        started = {
            "ptolemy": lambda: proxies.ptolemy(directory, stub.ports, slots, haproxy_maxconn=maxconn),
            "small": lambda: proxies.ptolemy(directory, stub.ports, slots, SMALL, haproxy_maxconn=maxconn, haproxy_bufsize=65536),
            "nginx": lambda: proxies.plain_nginx(directory, stub.ports),
            "litellm": lambda: proxies.litellm(directory, stub.ports),
        }
        yield [stub, *(stack.enter_context(started[name]()) for name in gateways)]


def measure_speed(found: Results, size: Size, peers: Sequence[str], maxconn: int) -> None:
    """Requests/s, latency and CPU, each peer in turn, so that a slow minute of the machine hits all."""
    names = ["ptolemy", "small", *peers]
    with running(proxies.SERVERS, proxies.SLOTS, names, maxconn) as started, tempfile.TemporaryDirectory(prefix="ptbench-") as base:
        turns = [(proxy.name, proxy, "") for proxy in started]
        turns.insert(2, (BATCH, started[1], proxies.BATCH_KEY))
        for name, proxy, key in turns:
            say(f"warming up {name}")
            rates.measure(proxy, Path(base), _turn(name, size), key=key)
        for number in range(size.rounds):
            for kind in ("unstreamed", "streamed"):
                for name, proxy, key in turns:
                    rate = rates.measure(proxy, Path(base), _turn(name, size), kind == "streamed", key)
                    found.rates.setdefault(kind, {}).setdefault(name, []).append(rate)
                    say(f"round {number + 1}: {name}: {rate.requests / rate.seconds:,.0f} requests/s, {kind}, {rate.failed} failed")
        for number in range(size.rounds):
            for streams in size.streams:
                for proxy in started:
                    # LiteLLM takes many times as long as the others; a buffer is a matter of requests, not of tokens.
                    if proxy.name == SMALL or (proxy.name == LITELLM and number):
                        continue
                    sample = latency.measure(proxy, streams, size.seconds)
                    found.latency.setdefault(streams, {}).setdefault(proxy.name, latency.Sample()).add(sample)
                    say(f"round {number + 1}: {proxy.name}: {sample.streams} streams, {streams} at once, {sample.failed} failed")


def _turn(name: str, size: Size) -> int:
    """Seconds: LiteLLM needs more than one for each of the 64 answers that are under way when wrk stops, and are not counted."""
    return 10 if name == LITELLM else size.seconds


def measure_crowds(found: Results, size: Size, peers: Sequence[str], maxconn: int) -> None:
    """Ours some times; each peer with what it can hold, found by halving."""
    with running(crowd.SERVERS, crowd.SLOTS, ["ptolemy"], maxconn) as (_, ours):
        for _ in range(size.crowds):
            found.crowds.setdefault(OURS, []).append(crowd.measure(ours, size.crowd, size.patience, tiers=True))
            say(f"{OURS}: {_told(found.crowds[OURS][-1])}")
    for peer in peers:
        offered = size.crowd
        for _ in range(size.tries):
            # What a peer could not hold still lies in it: each try has a fresh one.
            with running(crowd.SERVERS, crowd.SLOTS, [peer], maxconn) as (_, proxy):
                one = crowd.measure(proxy, offered, size.patience, tiers=False)
            found.crowds.setdefault(proxy.name, []).append(one)
            say(f"{proxy.name}: {_told(one)}")
            if not one.failed:
                break
            offered //= 2


def _told(one: crowd.Crowd) -> str:
    why = ", ".join(f"{count} {kind}" for kind, count in one.failures.most_common(3))
    return f"{one.answered} of {one.offered} at once answered in {one.seconds:.0f} s{', ' if why else ''}{why}"


def versions(peers: Sequence[str]) -> list[str]:
    """What is measured, and on what."""

    def said(program: str) -> list[str]:
        done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=10, check=False)
        return (done.stdout + done.stderr).split()

    names = [f"HAProxy {said(HAPROXY)[2].split('-')[0]}"]
    if NGINX in peers:
        names.append(said(proxies.NGINX_PROGRAM)[-1])
    if "litellm" in peers:
        names.append(f"LiteLLM {proxies.LITELLM_VERSION} with {os.cpu_count()} workers")
    return [*names, f"Python {sys.version.split()[0]}", f"{os.cpu_count()} cores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all; none: --peers without a name")
    parser.add_argument("--page", type=Path, help="a page in which the tables between this benchmark's markers are replaced")
    given = parser.parse_args()
    if lacking := proxies.missing():
        sys.exit(f"not installed: {' '.join(lacking)}; apt-get install --no-install-recommends {' '.join(lacking)}")
    if given.page and not has_markers(given.page, page.MARKER):
        sys.exit(f"{given.page}: has no markers '<!-- {page.MARKER}: begin -->' and '<!-- {page.MARKER}: end -->'")
    # An end by a signal ends all that was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    size = QUICK if given.quick else Size()
    files = os.sysconf("SC_OPEN_MAX")
    if files < 2 * size.crowd:
        sys.exit(f"at most {files} open files; {2 * size.crowd} are needed: ulimit -n {2 * size.crowd}")
    # As many clients as the limit of open files lets the role's preflight accept, see roles/haproxy.
    maxconn = min(size.crowd, int(((files - 1000) / 2 - 50) / 1.05))
    found = Results(versions=versions(given.peers), load=os.getloadavg()[0])
    if "litellm" in given.peers:
        say("LiteLLM: looking for it, else installing it (minutes)")
        proxies.install_litellm()
    measure_speed(found, size, given.peers, maxconn)
    measure_crowds(found, size, given.peers, maxconn)
    text = page.tables(found)
    print(text)
    if given.page:
        page.write(given.page, text, found)


if __name__ == "__main__":
    main()

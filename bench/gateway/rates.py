"""Requests a second, by wrk: as many as there are, on connections that stay open where the proxy lets them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import cpu_seconds
from proxies import Proxy
from wishes import chat

CONNECTIONS = 64
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Rate:
    """One run of wrk.

    Attributes:
        requests: whole answers.
        failed: other statuses, torn connections, time-outs.
        seconds: wall time.
        cpu: CPU seconds of the proxy.
    """

    requests: int
    failed: int
    seconds: float
    cpu: float


def measure(proxy: Proxy, directory: Path, seconds: int, stream: bool = False, key: str = "", tokens: int = 16) -> Rate:
    """Ask at full speed.

    Raises:
        ValueError: wrk's output cannot be read.
    """
    body = chat(0, prefill=0, step=0, tokens=tokens, stream=stream)
    script = directory / "wrk.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = [==[{body}]==]\n"
        f"wrk.headers = {{['Content-Type'] = 'application/json', ['Authorization'] = 'Bearer {key or proxy.key}'}}\n"
    )
    url = f"http://127.0.0.1:{proxy.ports[0]}/v1/chat/completions"
    before = cpu_seconds(proxy.pid)
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "--timeout", "60s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    cpu = cpu_seconds(proxy.pid) - before
    found = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)\b", said)
    if not found:
        raise ValueError(f"wrk says what cannot be read: {said}")
    failed = sum(int(count) for line in re.findall(r"Socket errors: .*", said) for count in re.findall(r"\d+", line))
    failed += sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", said))
    return Rate(int(found[1]), failed, float(found[2]) * _UNITS[found[3]], cpu)

"""Load comes, goes, and comes all at once."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

pytestmark = pytest.mark.trixie

BURST = 500
TOKENS = 48  # of a long answer: the queue must outlast the start of more replicas


async def send(cluster, service, number, tokens):
    """Send requests all at once; returns what came back, by status or kind of failure."""
    url, headers = f"{cluster.base_url}/chat/completions", {"Authorization": f"Bearer {cluster.api_key}"}
    outcome: dict[str, int] = {}
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:

        async def one(index):
            messages = [{"role": "user", "content": f"entry {index}"}]
            body = {"model": service, "max_tokens": tokens, "ignore_eos": True, "messages": messages}
            try:
                async with session.post(url, json=body) as answer:
                    await answer.read()
                    result = str(answer.status)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                result = type(error).__name__
            outcome[result] = outcome.get(result, 0) + 1

        await asyncio.gather(*(one(index) for index in range(number)))
    return outcome


@pytest.fixture
def asleep(cluster):
    """The service `nap`, sleeping."""
    with cluster.service_as("nap", scale_in_delay=2):
        cluster.until(lambda: not cluster.jobs("nap"), "nap sleeps")
    return cluster


def test_the_first_request_wakes_a_sleeping_service(asleep, measured):
    began = time.monotonic()
    assert asyncio.run(send(asleep, "nap", 1, 4)) == {"200": 1}
    measured(f"A sleeping service answered its first request after {time.monotonic() - began:.1f} s.")
    started, ready, routed = first_steps(asleep)
    measured(
        f"From the job's start: its replica was ready after {ready - started:.1f} s, and had its server after {routed - started:.1f} s."
    )


def first_steps(cluster):
    """Unix times of a replica's start, of its readiness and of its server's adding, by Slurm and the journal."""
    job = cluster.jobs("nap")[0]
    columns = cluster.run("head", "squeue", "-h", "-j", str(job), "-O", "StartTime:40").strip()
    started = float(cluster.run("head", "date", "-d", columns, "+%s"))
    row = cluster.service("nap")["replicas"][0]
    log = cluster.run(row["host"], "cat", f"/var/log/ptolemy/ptolemy-nap-{job}.log")
    (line,) = [line for line in log.splitlines() if "ptolemy: ready" in line]
    ready = float(cluster.run("head", "date", "-d", line.split()[0], "+%s"))
    added = lambda: [line for line in journal(cluster) if f"add svc_nap/j{job}r" in line]  # noqa: E731
    cluster.until(added, "journald has the line, too")
    return started, ready, float(added()[0].split()[0])


def journal(cluster):
    return cluster.run("head", "journalctl", "-u", "ptolemyd", "-o", "short-unix", "-n", "50").splitlines()


def test_a_burst_at_a_sleeping_service_is_answered_whole(asleep, measured):
    began = time.monotonic()
    assert asyncio.run(send(asleep, "nap", BURST, 4)) == {"200": BURST}
    measured(f"{BURST} requests at once at a sleeping service: all answered after {time.monotonic() - began:.1f} s.")


def test_a_queue_brings_more_replicas_and_they_go_when_it_is_over(asleep):
    with asleep.service_as("nap", scale_in_delay=5):
        outcome, most = asyncio.run(with_watch(asleep, "nap"))
        assert outcome == {"200": BURST}
        assert most == 3
        extra = [row for row in asleep.service("nap")["replicas"] if row["opportunistic"]]
        assert len(extra) <= 1
        asleep.until(lambda: not asleep.jobs("nap"), "nap sleeps again")


async def with_watch(cluster, service):
    """Send a burst of long requests; returns the outcome and the most replicas that served at once."""
    running = asyncio.ensure_future(send(cluster, service, BURST, TOKENS))
    most = 0
    while not running.done():
        most = max(most, (await asyncio.to_thread(cluster.service, service))["replicas_ready"])
        await asyncio.wait([running], timeout=0.2)
    return running.result(), most


WATCH = """
import socket, subprocess, sys, time
job, backend = sys.argv[1:]
def haproxy(command):
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect("/run/haproxy/admin.sock")
        admin.sendall(command.encode())
        return b"".join(iter(lambda: admin.recv(65536), b"")).decode()
deadline, published = time.time() + 60, 0
while time.time() < deadline:
    if not published and '"st":"ready"' in subprocess.run(["squeue", "-h", "-j", job, "-o", "%k"], capture_output=True, text=True).stdout:
        published = time.time()
    for row in haproxy("show stat -1 4 -1\\n").splitlines():
        columns = row.split(",")
        if columns[0] == backend and columns[1].startswith(f"j{job}r") and int(columns[7] or 0) >= 1:
            print(time.time() - published if published else 0.0)
            sys.exit()
    time.sleep(0.02)
"""


def test_a_new_replica_takes_its_share_of_a_queue_within_a_second_of_its_record(asleep, measured):
    async def scenario():
        burst = asyncio.ensure_future(send(asleep, "nap", BURST, TOKENS))
        second = await asyncio.to_thread(later_job, asleep)
        seconds = float(await asyncio.to_thread(asleep.run, "head", "python3", "-c", WATCH, str(second), "svc_nap"))
        waiting = (await asyncio.to_thread(asleep.service, "nap"))["queued"]
        return seconds, waiting, await burst

    seconds, waiting, outcome = asyncio.run(scenario())
    measured(f"With {waiting} requests in the queue, a second replica had its first one {seconds:.2f} s after its record appeared.")
    assert outcome == {"200": BURST}
    assert seconds < 1


def later_job(cluster):
    """The second replica of nap, as soon as it runs."""
    running = lambda: cluster.run("head", "squeue", "-h", "-n", "ptolemy-nap", "-t", "RUNNING", "-o", "%A").split()  # noqa: E731
    cluster.until(lambda: len(running()) >= 2, "a second replica")
    return max(map(int, running()))

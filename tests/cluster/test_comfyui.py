"""Pictures on the cluster: by the stand-in for ComfyUI, or, with `make test-comfyui`, by the real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest

from comfyui_client import Painter

REAL = bool(os.environ.get("LAB_COMFYUI_SOURCE"))
PROMPTS = 50
SECONDS = 0.5  # that a prompt takes in the stand-in; the real one has larger pictures instead
SIZE = 2048 if REAL else 16
PATIENCE = 240
ASK = """
import sys, urllib.error, urllib.request
for path in sys.argv[2:]:
    try:
        print(urllib.request.urlopen(sys.argv[1] + path, timeout=10).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""

KILL = """
for at in /proc/[0-9]*; do
    if tr "\\0" " " <"$at/cmdline" 2>/dev/null | grep -q "^/opt/ptolemy/comfyui/.*main.py.*/$1 "; then kill -KILL "${at#/proc/}"; fi
done
"""


@contextlib.asynccontextmanager
async def painter(cluster) -> AsyncIterator[Painter]:
    headers, timeout = {"Authorization": f"Bearer {cluster.api_key}"}, aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Painter(session, f"{cluster.base_url.removesuffix('/v1')}/m/draw", SIZE)


@pytest.fixture
def asleep(cluster):
    with cluster.service_as("draw", scale_in_delay=5):
        cluster.until(lambda: not cluster.jobs("draw"), "draw sleeps")
        yield cluster


@contextlib.contextmanager
def instances(cluster, count):
    """So many replicas of `draw`, for a while."""

    def there() -> bool:
        row = cluster.service("draw")
        return row["replicas_ready"] == len(row["replicas"]) == len(row["servers"]) == count

    with cluster.service_as("draw", min=count, max=count, opportunistic=int(count > 1)):
        cluster.until(there, f"{count} instances")
        yield


async def under_way(cluster) -> None:
    await asyncio.to_thread(cluster.until, lambda: cluster.service("draw")["in_flight"] >= PROMPTS // 3, "prompts under way")


@pytest.mark.parametrize("way", ["paint", "poll"])
def test_the_first_prompt_wakes_a_sleeping_service_which_sleeps_again(asleep, way):
    async def scenario() -> int:
        async with painter(asleep) as user:
            return await getattr(user, way)(0xC0FFEE)

    assert asyncio.run(scenario()) == 0xC0FFEE
    asleep.until(lambda: not asleep.jobs("draw") and asleep.service("draw")["state"] == "asleep", "it sleeps again")
    for host in ("n1", "n2"):
        assert asleep.run(host, "ls", "/var/lib/ptolemy/comfyui") == ""


@pytest.mark.bookworm
def test_more_prompts_than_one_instance_should_have_bring_more_instances(asleep):
    async def scenario() -> tuple[list[int], int]:
        async with painter(asleep) as user:
            painting = asyncio.gather(*(user.poll(color, 2 * SECONDS) for color in range(24)))
            most = 0
            while not painting.done():
                most = max(most, len(await asyncio.to_thread(asleep.jobs, "draw")))
                await asyncio.wait([painting], timeout=0.5)
            return await painting, most

    colors, most = asyncio.run(scenario())
    assert colors == list(range(24))
    assert most >= 2


def end_one(cluster, how):
    """End the replica with the longest queue: as people do it, or so that its instance has no moment left."""
    busiest = max(cluster.service("draw")["servers"], key=lambda server: server["in_flight"])
    job = busiest["name"][1:].partition("r")[0]
    (host,) = (row["host"] for row in cluster.service("draw")["replicas"] if str(row["job"]) == job)
    if how == "killed":
        cluster.run(host, "sh", "-c", KILL, "sh", busiest["name"])
    cluster.run("head", "scancel", *(["--signal=KILL", "--full"] if how == "killed" else []), job)


@pytest.mark.bookworm
@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_nobodys_picture_is_lost_or_anothers_when_one_of_three_replicas_ends(cluster, how):
    resubmitted: Counter[int] = Counter()

    async def one(user: Painter, color: int) -> int:
        """As a careful client does it: what was lost is sent once more."""
        way = (user.paint, user.poll)[color % 2]
        try:
            return await asyncio.wait_for(way(color, SECONDS), PATIENCE)
        except (AssertionError, aiohttp.ClientError):
            resubmitted[color] += 1
            return await asyncio.wait_for(way(color, SECONDS), PATIENCE)

    async def scenario() -> list[int]:
        async with painter(cluster) as user:
            painting = asyncio.gather(*(one(user, color) for color in range(PROMPTS)))
            await under_way(cluster)
            await asyncio.to_thread(end_one, cluster, how)
            return await painting

    with instances(cluster, 3):
        assert asyncio.run(scenario()) == list(range(PROMPTS))
        assert len(resubmitted) < PROMPTS
        assert set(resubmitted.values()) <= {1}
        # An ordinary end gives the instance `stop_grace` seconds for its queue, and its last pictures a moment to be fetched.
        assert resubmitted or how == "cancelled" or REAL
        cluster.until(lambda: cluster.service("draw")["replicas_ready"] == 3, "three instances again")


@pytest.mark.bookworm
def test_a_replica_that_is_no_longer_wanted_finishes_its_queue_first(cluster):
    async def scenario() -> list[int]:
        async with painter(cluster) as user:
            painting = asyncio.gather(*(user.poll(color, SECONDS) for color in range(PROMPTS)))
            await under_way(cluster)
            with cluster.service_as("draw", min=1, max=1, opportunistic=0):
                colors = await painting
                await asyncio.to_thread(cluster.until, lambda: len(cluster.jobs("draw")) == 1, "one replica left")
            return colors

    with instances(cluster, 2):
        assert asyncio.run(scenario()) == list(range(PROMPTS))


@pytest.mark.bookworm
def test_a_reload_of_the_gateway_loses_no_prompt(cluster):
    async def scenario() -> list[int]:
        async with painter(cluster) as user:
            painting = asyncio.gather(*(user.poll(color, SECONDS) for color in range(PROMPTS)))
            await under_way(cluster)
            for _ in range(2):
                await asyncio.to_thread(cluster.run, "head", "systemctl", "reload", "haproxy")
                await asyncio.to_thread(cluster.until, lambda: len(cluster.service("draw")["servers"]) == 2, "both are there again")
            return await painting

    with instances(cluster, 2):
        assert asyncio.run(scenario()) == list(range(PROMPTS))


def test_nobody_reaches_an_instance_without_its_key(cluster):
    with instances(cluster, 1):
        (server,), (replica,) = cluster.service("draw")["servers"], cluster.service("draw")["replicas"]
        paths = ("/prompt", "/object_info", "/queue", "/api/queue", "/view?filename=x")
        told = cluster.run("n1", "python3", "-c", ASK, f"http://{server['address']}", *paths, user="nobody")
        assert told.split() == ["200", "401", "401", "401", "401"]
        base = f"/var/lib/ptolemy/comfyui/{server['name']}"
        assert cluster.run(replica["host"], "stat", "-c", "%a %U", base).split() == ["700", "ptolemy"]

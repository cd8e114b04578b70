"""A browser sees on the status page what happens to the cluster: a scale-out, a rollout, an outage.

PTOLEMY_TEST_PICTURES=<directory> also saves the pictures of docs/.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import time
from pathlib import Path

from chromium import browser

DEMO = "[aria-labelledby=service-demo]"
PICTURES = os.environ.get("PTOLEMY_TEST_PICTURES", "")


def url(cluster):
    return cluster.base_url.removesuffix("/v1") + "/status"


def test_it_fits_every_screen_and_runs_nothing_that_its_policy_forbids(cluster):
    async def scenario():
        async with browser() as page:
            await page.open(url(cluster))
            await page.until("services answer", "#headline")
            for name, width, height, scheme in (("light", 1000, 800, "light"), ("dark", 1000, 800, "dark"), ("phone", 360, 740, "light")):
                await page.look(width, height, scheme)
                assert await page.run("document.documentElement.scrollWidth") <= width, f"no scrolling sideways: {name}"
                if PICTURES:
                    await page.picture(Path(PICTURES) / f"status-{name}.png")
            assert page.complaints == []

    # Something to see on the charts.
    with cluster.load(clients=6, least=200):
        asyncio.run(scenario())


def test_it_is_used_by_keyboard_and_has_names_for_who_hears_it(cluster):
    async def scenario():
        async with browser() as page:
            await page.open(url(cluster))
            await page.until("services answer", "#headline")
            assert await page.run("document.querySelector('#headline').getAttribute('role')") == "status"
            named = "[...document.querySelectorAll('svg[role=img]')].every((it) => it.getAttribute('aria-label').length > 10)"
            assert await page.run(named)
            assert await page.run("[...document.querySelectorAll('table')].every((it) => it.caption && it.tHead)")
            reached = set()
            for _ in range(12):
                await page.press("Tab")
                reached.add(await page.run("document.activeElement.id || document.activeElement.tagName"))
            assert {"SUMMARY", "key", "BUTTON"} <= reached, reached

    asyncio.run(scenario())


def test_a_scale_out_is_seen(cluster):
    async def scenario():
        async with browser() as page:
            await page.open(url(cluster))
            await page.until(r"2 replicas", DEMO)
            # The lab's replicas start in a moment: this one waits a little in Slurm.
            with cluster.service_as("demo", min=3, max=3, sbatch_options=["--begin=now+6"]):
                await page.until(r"2 of 3 replicas ready", DEMO)
                await page.until("waiting for a GPU", f"{DEMO} tbody")
                await page.until(r"(?s)All replicas ready.*3 replicas", DEMO)
            await page.until(r"(?s)All replicas ready.*2 replicas", DEMO)

    asyncio.run(scenario())
    cluster.until_ready()


def test_a_rollout_is_seen_with_its_steps(cluster):
    path = "/etc/ptolemy/services.json"
    before = cluster.run("head", "cat", path)
    raw = json.loads(before)
    tried = copy.deepcopy(raw["services"]["demo"])
    tried["context"] += 256  # another revision
    tried["sbatch_options"] = ["--begin=now+6"]  # the lab's replicas start in a moment: this one waits a little in Slurm

    def write(**canary):
        cluster.write("head", path, json.dumps({**raw, "canaries": {"demo": {"service": tried, "asked_at": time.time(), **canary}}}))

    async def scenario():
        async with browser() as page:
            await page.open(url(cluster))
            await page.until("services answer", "#headline")
            write()
            await page.until("the canary (starts|waits for a GPU)", DEMO)
            await page.until(r"(?s)rolling out.*the canary is asked questions", DEMO)
            write(share=0.25, shared_at=time.time())
            await page.until(r"(?s)answers 25% of the requests.*canary", DEMO)
            await page.until(r"demo: a rollout is going on", "#headline")
            cluster.write("head", path, before)
            await page.until(r"services answer(, \d sleeps? until somebody asks)?\.$", "#headline")

    try:
        asyncio.run(scenario())
    finally:
        cluster.write("head", path, before)
    cluster.until_ready()


def test_an_outage_is_seen_and_old_numbers_are_not_shown_as_new_ones(cluster):
    async def scenario():
        async with browser() as page:
            await page.open(url(cluster))
            await page.until("services answer", "#headline")
            cluster.run("head", "systemctl", "stop", "ptolemyd")
            await page.until(r"the status is not known since \d\d:\d\d\.", "#headline")
            await page.until(r"What follows is from", "#age")
            assert await page.run("document.querySelector('main').classList.contains('old')")
            cluster.run("head", "systemctl", "start", "ptolemyd")
            await page.until("services answer", "#headline", 90)
            assert not await page.run("document.querySelector('main').classList.contains('old')")

            cluster.run("head", "systemctl", "stop", "slurmctld")
            await page.until(r"This is not up to date: Slurm", "#headline", 90)
            cluster.run("head", "systemctl", "start", "slurmctld")
            await page.until("services answer", "#headline", 90)

    try:
        asyncio.run(scenario())
    finally:
        cluster.run("head", "systemctl", "start", "ptolemyd", "slurmctld")


def test_an_operators_key_shows_more_in_that_tab(cluster):
    async def scenario():
        async with browser() as page:
            await page.open(url(cluster))
            await page.until("services answer", "#headline")
            assert "Address" not in await page.text(DEMO)
            enter = "document.querySelector('#key').value = {}; document.querySelector('#enter button').click()"
            await page.run(enter.format(json.dumps("sk-wrong-0123456789")))
            await page.until("That is no operator's key", "#operators")
            await page.run(enter.format(json.dumps(cluster.api_key)))
            await page.until("Address", DEMO)
            await page.until("Nobody asks anything|Users with the most requests", "#operators")
            await page.run("document.querySelector('#leave button').click()")
            await page.until("(?s)^((?!Address).)*$", DEMO)

    asyncio.run(scenario())

"""A browser sees on the status page what happens to the cluster: a scale-out, a rollout, an outage.

PTOLEMY_TEST_PICTURES=<directory> also saves the pictures of docs/.
"""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from chromium import chromium

DEMO = "[aria-labelledby=service-demo]"
PICTURES = os.environ.get("PTOLEMY_TEST_PICTURES", "")


@pytest.fixture
def page(cluster):
    with chromium(cluster.base_url.removesuffix("/v1")) as browser:
        browser.open("/status")
        browser.shows("services answer", "#headline")
        yield browser


def test_it_fits_every_screen_and_runs_nothing_that_its_policy_forbids(cluster, page):
    # Something to see on the charts.
    with cluster.load(clients=6, least=200):
        for name, width, height, scheme in (("light", 1000, 800, "light"), ("dark", 1000, 800, "dark"), ("phone", 360, 740, "light")):
            page.look(width, height, scheme)
            assert page.run("document.documentElement.scrollWidth") <= width, f"no scrolling sideways: {name}"
            if PICTURES:
                page.picture(Path(PICTURES) / f"status-{name}.png", whole=True)
    assert page.complaints == []


def test_it_is_used_by_keyboard_and_has_names_for_who_hears_it(page):
    assert page.run("document.querySelector('#headline').getAttribute('role')") == "status"
    assert page.run("[...document.querySelectorAll('svg[role=img]')].every((it) => it.getAttribute('aria-label').length > 10)")
    assert page.run("[...document.querySelectorAll('table')].every((it) => it.caption && it.tHead)")
    reached = set()
    for _ in range(12):
        page.press(Keys.TAB)
        reached.add(page.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"SUMMARY", "key", "BUTTON"} <= reached, reached


def test_a_scale_out_is_seen(cluster, page):
    page.shows(r"2 replicas", DEMO)
    # The lab's replicas start in a moment: this one waits a little in Slurm.
    with cluster.service_as("demo", min=3, max=3, sbatch_options=["--begin=now+6"]):
        page.shows(r"2 of 3 replicas ready", DEMO)
        page.shows("waiting for a GPU", f"{DEMO} tbody")
        page.shows(r"(?s)All replicas ready.*3 replicas", DEMO)
    page.shows(r"(?s)All replicas ready.*2 replicas", DEMO)
    cluster.until_ready()


def test_a_rollout_is_seen_with_its_steps(cluster, page):
    path = "/etc/ptolemy/services.json"
    before = cluster.run("head", "cat", path)
    raw = json.loads(before)
    tried = copy.deepcopy(raw["services"]["demo"])
    tried["context"] += 256  # another revision
    tried["sbatch_options"] = ["--begin=now+6"]  # the lab's replicas start in a moment: this one waits a little in Slurm

    def write(**canary):
        cluster.write("head", path, json.dumps({**raw, "canaries": {"demo": {"service": tried, "asked_at": time.time(), **canary}}}))

    try:
        write()
        page.shows("the canary (starts|waits for a GPU)", DEMO)
        page.shows(r"(?s)rolling out.*the canary is asked questions", DEMO)
        write(share=0.25, shared_at=time.time())
        page.shows(r"(?s)answers 25% of the requests.*canary", DEMO)
        page.shows(r"demo: a rollout is going on", "#headline")
        cluster.write("head", path, before)
        page.shows(r"services answer(, \d sleeps? until somebody asks)?\.$", "#headline")
    finally:
        cluster.write("head", path, before)
    cluster.until_ready()


def test_an_outage_is_seen_and_old_numbers_are_not_shown_as_new_ones(cluster, page):
    try:
        cluster.run("head", "systemctl", "stop", "ptolemyd")
        page.shows(r"the status is not known since \d\d:\d\d\.", "#headline")
        page.shows(r"What follows is from", "#age")
        assert page.run("document.querySelector('main').classList.contains('old')")
        cluster.run("head", "systemctl", "start", "ptolemyd")
        page.shows("services answer", "#headline")
        assert not page.run("document.querySelector('main').classList.contains('old')")

        cluster.run("head", "systemctl", "stop", "slurmctld")
        page.shows(r"This is not up to date: Slurm", "#headline")
        cluster.run("head", "systemctl", "start", "slurmctld")
        page.shows("services answer", "#headline")
    finally:
        cluster.run("head", "systemctl", "start", "ptolemyd", "slurmctld")


def test_an_operators_key_shows_more_in_that_tab(cluster, page):
    assert "Address" not in page.text(DEMO)
    page.type("#key", f"sk-wrong-0123456789{Keys.ENTER}")
    page.shows("That is no operator's key", "#operators")
    page.run("document.querySelector('#key').value = ''")
    page.type("#key", cluster.api_key)
    page.click("#enter button")
    page.shows("Address", DEMO)
    page.shows("Nobody asks anything|Users with the most requests", "#operators")
    page.click("#leave button")
    page.shows("(?s)^((?!Address).)*$", DEMO)

"""A person at a browser: signs in, chats, asks about a file, gets a picture, runs Python, and need not know of Slurm.

lab/verify keeps the screenshots.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from chromium import Browser, chromium
from openwebui_lab import CATEGORY, QUESTION, prompts_on_the_wire

SHOTS = Path(os.environ["PTOLEMY_TEST_SCREENSHOTS"])
INPUT = "#chat-input"
GATEWAY = "/etc/haproxy/haproxy.cfg"
# The size of the first picture of an answer, and its first pixel.
PICTURE = """(image => {
    const canvas = document.createElement("canvas").getContext("2d")
    canvas.drawImage(image, 0, 0)
    return [image.naturalWidth, image.naturalHeight, ...canvas.getImageData(0, 0, 1, 1).data]
})(document.querySelector("img[data-cy=image]"))"""


@pytest.fixture
def browser(person, url):
    with chromium(url) as window:
        window.open("/auth")
        window.type("input#email", person.email)
        window.type("input#password", person.password)
        window.picture(SHOTS / "sign-in.png")
        window.type("input#password", Keys.ENTER)
        window.until(lambda: window.all(INPUT), "the chat is there")
        yield window


def ask(window: Browser, text: str) -> None:
    window.type(INPUT, text)
    window.type(INPUT, Keys.ENTER)


def answers(window: Browser) -> list[str]:
    return window.run("[...document.querySelectorAll('.chat-assistant')].map(e => e.innerText.trim())")


def right(window: Browser) -> int:
    """How many answers have the category."""
    return sum(CATEGORY in answer for answer in answers(window))


def test_a_person_chats(cluster, browser):
    browser.open("/?models=demo")
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 1, "the answer")
    browser.picture(SHOTS / "chat.png")


def test_a_person_asks_about_a_file(cluster, browser, tmp_path):
    code = f"ZEBRA-{uuid.uuid4().hex[:8]}"
    (tmp_path / "lockers.txt").write_text(f"The code of the parcel locker is {code}.")
    browser.open("/?models=demo")
    browser.type("input[type=file]", str(tmp_path / "lockers.txt"))
    browser.shows(r"lockers\.txt")
    with prompts_on_the_wire(cluster) as prompts:
        ask(browser, "What is the code of the parcel locker?")
        browser.until(lambda: [answer for answer in answers(browser) if answer], "an answer")
        browser.until(lambda: prompts.have(code), "the file's text is in the prompt")
    browser.picture(SHOTS / "file.png")


def image_chosen(window: Browser) -> bool:
    """Open the menu and choose it; a page that still loads closes the menu, or does not open it."""
    window.click("#integration-menu-button")
    with contextlib.suppress(AssertionError):
        window.click("[role=menuitemcheckbox]", "Image", timeout=5)
        return True
    return False


def test_a_person_gets_a_picture(cluster, browser):
    cluster.until(lambda: not cluster.jobs("draw"), "draw sleeps")
    browser.open("/?models=demo")
    browser.until(lambda: image_chosen(browser), "the menu of tools has Image")
    browser.press(Keys.ESCAPE)
    ask(browser, "A blue square")
    browser.shows("Creating image")
    browser.picture(SHOTS / "creating-image.png")
    # The size of inventory/lab, the colour of the workflow `empty`.
    browser.until(lambda: browser.run(PICTURE) == [64, 64, 0x33, 0x66, 0x99, 0xFF], "the picture")
    browser.picture(SHOTS / "image.png")


def test_python_runs_in_the_browser(browser, person):
    text = "```python\nprint(6 * 7 * 1001)\n```"
    common = {"models": ["demo"], "timestamp": 1}
    question = {"id": "q", "parentId": None, "childrenIds": ["a"], "role": "user", "content": "Compute", **common}
    answer = {"id": "a", "parentId": "q", "childrenIds": [], "role": "assistant", "content": text, "model": "demo", "done": True, **common}
    history = {"currentId": "a", "messages": {"q": question, "a": answer}}
    messages = [question, answer]
    chat = person.post(
        "/api/v1/chats/new", json={"chat": {"title": "Compute", "models": ["demo"], "history": history, "messages": messages}}
    )["id"]
    browser.open(f"/c/{chat}")
    browser.click("button", "Run")
    browser.shows("42042")
    browser.picture(SHOTS / "python.png")


def test_a_person_is_answered_after_the_loss_of_all_replicas_without_a_reload(cluster, browser):
    browser.open("/?models=demo")
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 1, "the first answer")
    cluster.run("head", "scancel", *map(str, cluster.jobs("demo")))
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 2, "the second answer, by a replica that was not there yet")


@pytest.fixture
def impatient_gateway(cluster):
    """It holds requests for 3 s instead of 300."""
    cluster.run("head", "cp", "--preserve", GATEWAY, f"{GATEWAY}.kept")
    try:
        cluster.run("head", "sed", "--in-place", "s/%\\[date(300)\\]/%[date(3)]/", GATEWAY)
        cluster.run("head", "systemctl", "reload", "haproxy")
        yield
    finally:
        cluster.run("head", "mv", f"{GATEWAY}.kept", GATEWAY)
        cluster.run("head", "systemctl", "reload", "haproxy")


@contextlib.contextmanager
def no_replica_comes(cluster):
    """The service has none, and the next ones wait in Slurm until this is over."""

    def end() -> None:
        cluster.run("head", "scancel", *map(str, cluster.jobs("demo")))

    try:
        with cluster.service_as("demo", sbatch_options=["--begin=now+1hour"]):
            end()
            cluster.until(lambda: not cluster.service("demo")["servers"], "no server is left")
            yield
    finally:
        end()
        cluster.until_ready()


def test_a_person_is_told_when_no_replica_comes_and_is_answered_once_one_does(cluster, impatient_gateway, browser):
    browser.open("/?models=demo")
    with no_replica_comes(cluster):
        ask(browser, QUESTION)
        browser.shows(r"The model is starting or waits for a free GPU, and was not ready within 300 s: try again later\.")
        browser.picture(SHOTS / "starting.png")
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 1, "the answer")

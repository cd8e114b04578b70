"""A person at a browser: signs in, chats, asks about a file, runs Python, and need not know of Slurm. lab/verify keeps the screenshots."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from browser import ENTER, Browser, chromium
from openwebui_lab import CATEGORY, QUESTION, prompts_on_the_wire

SHOTS = Path(os.environ["PTOLEMY_TEST_SCREENSHOTS"])
INPUT = "#chat-input"


@pytest.fixture
def browser(person, url):
    with chromium(url) as window:
        window.open("/auth")
        window.type("input#email", person.email)
        window.type("input#password", person.password)
        window.screenshot(SHOTS / "sign-in.png")
        window.type("input#password", ENTER)
        window.until(lambda: window.all(INPUT), "the chat is there")
        yield window


def ask(window: Browser, text: str) -> None:
    window.type(INPUT, text)
    window.type(INPUT, ENTER)


def answers(window: Browser) -> list[str]:
    return window.script("return [...document.querySelectorAll('.chat-assistant')].map(e => e.innerText.trim())")


def right(window: Browser) -> int:
    """How many answers have the category."""
    return sum(CATEGORY in answer for answer in answers(window))


def test_a_person_chats(cluster, browser):
    browser.open("/?models=demo")
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 1, "the answer")
    browser.screenshot(SHOTS / "chat.png")


def test_a_person_asks_about_a_file(cluster, browser, tmp_path):
    code = f"ZEBRA-{uuid.uuid4().hex[:8]}"
    (tmp_path / "lockers.txt").write_text(f"The code of the parcel locker is {code}.")
    browser.open("/?models=demo")
    browser.type("input[type=file]", str(tmp_path / "lockers.txt"))
    browser.shows("lockers.txt")
    with prompts_on_the_wire(cluster) as prompts:
        ask(browser, "What is the code of the parcel locker?")
        browser.until(lambda: [answer for answer in answers(browser) if answer], "an answer")
        browser.until(lambda: prompts.have(code), "the file's text is in the prompt")
    browser.screenshot(SHOTS / "file.png")


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
    browser.shows("42042", 120)
    browser.screenshot(SHOTS / "python.png")


def test_a_person_is_answered_after_the_loss_of_all_replicas_without_a_reload(cluster, browser):
    browser.open("/?models=demo")
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 1, "the first answer")
    cluster.run("head", "scancel", *map(str, cluster.jobs("demo")))
    ask(browser, QUESTION)
    browser.until(lambda: right(browser) == 2, "the second answer, by a replica that was not there yet", 120)

"""A real Chromium, driven through WebDriver's own requests: Debian's chromium-driver and nothing else."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what WebDriver calls an element
ENTER = "\ue007"


class Browser:
    """One window."""

    def __init__(self, driver: httpx2.Client, origin: str) -> None:
        # Root has no sandbox. Without TLS, the lab's address would count as an insecure place, where browsers hold much back.
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900"]
        arguments += [f"--unsafely-treat-insecure-origin-as-secure={origin}", "--force-device-scale-factor=1"]
        options = {"goog:chromeOptions": {"args": arguments}}
        self.driver, self.origin = driver, origin
        self.session = self._answer(driver.post("/session", json={"capabilities": {"alwaysMatch": options}}))["sessionId"]

    @staticmethod
    def _answer(answer: httpx2.Response):
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def _post(self, path: str, **body: object):
        return self._answer(self.driver.post(f"/session/{self.session}/{path}", json=body))

    def open(self, path: str) -> None:
        self._post("url", url=self.origin + path)

    def script(self, code: str, *arguments: object):
        return self._post("execute/sync", script=code, args=list(arguments))

    def all(self, css: str) -> list[str]:
        return [found[ELEMENT] for found in self._post("elements", using="css selector", value=css)]

    def until(self, condition: Callable[[], object], what: str, timeout: float = 60):
        """Wait for a condition; returns what it came to."""
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(AssertionError):  # an element may go while it is looked at
                if found := condition():
                    return found
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}; the page says: {self.text()[-1500:]}"
            time.sleep(0.2)

    def text(self) -> str:
        return self.script("return document.body.innerText")

    def shows(self, text: str, timeout: float = 60) -> None:
        self.until(lambda: text in self.text(), f"the page shows {text!r}", timeout)

    def click(self, css: str, text: str = "") -> None:
        def done() -> bool:
            for element in self.all(css):
                shown = self._answer(self.driver.get(f"/session/{self.session}/element/{element}/text"))
                if text in shown:
                    self._post(f"element/{element}/click")
                    return True
            return False

        self.until(done, f"{css} with {text!r} can be clicked")

    def type(self, css: str, text: str) -> None:
        self.until(lambda: self.all(css), f"there is {css}")
        self._post(f"element/{self.all(css)[0]}/value", text=text)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._answer(self.driver.get(f"/session/{self.session}/screenshot"))))

    def close(self) -> None:
        self.driver.delete(f"/session/{self.session}")


@contextlib.contextmanager
def chromium(origin: str) -> Iterator[Browser]:
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ) as driver:
        try:
            assert driver.stdout
            said = ""
            while not (port := re.search(r"started successfully on port (\d+)", said)):
                line = driver.stdout.readline()
                assert line, said
                said += line
            with httpx2.Client(base_url=f"http://127.0.0.1:{port[1]}", timeout=120) as client:
                browser = Browser(client, origin)
                try:
                    yield browser
                finally:
                    browser.close()
        finally:
            driver.terminate()

"""A real browser for tests: Debian's Chromium without a window, driven by selenium through Debian's chromium-driver."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from turns import PATIENCE, my_turn

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver") or ""


class Browser:
    """One window. ``complaints`` is what its console said against the pages so far, also of the Content-Security-Policy."""

    def __init__(self, driver: webdriver.Chrome, origin: str) -> None:
        self.driver, self.origin = driver, origin

    @property
    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]

    def open(self, path: str) -> None:
        self.driver.get(self.origin + path)

    def run(self, expression: str, *arguments: object) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.driver.execute_script(f"return {expression}", *arguments)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str = "body") -> str:
        """The visible text of the first such element; nothing where there is none."""
        return self.run("(document.querySelector(arguments[0]) || {}).innerText || ''", css)

    def until(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Wait for a condition; returns what it came to."""
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(WebDriverException):  # an element may go while it is looked at
                if found := condition():
                    return found
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}; {self.state()}"
            time.sleep(0.1)

    def state(self) -> str:
        """What a person needs who was not there, in one line: pytest's summary and CI's show no more."""
        slow = self.run("performance.getEntriesByType('resource').filter(e => e.duration > 3000).map(e => [e.name, e.duration])")
        return f"at {self.driver.current_url}: {' '.join(self.text().split())[-300:]!r}; slow: {slow}; complaints: {self.complaints}"

    def shows(self, pattern: str, css: str = "body", timeout: float = PATIENCE) -> None:
        """Wait until an element's text matches."""
        self.until(lambda: re.search(pattern, self.text(css)), f"{css} shows {pattern!r}", timeout)

    def click(self, css: str, text: str = "", timeout: float = PATIENCE) -> None:
        """Click the first such element with that text, once it is there."""

        def done() -> bool:
            for element in self.all(css):
                if text in element.text:
                    element.click()
                    return True
            return False

        self.until(done, f"{css} with {text!r} can be clicked", timeout)

    def type(self, css: str, keys: str) -> None:
        """Type into the first such element, once it is there."""
        self.until(lambda: self.all(css), f"there is {css}")[0].send_keys(keys)

    def press(self, key: str) -> None:
        """Press a key of selenium's Keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Take the size of a device and a colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save what is seen as PNG, or the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not whole:
            self.driver.save_screenshot(path)
            return
        size = self.run("{width: document.documentElement.clientWidth, height: document.documentElement.scrollHeight}")
        shot = {"format": "png", "captureBeyondViewport": True, "clip": {"x": 0, "y": 0, **size, "scale": 1}}
        path.write_bytes(b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]))


@contextlib.contextmanager
def chromium(origin: str) -> Iterator[Browser]:
    """A browser for the pages of one origin, and nothing left of it afterwards."""
    assert CHROMIUM and DRIVER, "these tests need Debian's chromium and chromium-driver, or CHROMIUM=, CHROMEDRIVER=/path/to/it"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Without TLS, the lab's address would count as an insecure place, where browsers hold much back.
    for argument in (
        *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900", "--force-device-scale-factor=1"),
        f"--unsafely-treat-insecure-origin-as-secure={origin}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # which does not run as root
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Both leave files in the folder for temporary ones, also when they end well.
    with my_turn(), tempfile.TemporaryDirectory() as folder:
        driver = webdriver.Chrome(options, Service(DRIVER, env={**os.environ, "TMPDIR": folder}))
        try:
            yield Browser(driver, origin)
        finally:
            driver.quit()

"""A real browser for tests: Chromium without a window, driven by its own DevTools protocol, so that no further package is needed.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
PATIENCE = 30.0  # seconds


class Page:
    """One tab. What its console complains about, also of the Content-Security-Policy, is kept in ``complaints``."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command; events that come before its answer are read as well."""
        number = next(self._numbers)
        await self._connection.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads(await asyncio.wait_for(self._connection.receive_str(), PATIENCE))
            if message.get("method") == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message.get("id") == number:
                assert "error" not in message, f"{method}: {message}"
                return dict(message["result"])

    async def open(self, url: str) -> None:
        for domain in ("Log", "Runtime", "Page"):
            await self.ask(f"{domain}.enable")
        await self.ask("Page.navigate", url=url)

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text(self, selector: str) -> str:
        """The visible text of an element; nothing where there is none."""
        return str(await self.run(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''"))

    async def until(self, pattern: str, selector: str = "body", seconds: float = 60) -> str:
        """Wait until an element's text matches; returns the text."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, text := await self.text(selector)):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {pattern!r} in {text!r}; {self.complaints}"
            await asyncio.sleep(0.1)
        return text

    async def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Take the size of a device and a colour scheme."""
        await self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def press(self, key: str) -> None:
        """Press a key, as Tab."""
        for kind in ("keyDown", "keyUp"):
            await self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9, "Enter": 13}[key])

    async def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        size = await self.run("({width: document.documentElement.clientWidth, height: document.documentElement.scrollHeight})")
        clip = {"x": 0, "y": 0, **size, "scale": 1}
        shot = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A browser with one empty tab, and nothing left of it afterwards."""
    assert CHROMIUM, "these tests need the program chromium (apt-get install chromium), or CHROMIUM=/path/to/it"
    with tempfile.TemporaryDirectory(prefix="pt-chromium-", ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        # Its sandbox does not run as root.
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        process = subprocess.Popen([CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tab = next(it for it in await answer.json() if it["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as connection:
                    yield Page(connection)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


async def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, IndexError, ValueError):
            return int(path.read_text().splitlines()[0])
        assert process.poll() is None and time.monotonic() < deadline, f"{CHROMIUM} does not start"
        await asyncio.sleep(0.05)

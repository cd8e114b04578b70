"""A client of ComfyUI's API at the gateway, for the tests with the stand-in and with the real one."""

from __future__ import annotations

import asyncio
import json
import uuid
import zlib
from pathlib import Path
from typing import Any

import aiohttp

WORKFLOWS = Path(__file__).parents[1] / "roles" / "comfyui" / "files" / "workflows"


def workflow(color: int, size: int = 16, blurs: int = 0) -> dict[str, Any]:
    """A picture of one colour, which needs no model: by it, everybody knows the own one.

    Args:
        color: as 0xRRGGBB.
        size: in pixels.
        blurs: so often it is blurred, which takes the real ComfyUI long.
    """
    prompt: dict[str, Any] = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": size, "height": size, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "ComfyUI"}},
    }
    for number in range(3, 3 + blurs):
        image, prompt["2"]["inputs"]["images"] = prompt["2"]["inputs"]["images"], [str(number), 0]
        prompt[str(number)] = {"class_type": "ImageBlur", "inputs": {"image": image, "blur_radius": 31, "sigma": 10.0}}
    return prompt


def filled(name: str, **values: Any) -> dict[str, Any]:
    """One of the role's workflows, with values by Open WebUI's names, put where its `nodes` say, as Open WebUI does."""
    told = json.loads((WORKFLOWS / f"{name}.json").read_text())
    prompt: dict[str, Any] = told["workflow"]
    for node in told["nodes"]:
        for number in node["node_ids"]:
            prompt[number]["inputs"][node["key"]] = values[node["type"]]
    return prompt


def color_of(picture: bytes) -> int:
    """The colour of a picture's first pixel, which no filter of PNG changes."""
    assert picture.startswith(b"\x89PNG")
    at = picture.index(b"IDAT")
    length = int.from_bytes(picture[at - 4 : at], "big")
    return int.from_bytes(zlib.decompressobj().decompress(picture[at + 4 : at + 4 + length])[1:4], "big")


class Painter:
    """A client of one service, as Open WebUI: all come from one address, and none keeps a cookie.

    Args:
        session: sends the key with each request.
        url: of the service, as ``http://gateway:8080/m/draw``.
        size: of its pictures, in pixels.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, size: int = 16) -> None:
        self.session, self.url, self.size = session, url, size

    async def send(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        async with self.session.request(method, self.url + path, **options) as answer:
            return answer.status, await answer.read()

    async def prompt(self, color: int, **more: Any) -> str:
        return await self.submit(workflow(color, self.size), **more)

    async def submit(self, prompt: dict[str, Any], **more: Any) -> str:
        status, body = await self.send("POST", "/prompt", json={"prompt": prompt, **more})
        assert status == 200, body
        return str(json.loads(body)["prompt_id"])

    async def result(self, prompt: str) -> bytes:
        """What was painted; it must be there."""
        status, body = await self.send("GET", f"/history/{prompt}")
        assert status == 200, body
        told = json.loads(body)[prompt]
        assert told["outputs"], told["status"]
        (output,) = told["outputs"].values()
        (image,) = output["images"]
        status, picture = await self.send("GET", "/view", params=image)
        assert status == 200, picture
        return picture

    async def paint(self, color: int, seconds: float = 0.0, client: str = "") -> int:
        """As Open WebUI does it: a websocket first, then the prompt, its end by the websocket, the history, the picture."""
        return color_of(await self.watched(workflow(color, self.size), client, extra_data={"standin_seconds": seconds}))

    async def watched(self, prompt: dict[str, Any], client: str = "", **more: Any) -> bytes:
        client = client or str(uuid.uuid4())
        async with self.session.ws_connect(f"{self.url}/ws", params={"clientId": client}) as socket:
            number = await self.submit(prompt, client_id=client, **more)
            async for message in socket:
                told = json.loads(message.data)
                if told["type"] == "executing" and told["data"]["node"] is None and told["data"]["prompt_id"] == number:
                    return await self.result(number)
        raise AssertionError("the websocket was closed before the picture was painted")

    async def poll(self, color: int, seconds: float = 0.0) -> int:
        """As a script does it, without a websocket."""
        return color_of(await self.awaited(await self.prompt(color, extra_data={"standin_seconds": seconds})))

    async def awaited(self, prompt: str) -> bytes:
        """What was painted, once it is."""
        for _ in range(4000):
            status, body = await self.send("GET", f"/history/{prompt}")
            assert status == 200, body
            if json.loads(body):
                return await self.result(prompt)
            await asyncio.sleep(0.05)
        raise AssertionError("never done")

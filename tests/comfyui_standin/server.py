"""The stand-in's HTTP and websocket calls, its queue, and its two nodes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import folder_paths
from aiohttp import WSMsgType, web

NODES = {
    "EmptyImage": {"width": "INT", "height": "INT", "batch_size": "INT", "color": "INT"},
    "SaveImage": {"images": "IMAGE", "filename_prefix": "STRING"},
}


def png(width: int, height: int, color: int) -> bytes:
    """A picture of one colour (0xRRGGBB)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + color.to_bytes(3, "big") * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * height, 4)) + chunk(b"IEND", b"")


class InterruptedPromptError(Exception):
    """Somebody asked for the end of the prompt that runs."""


class PromptQueue:
    """Prompts in order; one thread works on them, one at a time. An item is (number, id, workflow, extra data)."""

    def __init__(self, server: PromptServer) -> None:
        self._server = server
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._running: list[tuple[Any, ...]] = []
        self._history: dict[str, dict[str, Any]] = {}
        self._interrupted = threading.Event()

    def put(self, item: tuple[Any, ...]) -> None:
        with self._changed:
            self._waiting.append(item)
            self._changed.notify()

    def get_tasks_remaining(self) -> int:
        with self._changed:
            return len(self._waiting) + len(self._running)

    def get_current_queue_volatile(self) -> tuple[list[Any], list[Any]]:
        with self._changed:
            return list(self._running), list(self._waiting)

    def get_history(self, prompt_id: str) -> dict[str, Any]:
        with self._changed:
            return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}

    def delete(self, prompt_ids: list[str]) -> None:
        with self._changed:
            self._waiting = deque(item for item in self._waiting if item[1] not in prompt_ids)

    def interrupt(self, prompt_id: str | None) -> None:
        with self._changed:
            if any(prompt_id in (None, item[1]) for item in self._running):
                self._interrupted.set()

    def work(self) -> None:
        """Run for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                item = self._waiting.popleft()
                self._running.append(item)
                self._interrupted.clear()
            self._perform(*item)

    def _perform(self, number: int, prompt_id: str, prompt: dict[str, Any], extra: dict[str, Any]) -> None:
        client, outputs, status = extra.get("client_id"), {}, "success"
        self._server.tell(client, "execution_start", {"prompt_id": prompt_id})
        try:
            if self._interrupted.wait(float(extra.get("standin_seconds", 0))):
                raise InterruptedPromptError
            for name, node in prompt.items():
                if node["class_type"] == "SaveImage":
                    self._server.tell(client, "executing", {"node": name, "prompt_id": prompt_id})
                    source = prompt[str(node["inputs"]["images"][0])]
                    outputs[name] = {"images": save(source["inputs"], str(node["inputs"]["filename_prefix"]))}
        except InterruptedPromptError:
            status = "error"
        with self._changed:
            self._running.clear()
            told = {"status_str": status, "completed": status == "success", "messages": []}
            self._history[prompt_id] = {"prompt": [number, prompt_id, prompt, extra, list(outputs)], "outputs": outputs, "status": told}
        self._server.tell(client, "executing", {"node": None, "prompt_id": prompt_id})


def save(picture: dict[str, Any], prefix: str) -> list[dict[str, str]]:
    """Write the pictures of an EmptyImage; returns what the history tells of them."""
    made = []
    for _ in range(int(picture.get("batch_size", 1))):
        width, height = int(picture["width"]), int(picture["height"])
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, os.path.join(folder_paths.base_path, "output"), width, height
        )
        file = f"{name}_{number:05}_.png"
        with open(os.path.join(folder, file), "wb") as stream:
            stream.write(png(width, height, int(picture.get("color", 0))))
        made.append({"filename": file, "subfolder": subfolder, "type": "output"})
    return made


def wrong(prompt: Any) -> str:
    """What is wrong with a workflow; empty where nothing is."""
    if not isinstance(prompt, dict) or not prompt:
        return "No prompt provided"
    for name, node in prompt.items():
        if not isinstance(node, dict) or node.get("class_type") not in NODES:
            return f"node {name}: this stand-in knows {', '.join(NODES)} only"
    if not any(node["class_type"] == "SaveImage" for node in prompt.values()):
        return "Prompt has no outputs"
    return ""


class PromptServer:
    """As ComfyUI's class of that name: ``instance``, ``app``, ``prompt_queue`` and ``add_on_prompt_handler`` are what extensions know."""

    instance: PromptServer

    def __init__(self, most_bytes: int = 100 << 20) -> None:
        PromptServer.instance = self
        self.app = web.Application(client_max_size=most_bytes)
        self.prompt_queue = PromptQueue(self)
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._handlers: list[Callable[[dict[str, Any]], dict[str, Any]]] = []
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        calls = (
            ("GET", "/ws", self.websocket), ("GET", "/prompt", self.count), ("POST", "/prompt", self.prompt),
            ("GET", "/history/{id}", self.history), ("GET", "/view", self.view), ("POST", "/upload/image", self.upload),
            ("GET", "/queue", self.queue), ("POST", "/queue", self.change_queue), ("POST", "/interrupt", self.interrupt),
            ("GET", "/object_info", self.object_info),
        )  # fmt: skip
        for method, path, handler in calls:
            self.app.router.add_route(method, path, handler)
            self.app.router.add_route(method, "/api" + path, handler)

    async def run(self, address: str, port: int) -> None:
        """Serve for ever."""
        self._loop = asyncio.get_running_loop()
        runner = web.AppRunner(self.app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, address, port).start()
        threading.Thread(target=self.prompt_queue.work, daemon=True).start()
        print(f"a stand-in for ComfyUI answers on {address}:{port}", flush=True)
        await asyncio.Event().wait()

    def tell(self, client: str | None, kind: str, data: dict[str, Any]) -> None:
        """Send a message to a client's websocket, from any thread."""
        socket = self._sockets.get(client or "")
        if socket is not None and self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._send(socket, kind, data), self._loop)

    async def _send(self, socket: web.WebSocketResponse, kind: str, data: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            await socket.send_json({"type": kind, "data": data})

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query.get("clientId") or uuid.uuid4().hex
        self._sockets[client] = socket
        try:
            await self._send(socket, "status", {"status": self.state(), "sid": client})
            async for message in socket:
                if message.type == WSMsgType.ERROR:
                    break
        finally:
            self._sockets.pop(client, None)
        return socket

    def state(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.prompt_queue.get_tasks_remaining()}}

    async def count(self, _: web.Request) -> web.Response:
        return web.json_response(self.state())

    def add_on_prompt_handler(self, handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Let an extension change what is asked for before it is queued."""
        self._handlers.append(handler)

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        for handler in self._handlers:
            body = handler(body)
        problem = wrong(body.get("prompt"))
        if problem:
            return web.json_response({"error": {"type": "invalid_prompt", "message": problem}, "node_errors": {}}, status=400)
        prompt_id, self._number = str(body.get("prompt_id") or uuid.uuid4()), self._number + 1
        extra = {**body.get("extra_data", {}), **({"client_id": body["client_id"]} if "client_id" in body else {})}
        self.prompt_queue.put((self._number, prompt_id, body["prompt"], extra))
        return web.json_response({"prompt_id": prompt_id, "number": self._number, "node_errors": {}})

    async def history(self, request: web.Request) -> web.Response:
        return web.json_response(self.prompt_queue.get_history(request.match_info["id"]))

    async def view(self, request: web.Request) -> web.StreamResponse:
        parts = [request.query.get("type", "output"), request.query.get("subfolder", ""), request.query.get("filename", "")]
        path = os.path.realpath(os.path.join(folder_paths.base_path, *parts))
        if not path.startswith(os.path.realpath(folder_paths.base_path) + os.sep) or not os.path.isfile(path):
            return web.Response(status=404)
        return web.FileResponse(path)

    async def upload(self, request: web.Request) -> web.Response:
        image = (await request.post())["image"]
        if not isinstance(image, web.FileField):
            return web.Response(status=400)
        name = os.path.basename(image.filename)
        with open(os.path.join(folder_paths.base_path, "input", name), "wb") as stream:
            stream.write(image.file.read())
        return web.json_response({"name": name, "subfolder": "", "type": "input"})

    async def queue(self, _: web.Request) -> web.Response:
        running, waiting = self.prompt_queue.get_current_queue_volatile()
        return web.json_response({"queue_running": running, "queue_pending": waiting})

    async def change_queue(self, request: web.Request) -> web.Response:
        self.prompt_queue.delete(list((await request.json()).get("delete", [])))
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        self.prompt_queue.interrupt(body.get("prompt_id"))
        return web.Response()

    async def object_info(self, _: web.Request) -> web.Response:
        return web.json_response(
            {name: {"name": name, "input": {"required": {key: [kind] for key, kind in inputs.items()}}} for name, inputs in NODES.items()}
        )

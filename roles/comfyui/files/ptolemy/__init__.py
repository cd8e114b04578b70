"""Ptolemy's extension of ComfyUI, the only one that an instance loads: it asks for a key, and names prompts and pictures by the instance.

module_utils/ptolemy/comfyui.py starts the instance and says who it is by the environment.
"""

from __future__ import annotations

import hmac
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}  # without it, ComfyUI would not take this for an extension

SERVICE, INSTANCE = os.environ["PTOLEMY_COMFYUI_SERVICE"], os.environ["PTOLEMY_COMFYUI_INSTANCE"]
EXPECTED = f"Bearer {os.environ.pop('PTOLEMY_COMFYUI_KEY')}".encode()


def known(prompt_id: str) -> bool:
    """Whether a prompt runs, waits, or is remembered here."""
    queue = PromptServer.instance.prompt_queue
    running, waiting = queue.get_current_queue_volatile()
    return bool(queue.get_history(prompt_id=prompt_id)) or any(item[1] == prompt_id for item in (*running, *waiting))


@web.middleware
async def guard(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Let nobody in without the key, but for the number of prompts; and say that a prompt is unknown, rather than let its client wait."""
    path = request.path.removeprefix("/api")
    if path == "/prompt" and request.method == "GET":
        return await handler(request)
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), EXPECTED):
        return web.json_response({"error": "this instance of ComfyUI is reached through its gateway only"}, status=401)
    if path == "/ptolemy":
        return web.json_response({"service": SERVICE, "instance": INSTANCE})
    if request.method == "GET" and path.startswith("/history/") and not known(path.removeprefix("/history/")):
        message = "This instance does not know the prompt; the one that took it may have ended. Send the prompt again."
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "prompt_not_found"}
        return web.json_response({"error": error}, status=404)
    return await handler(request)


def name_prompt(asked: dict[str, Any]) -> dict[str, Any]:
    """Give a prompt an id that begins with the instance's: HAProxy sends whoever asks for the prompt to the one that took it.

    An id of the client's choice goes, since it might be another one's.
    """
    return {**asked, "prompt_id": f"{INSTANCE}_{uuid.uuid4()}"}


def naming(save_path: Callable[..., Any]) -> Callable[..., Any]:
    """Begin the names of what is saved with the instance's: HAProxy sends whoever asks for a picture to the one that made it."""

    def get_save_image_path(filename_prefix: str, *arguments: Any, **options: Any) -> Any:
        folder, name = os.path.split(os.path.normpath(filename_prefix))
        return save_path(os.path.join(folder, f"{INSTANCE}_{name}"), *arguments, **options)

    return get_save_image_path


folder_paths.get_save_image_path = naming(folder_paths.get_save_image_path)
PromptServer.instance.add_on_prompt_handler(name_prompt)
PromptServer.instance.app.middlewares.insert(0, guard)

"""What a replica runs on its GPUs, and how it is asked how it is: llama-server here, ComfyUI in ``comfyui``."""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from typing import Any, Mapping, Protocol

PROBE_TIMEOUT = 2.0


class ReplicaError(Exception):
    """The replica cannot go on; the message is the reason that is published and logged."""


class Engine(Protocol):
    """One kind of server. The methods that ask one return what it says, and never wait longer than ``PROBE_TIMEOUT``."""

    name: str
    program: str

    def check(self) -> None:
        """Look whether all that it needs is on this node. Raises ReplicaError."""

    def begin(self, port: int) -> list[str]:
        """Prepare a start on a port; returns the command line."""

    def environment(self, port: int) -> Mapping[str, str]:
        """What is added to the job's environment. A secret stands here: everybody on the node can read a command line."""

    def is_ours(self, port: int) -> bool:
        """It is healthy and answers to our key by our name: another user's process may have taken the port."""

    def answers(self, port: int) -> bool:
        """It answers that it is healthy."""

    def computes(self, port: int) -> bool:
        """What computes in it is alive, as far as that can be asked."""

    def running(self, port: int) -> int | None:
        """How many requests it has, running or waiting; None where it gives no answer."""

    def end(self) -> None:
        """Remove what ``begin`` made on the node."""


class LlamaServer:
    """llama-server, by the job's spec (``job.spec``) and the service's key."""

    name = "llama-server"

    def __init__(self, spec: Mapping[str, Any], key: str) -> None:
        self._spec, self._key = spec, key
        # Resolved once, so that an upgrade of the node does not change a running replica.
        self.program = os.path.realpath(spec["llama_server"])

    def check(self) -> None:
        present(self.program)
        if not self._spec.get("cache_dir"):
            present(self._spec["model_path"], self._spec.get("mmproj_path"))

    def begin(self, port: int) -> list[str]:
        """The service's own flags come last, so that they win."""
        spec = self._spec
        return [
            self.program,
            *("--host", "0.0.0.0"),  # the cluster's network; every path but /health asks for the key
            *("--port", str(port)),
            *("--model", spec["model_path"]),
            *(("--mmproj", spec["mmproj_path"]) if spec.get("mmproj_path") else ()),
            *("--alias", spec["service"]),
            *("--parallel", str(spec["slots"])),
            *("--ctx-size", str(spec["context"] * spec["slots"])),  # llama-server divides it among its slots
            *("--n-gpu-layers", "999"),
            *("--fit", "off"),  # sizes are the operator's decision, not that of what else is on the GPU
            "--metrics",
            "--no-slots",  # /slots shows prompts
            "--no-webui",
            "--offline",
            # One cache for all slots must not give one of them the room of all.
            *(("--kv-unified-per-slot", str(spec["context"])) if {"-kvu", "--kv-unified"} & set(spec["flags"]) else ()),
            *spec["flags"],
        ]

    def environment(self, port: int) -> Mapping[str, str]:
        return {"LLAMA_API_KEY": self._key}

    def is_ours(self, port: int) -> bool:
        try:
            ask(port, "/health", self._key)
            models = json.loads(ask(port, "/v1/models", self._key))
            return any(model.get("id") == self._spec["service"] for model in models["data"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def answers(self, port: int) -> bool:
        return does_answer(port, "/health", self._key)

    def computes(self, port: int) -> bool:
        """/health is answered even where nothing is computed any more (llama-server may hang so after a TERM, or its GPU), /metrics only
        by the loop that computes.
        """
        return does_answer(port, "/metrics", self._key)

    def running(self, port: int) -> int | None:
        try:
            metrics = ask(port, "/metrics", self._key).decode(errors="replace")
        except OSError:
            return None
        wanted = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
        return sum(int(float(line.split()[1])) for line in metrics.splitlines() if line.startswith(wanted))

    def end(self) -> None:
        """It leaves nothing behind."""


def ask(port: int, path: str, key: str) -> bytes:
    """The body of a server's answer.

    Raises:
        OSError: it gives none, or one that is an error.
    """
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a site's http_proxy is not for loopback
    try:
        with opener.open(request, timeout=PROBE_TIMEOUT) as answer:
            body: bytes = answer.read()
            return body
    except http.client.HTTPException as error:  # a stranger on the port may say anything
        raise OSError(str(error)) from error


def does_answer(port: int, path: str, key: str) -> bool:
    """Whether a path is answered without an error."""
    try:
        ask(port, path, key)
    except OSError:
        return False
    return True


def present(*paths: str | None) -> None:
    """Look whether files are on this node. Raises ReplicaError."""
    for path in filter(None, paths):
        if not os.path.isfile(path):
            raise ReplicaError(f"{path} is not on {socket.gethostname()}; run site.yml for this node")

"""ComfyUI as a replica's servers: one instance a GPU, each with a directory, a database and pictures of its own.

ComfyUI knows no keys, and names its pictures alike on every instance. Both are mended by a small extension of ours
(roles/comfyui/files/ptolemy), the only one that is loaded: it asks for the service's key, and begins each picture's name with the
instance's, so that HAProxy finds it again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any, Mapping

from .engines import ReplicaError, ask, does_answer, present
from .gateway import server_name

EXTENSION = "ptolemy"  # its directory below custom_nodes
FREE = "/prompt"  # asks for no key, and tells only how many prompts there are


class ComfyUI:
    """ComfyUI, by the job's spec (``job.spec``), the service's key and Slurm's numbers of the job."""

    name = "ComfyUI"

    def __init__(self, spec: Mapping[str, Any], key: str, job_id: str, restart: int) -> None:
        self._spec, self._key = spec, key
        self._job_id, self._restart = int(job_id or 0), restart
        # Resolved once, so that an upgrade of the node does not change a running replica.
        self._home = os.path.realpath(spec["comfyui"])
        self.program = os.path.join(self._home, "source", "main.py")
        self._made: set[str] = set()

    def check(self) -> None:
        present(self.program, self._python, os.path.join(self._extension, "__init__.py"))
        present(*(self._model(entry) for entry in self._spec["comfyui_models"]))

    @property
    def _python(self) -> str:
        return os.path.join(self._home, "venv", "bin", "python")

    @property
    def _extension(self) -> str:
        return os.path.join(self._home, EXTENSION)

    def _model(self, entry: str) -> str:
        """("vae/sdxl.safetensors") -> the file in the directory of the models."""
        return os.path.join(os.path.dirname(self._spec["model_path"]), os.path.basename(entry))

    def instance(self, port: int) -> str:
        """An instance's name, which is HAProxy's, too."""
        return server_name(self._job_id, self._restart, port)

    def begin(self, port: int) -> list[str]:
        base = os.path.join(self._spec["comfyui_dir"], self.instance(port))
        try:
            self._make(base)
        except OSError as error:
            raise ReplicaError(f"{error.filename or base}: {error.strerror}; run site.yml for this node, see comfyui_dir") from error
        return [
            self._python,
            self.program,
            *("--listen", "0.0.0.0"),  # the cluster's network; every path but GET /prompt asks for the key
            *("--port", str(port)),
            *("--base-directory", base),
            *("--database-url", f"sqlite:///{base}/comfyui.db"),  # else it would write into the source
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--disable-all-custom-nodes",
            *("--whitelist-custom-nodes", EXTENSION),
            *self._spec["flags"],
        ]

    def _make(self, base: str) -> None:
        self._made.add(base)
        for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
            os.makedirs(os.path.join(base, name), mode=0o700, exist_ok=True)
        os.chmod(base, 0o700)
        _link(self._extension, os.path.join(base, "custom_nodes", EXTENSION))
        for entry in self._spec["comfyui_models"]:
            folder = os.path.join(base, "models", os.path.dirname(entry))
            os.makedirs(folder, exist_ok=True)
            _link(self._model(entry), os.path.join(folder, os.path.basename(entry)))

    def environment(self, port: int) -> Mapping[str, str]:
        return {
            "PTOLEMY_COMFYUI_KEY": self._key,
            "PTOLEMY_COMFYUI_SERVICE": self._spec["service"],
            "PTOLEMY_COMFYUI_INSTANCE": self.instance(port),
            "HOME": os.path.join(self._spec["comfyui_dir"], self.instance(port)),
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def is_ours(self, port: int) -> bool:
        """The extension answers to our key by our instance's name: without it, ComfyUI would answer to anybody."""
        try:
            told = json.loads(ask(port, "/ptolemy", self._key))
            return bool(told["instance"] == self.instance(port) and told["service"] == self._spec["service"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def answers(self, port: int) -> bool:
        return does_answer(port, FREE, self._key)

    def computes(self, port: int) -> bool:
        """Its queue is answered by another thread than the one that computes, so no more than that can be asked."""
        return self.answers(port)

    def running(self, port: int) -> int | None:
        try:
            return remaining(ask(port, FREE, self._key))
        except (OSError, ValueError):
            return None

    def end(self) -> None:
        for base in self._made:
            shutil.rmtree(base, ignore_errors=True)


def remaining(body: bytes) -> int:
    """How many prompts an instance has, running and waiting, from its answer to GET /prompt.

    Raises:
        ValueError: it is no such answer.
    """
    try:
        count = json.loads(body)["exec_info"]["queue_remaining"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no queue_remaining: {body[:80]!r}") from error
    if type(count) is not int or not 0 <= count <= sys.maxsize:
        raise ValueError(f"queue_remaining is {count!r}")
    return count


def _link(target: str, path: str) -> None:
    if not os.path.islink(path):
        os.symlink(target, path)

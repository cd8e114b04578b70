"""A stand-in for ComfyUI, started as that is: see README.md. It is not ComfyUI."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os

import folder_paths
from server import PromptServer


def arguments() -> argparse.Namespace:
    """ComfyUI's options, those that Ptolemy uses; the ones that mean nothing here are taken, too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--base-directory", required=True)
    parser.add_argument("--database-url")
    parser.add_argument("--whitelist-custom-nodes", nargs="+", default=[])
    for flag in ("cpu", "disable-auto-launch", "disable-api-nodes", "disable-all-custom-nodes"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def load_extensions(base: str, names: list[str]) -> None:
    """Load the extensions that are let in, as ComfyUI does: each is a package below custom_nodes."""
    for name in names:
        path = os.path.join(base, "custom_nodes", name, "__init__.py")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{path} cannot be loaded")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def main() -> None:
    given = arguments()
    folder_paths.set_base(given.base_directory)
    server = PromptServer()
    load_extensions(given.base_directory, given.whitelist_custom_nodes)
    asyncio.run(server.run(given.listen, given.port))


if __name__ == "__main__":
    main()

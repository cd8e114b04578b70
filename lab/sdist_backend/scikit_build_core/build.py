"""A build backend that builds nothing.

`pip download` asks a source distribution for its metadata, and so would install and run llama-cpp-python's build system only to
fetch one file. With --no-build-isolation it finds this module in its place: the file is fetched from the index that pip is set up
for (mirrors, proxies, certificates), its hash is checked, and none of its code runs.
"""

from __future__ import annotations

import os
from pathlib import Path


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    name, version = os.environ["LAB_SDIST_NAME"], os.environ["LAB_SDIST_VERSION"]
    info = Path(metadata_directory) / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    return info.name


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: str | None = None) -> str:
    raise NotImplementedError("only the source is wanted here")

"""Where the gateway is, and the key: from flags, the environment, the user's file, the site's file, in this order."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml

from .errors import BatchError, told_plainly

SITE = Path("/etc/ptolemy/client.yml")
KEYS = {"url", "key", "model"}


@dataclass(frozen=True)
class Settings:
    """The gateway's address, the key, and the model that is asked where a command names none."""

    url: str
    key: str
    model: str


def user_file() -> Path:
    """The user's own file."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base, "ptolemy", "client.yml")


def find_settings(url: Optional[str], key_file: Optional[Path], model: Optional[str]) -> Settings:
    """The settings that hold for this run.

    The arguments are those of the command line.

    Raises:
        BatchError: no address, or a file that is broken or that others can read.
    """
    site, own = _read(SITE, secret=False), _read(user_file(), secret=True)
    environment = {"url": os.environ.get("PTOLEMY_URL"), "key": os.environ.get("PTOLEMY_API_KEY"), "model": os.environ.get("PTOLEMY_MODEL")}
    flags = {"url": url, "key": _key(key_file) if key_file else None, "model": model}
    found = {name: next((str(source[name]) for source in (flags, environment, own, site) if source.get(name)), "") for name in KEYS}
    if not found["url"]:
        raise BatchError(f"no address of a gateway: give --url, set PTOLEMY_URL, or write 'url: https://...' into {user_file()}")
    if "://" not in found["url"]:
        raise BatchError(f"the gateway's address {found['url']!r} must begin with http:// or https://")
    if any(letter in found["key"] for letter in "\r\n"):
        raise BatchError("the key has a line break in it")
    return Settings(**found)


def _key(path: Path) -> str:
    with told_plainly(path, "read the key"):
        _private(path)
        return path.read_text(encoding="utf-8").strip()


def _read(path: Path, secret: bool) -> dict[str, Any]:
    if not path.exists():
        return {}
    with told_plainly(path, "read the settings"):
        text = path.read_text(encoding="utf-8")
    try:
        given = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise BatchError(f"{path}: not YAML: {error}") from error
    if not isinstance(given, dict) or set(given) - KEYS:
        raise BatchError(f"{path}: must be a mapping with the keys {', '.join(sorted(KEYS))}, and nothing else")
    if secret and given.get("key"):
        _private(path)
    return given


def _private(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        raise BatchError(f"{path}: holds a key and can be read by others: chmod 600 {path}")

"""How files on the gateway are replaced, and how it is seen that one was."""

from __future__ import annotations

import os
import tempfile
from typing import Any


def replace_file(module: Any, path: str, text: str) -> None:
    """Replace a file in one step. Its owner, group and mode stay; a new one can be read by everybody.

    Args:
        module: the AnsibleModule that runs.
        path: of the file.
        text: what it shall hold.

    Raises:
        OSError: it cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    module.add_cleanup_file(temporary)
    if not os.path.exists(path):
        os.chmod(temporary, 0o644)
    module.atomic_move(temporary, path)


def put(path: str, text: str, mode: int) -> None:
    """Write a file in one step, as only one process does it.

    Args:
        path: of the file.
        text: what it shall hold.
        mode: of a new one.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def stamp_of(path: str) -> tuple[int, int, int]:
    """What changes with a file: modification time in ns, inode, bytes; zeros where it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)

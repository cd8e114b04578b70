"""How the modules replace a file on the gateway."""

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

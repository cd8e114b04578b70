"""The guide's commands build a lab of their own, in a copy of the checkout: `make test-guide` runs them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def copy_of_the_checkout(target: Path) -> None:
    """What a clone would have, with what is not committed yet, and the virtual environment of this checkout."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / ".venv").symlink_to((ROOT / ".venv").resolve())


class NewUser:
    """Somebody in a fresh checkout with a shell, whose lab lies beside others."""

    def __init__(self, checkout: Path, prefix: str) -> None:
        self.checkout = checkout
        self.prefix = prefix
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTEST_", "VIRTUAL_ENV"))},
            "LAB_PREFIX": prefix,
            "LAB_STATE_DIR": str(checkout / f".lab-{prefix}"),
            "LAB_PORT": str(free_port()),
            "LAB_TAKE_OVER": "yes",
            "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
        }

    def lab_down(self) -> None:
        subprocess.run(["make", "lab-down"], cwd=self.checkout, env=self.environment, check=True, capture_output=True, timeout=300)


@pytest.fixture
def new_user():
    with tempfile.TemporaryDirectory(prefix="ptolemy-guide-") as folder:
        copy_of_the_checkout(Path(folder))
        user = NewUser(Path(folder), os.environ.get("LAB_PREFIX") or "ptolemy-guide")
        user.lab_down()  # of a run that was killed
        try:
            yield user
        finally:
            user.lab_down()

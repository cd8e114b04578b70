"""Where the lab keeps things and what may be set from outside, in one place."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from steps import LabError

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT_PREFIX = "ptolemy-lab"
SUITES = ("trixie", "bookworm")
# Every container, network and image of the lab carries this label, so that nothing else is ever removed.
LABEL = "io.ptolemy.lab"
# Open WebUI's administrator, as in inventory/lab.
ADMIN_EMAIL = "admin@example.org"
# The checkout that made a container: another one must not take it for its own.
OWNER_LABEL = "io.ptolemy.checkout"


@dataclasses.dataclass(frozen=True)
class Settings:
    """One lab: a prefix decides its containers, its network and its state directory."""

    prefix: str
    suite: str
    cache: Path
    state: Path
    mirror: str
    base_image: str
    sdist: str
    # One more host, with Open WebUI.
    openwebui: bool = False
    # One more bare machine, for trying how a node is added.
    spare: bool = False
    # Prometheus on the head.
    monitoring: bool = False
    # The researchers' client on the head.
    client: bool = False
    # ComfyUI's source (a directory, a tarball, or a URL of one), in place of the stand-in for it.
    comfyui: str = ""
    # Hosts with this prefix that another checkout made may be removed: whoever says so knows that its run has ended.
    take_over: bool = False

    @property
    def log_dir(self) -> Path:
        return self.cache / "logs"

    @property
    def environment(self) -> dict[str, str]:
        """What inventory/lab/hosts.yml reads."""
        return {
            "LAB_PREFIX": self.prefix,
            "LAB_SUITE": self.suite,
            "LAB_STATE_DIR": str(self.state),
            "LAB_OPENWEBUI": "yes" if self.openwebui else "",
            "LAB_MONITORING": "yes" if self.monitoring else "",
            "LAB_CLIENT": "yes" if self.client else "",
            "LAB_COMFYUI_SOURCE": self.comfyui,
            "PTOLEMY_CACHE": str(self.cache),
        }


def state_dir(prefix: str) -> Path:
    """`.lab` for the lab itself; a test's lab gets a directory of its own, so that neither removes the other's secrets."""
    return CHECKOUT / (".lab" if prefix == DEFAULT_PREFIX else f".lab-{prefix}")


def load(prefix: str | None, suite: str | None) -> Settings:
    """Settings from arguments, then from the environment, then defaults."""
    prefix = prefix or os.environ.get("LAB_PREFIX") or DEFAULT_PREFIX
    suite = suite or os.environ.get("LAB_SUITE") or SUITES[0]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", prefix):
        raise LabError(f"prefix {prefix!r}: only a-z, 0-9 and '-', 41 characters at most")
    if suite not in SUITES:
        raise LabError(f"LAB_SUITE {suite!r}: one of {', '.join(SUITES)}")
    cache = Path(os.environ.get("PTOLEMY_CACHE") or "~/.cache/ptolemy").expanduser().resolve()
    return Settings(
        prefix=prefix,
        suite=suite,
        cache=cache,
        state=state_dir(prefix),
        mirror=os.environ.get("LAB_MIRROR") or "",
        base_image=os.environ.get("LAB_BASE_IMAGE") or "",
        sdist=os.environ.get("LAB_LLAMA_SDIST") or "",
        comfyui=os.environ.get("LAB_COMFYUI_SOURCE") or "",
        openwebui=os.environ.get("LAB_OPENWEBUI") == "yes",
        monitoring=os.environ.get("LAB_MONITORING") == "yes",
        client=os.environ.get("LAB_CLIENT") == "yes",
        take_over=os.environ.get("LAB_TAKE_OVER") == "yes",
    )

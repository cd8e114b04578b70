"""What the lab's hosts are made to serve: llama.cpp's source and Open WebUI's wheels, cached. The model lies in demo/release."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from settings import CHECKOUT, Settings
from steps import LabError, logged, say

# The sdist of llama-cpp-python carries the whole of llama.cpp, and every package index has it.
NAME = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FILE = f"llama_cpp_python-{VERSION}.tar.gz"
# Open WebUI's host is a Debian 12.
OPENWEBUI_PYTHON, OPENWEBUI_GLIBC = "3.11", 36
BACKEND = CHECKOUT / "lab" / "sdist_backend"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def ensure_sdist(settings: Settings) -> Path:
    """The source archive in the cache, from LAB_LLAMA_SDIST or from the index that pip is set up for."""
    target = settings.cache / "src" / FILE
    if target.exists():
        if _sha256(target) == SHA256:
            say(f"{target} is there")
            return target
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming = target.parent / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    try:
        if settings.sdist:
            shutil.copyfile(settings.sdist, incoming / FILE)
        else:
            _download(settings, incoming)
        found = _sha256(incoming / FILE)
        if found != SHA256:
            raise LabError(f"{settings.sdist or FILE}: sha256 is {found}, expected {SHA256}")
        (incoming / FILE).rename(target)
    except OSError as error:
        raise LabError(f"no source of llama.cpp: {error}; set LAB_LLAMA_SDIST to a copy of {FILE}") from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    say(f"{target}  {target.stat().st_size >> 20} MB, sha256 checked")
    return target


def _download(settings: Settings, into: Path) -> None:
    say(f"downloading {NAME} {VERSION} (77 MB)")
    wanted = into / "requirements.txt"
    wanted.write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    logged(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"),
            *("--require-hashes", "--requirement", str(wanted), "--dest", str(into), "--progress-bar", "off"),
        ],
        settings.log_dir / "sdist.log",
        timeout=1800,
        env={"PYTHONPATH": str(BACKEND), "LAB_SDIST_NAME": NAME, "LAB_SDIST_VERSION": VERSION},
    )


def ensure_wheelhouse(settings: Settings) -> Path:
    """The wheels of Open WebUI's lock for the Python of its host, in the cache by the lock's hash."""
    lock = CHECKOUT / "roles" / "openwebui" / "files" / f"requirements-{OPENWEBUI_PYTHON}.txt"
    target = settings.cache / "openwebui" / _sha256(lock)[:12]
    if target.exists():
        say(f"{target} is there")
        return target
    incoming = target.with_suffix(".part")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    say("downloading Open WebUI and what it needs (420 MB)")
    download_wheels(settings, lock, incoming)
    incoming.rename(target)
    say(f"{target}  {len(list(target.iterdir()))} wheels")
    return target


def download_wheels(settings: Settings, lock: Path, into: Path) -> None:
    """Fetch all wheels of a lock for the Python of Open WebUI's host.

    They are fetched for that Python and not with it, so that any interpreter here will do: the lock has no conditions.

    Raises:
        LabError: pip could not.
    """
    digits = OPENWEBUI_PYTHON.replace(".", "")
    tags = [f"manylinux_2_{minor}_{os.uname().machine}" for minor in range(OPENWEBUI_GLIBC, 4, -1)]
    old = [f"{name}_{os.uname().machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    logged(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)),
            *("--require-hashes", "--requirement", str(lock), "--progress-bar", "off"),
            *("--implementation", "cp", "--python-version", OPENWEBUI_PYTHON),
            *(option for abi in (f"cp{digits}", "abi3", "none") for option in ("--abi", abi)),
            *(option for tag in tags + old for option in ("--platform", tag)),
        ],
        settings.log_dir / "openwebui-wheels.log",
        timeout=1800,
    )

"""What the lab's hosts are made to serve: llama.cpp's source, and packages for Python, cached. The model lies in demo/release."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

from settings import CHECKOUT, Settings
from steps import LabError, logged, say

# The sdist of llama-cpp-python carries the whole of llama.cpp, and every package index has it.
NAME = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FILE = f"llama_cpp_python-{VERSION}.tar.gz"
# Open WebUI's host is a Debian 12.
OPENWEBUI_PYTHON, GLIBC = "3.11", 36
# Which Python a Debian has.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
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
    """The wheels of Open WebUI's lock for the Python of its host."""
    lock = CHECKOUT / "roles" / "openwebui" / "files" / f"requirements-{OPENWEBUI_PYTHON}.txt"
    return _wheels(settings, "openwebui", lock, OPENWEBUI_PYTHON, "Open WebUI and what it needs (420 MB)")


def ensure_client(settings: Settings) -> None:
    """The wheels of the client's lock for the Python of the head."""
    lock = CHECKOUT / "client" / "requirements.txt"
    _wheels(settings, "client", lock, PYTHONS[settings.suite], "what the researchers' client needs (100 MB)")


def ensure_comfyui(settings: Settings) -> None:
    """ComfyUI's source, or the stand-in for it, as a tarball in the lab's state, with its checksum; and its wheels in the cache."""
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    target, python = settings.state / "comfyui.tar", PYTHONS[settings.suite]
    if settings.comfyui:
        lock, what = CHECKOUT / "roles" / "comfyui" / "files" / f"requirements-{python}.txt", "ComfyUI's packages (3 GB)"
    else:
        lock, what = CHECKOUT / "tests" / "comfyui_standin" / "requirements.txt", "what the stand-in for ComfyUI needs (3 MB)"
    source = settings.comfyui or str(CHECKOUT / "tests" / "comfyui_standin")
    if Path(source).is_dir():
        # The same bytes for the same files, so that a second run changes nothing.
        options = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"]
        logged(
            ["tar", *options, "--exclude=__pycache__", "--exclude=.git", "-C", source, "-cf", str(target), "."],
            settings.log_dir / "comfyui.log",
            timeout=300,
        )
    else:
        logged(["curl", "--fail", "--location", "--output", str(target), _url(source)], settings.log_dir / "comfyui.log", timeout=1800)
    (settings.state / "comfyui.tar.sha256").write_text(_sha256(target))
    _wheels(settings, "comfyui", lock, python, what)


def _url(source: str) -> str:
    return source if "://" in source else Path(source).resolve().as_uri()


def _wheels(settings: Settings, name: str, lock: Path, python: str, what: str) -> Path:
    """The wheels of a lock, in the cache by its hash and the Python; the inventory finds the directory's name in the lab's state."""
    target = settings.cache / name / (_sha256(lock)[:12] if name == "openwebui" else f"{_sha256(lock)[:12]}-{python}")
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (settings.state / f"{name}.wheels").write_text(target.name)
    if target.exists():
        say(f"{target} is there")
        return target
    incoming = target.with_suffix(".part")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    say(f"downloading {what}")
    download_wheels(settings, lock, incoming, python)
    incoming.rename(target)
    say(f"{target}  {len(list(target.iterdir()))} wheels")
    return target


def download_wheels(settings: Settings, lock: Path, into: Path, python: str = OPENWEBUI_PYTHON) -> None:
    """Fetch all wheels of a lock for a Python of the lab's hosts.

    They are fetched for that Python and not with it, so that any interpreter here will do.

    Raises:
        LabError: pip could not.
    """
    digits = python.replace(".", "")
    tags = [f"manylinux_2_{minor}_{os.uname().machine}" for minor in range(GLIBC, 4, -1)]
    old = [f"{kind}_{os.uname().machine}" for kind in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="lock-", suffix=".txt") as wanted:
        wanted.write(_for_python(lock.read_text(encoding="utf-8"), python))
        wanted.flush()
        logged(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)),
                *("--require-hashes", "--requirement", wanted.name, "--progress-bar", "off"),
                *("--implementation", "cp", "--python-version", python),
                *(option for abi in (f"cp{digits}", "abi3", "none") for option in ("--abi", abi)),
                *(option for tag in tags + old for option in ("--platform", tag)),
            ],
            settings.log_dir / "wheels.log",
            timeout=1800,
        )


def _for_python(lock: str, python: str) -> str:
    """The entries of a lock whose conditions hold for a Python, without these: pip judges them by the one that it runs in."""
    entries = []
    for entry in re.split(r"^(?=\w)", lock, flags=re.MULTILINE)[1:]:
        first, _, hashes = entry.partition("\n")
        requirement = Requirement(first.rstrip(" \\"))
        if not requirement.marker or requirement.marker.evaluate({"python_version": python, "python_full_version": f"{python}.0"}):
            requirement.marker = None
            entries.append(f"{requirement} \\\n{hashes}")
    return "".join(entries)

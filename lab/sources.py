"""What the lab's hosts are made to serve: llama.cpp's source, cached. The model lies in demo/release."""

from __future__ import annotations

import hashlib
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

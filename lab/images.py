"""The image of the lab's hosts: a bare Debian with systemd, made once and cached."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from containers import podman, ulimits
from settings import CHECKOUT, LABEL, Settings
from steps import capture, logged, say, succeeds

PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-apt", "sudo", "iproute2", "ca-certificates", "procps")
CONTAINERFILE = CHECKOUT / "lab" / "Containerfile"
REPOSITORY = "localhost/ptolemy-lab"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def image_name(settings: Settings) -> str:
    """The tag names the recipe, so that a changed recipe makes another image and an unchanged one is found."""
    recipe = _digest(settings.suite, settings.base_image or settings.mirror, *PACKAGES, CONTAINERFILE.read_text(encoding="utf-8"))
    return f"{REPOSITORY}:{settings.suite}-{recipe}"


def ensure_image(settings: Settings) -> str:
    """The image's name; it is built if podman does not have it yet."""
    name = image_name(settings)
    if succeeds(podman("image", "exists", name)):
        say(f"{name} is there")
        return name
    base = settings.base_image or _debootstrapped(settings)
    say(f"building {name} from {base}")
    logged(
        [
            *podman("build", "--network", "host", "--pull=missing", *ulimits(), "--tag", name, "--label", LABEL),
            "--build-arg",
            f"BASE={base}",
            "--build-arg",
            f"PACKAGES={' '.join(PACKAGES)}",
            "--file",
            str(CONTAINERFILE),
            str(CONTAINERFILE.parent),
        ],
        settings.log_dir / f"build-{settings.suite}.log",
        timeout=900,
    )
    return name


def _debootstrapped(settings: Settings) -> str:
    """A base image made with debootstrap; its tarball survives `podman system prune`."""
    digest = _digest(settings.suite, settings.mirror, *PACKAGES)
    name = f"{REPOSITORY}-base:{settings.suite}-{digest}"
    if succeeds(podman("image", "exists", name)):
        return name
    tarball = settings.cache / "images" / f"base-{settings.suite}-{digest}.tar.gz"
    if not tarball.exists():
        _bootstrap_tarball(settings, tarball)
    say(f"importing {tarball}")
    capture(podman("import", "--quiet", str(tarball), name), timeout=600)
    return name


def _bootstrap_tarball(settings: Settings, tarball: Path) -> None:
    root = tarball.parent / f"root-{settings.suite}"
    part = tarball.with_suffix(".part")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    say(f"debootstrap {settings.suite} from {settings.mirror or 'its usual mirror'} (about 80 s)")
    mirror = [settings.mirror] if settings.mirror else []
    try:
        logged(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", settings.suite, str(root), *mirror],
            settings.log_dir / f"debootstrap-{settings.suite}.log",
            timeout=1800,
        )
        capture(["tar", "-C", str(root), "-I", "gzip -1", "-cf", str(part), "."], timeout=600)
        part.rename(tarball)
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)

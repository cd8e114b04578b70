"""New versions: one that cannot start gives way to the old one, with its data as before; one that can takes over."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from cluster_host import ROOT, THOROUGH, playbook
from openwebui_lab import ADMIN, EMPTY, OpenWebUI, prompts_on_the_wire, ready

sys.path.append(str(ROOT / "lab"))

from settings import load
from sources import download_wheels, ensure_wheelhouse

LOCK = ROOT / "roles/openwebui/files/requirements-3.11.txt"
BEFORE = Path(__file__).with_name("before-3.11.txt")  # as far as it differs


def upgrade(tmp_path, lock: str) -> None:
    """Run the role with another lock, out of the same wheels."""
    (tmp_path / "lock.txt").write_text(lock)
    wheels = f"/var/cache/ptolemy/openwebui/{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    playbook("openwebui", openwebui_requirements=str(tmp_path / "lock.txt"), openwebui_wheelhouse=wheels)


def current(cluster) -> str:
    return cluster.run("web", "readlink", "/opt/openwebui/current").strip()


def test_a_version_that_does_not_start_gives_way_to_the_old_one_and_nothing_is_lost(cluster, person, url, tmp_path):
    chat = person.post("/api/v1/chats/new", json={"chat": {"title": "kept", "models": ["demo"], "messages": []}})["id"]
    before = current(cluster)
    # The package itself, and none of those that it needs.
    alone = re.search(r"^open-webui==.*\n(?: +--hash.*\n)+", LOCK.read_text(), re.MULTILINE)[0]
    with pytest.raises(AssertionError, match="No module named 'typer'") as failed:
        upgrade(tmp_path, alone)
    assert "it ends as often as it is started" in str(failed.value)
    assert f"{before.rsplit('/', 1)[1]} serves, with its data as before" in str(failed.value)
    assert current(cluster) == before
    cluster.until(lambda: ready(url), "people reach it again")
    assert person.get(f"/api/v1/chats/{chat}")["title"] == "kept"
    assert playbook("openwebui").changed == 0


@pytest.mark.skipif(not THOROUGH, reason="downloads and installs another version; PTOLEMY_TEST_THOROUGH=1")
def test_the_version_before_becomes_this_one_with_its_data(cluster, url, secrets, tmp_path):
    present = "/var/backups/openwebui/present.tar"
    playbook("backup", backup=present)
    try:
        install_the_version_before(cluster, url, tmp_path)
        with OpenWebUI(url, ADMIN, secrets["openwebui_admin_password"]) as admin:
            assert admin.get("/api/version")["version"] == version(BEFORE)
            collection = admin.knowledge("Lockers", admin.upload(cluster, "lockers.txt", "The code of the parcel locker is OKAPI."))
            chat = admin.post("/api/v1/chats/new", json={"chat": {"title": "kept", "models": ["demo"], "messages": []}})["id"]

            playbook("openwebui")
            cluster.until(lambda: ready(url), "people reach it again")
            # With the session of before.
            assert admin.get("/api/version")["version"] == version(LOCK)
            assert admin.get(f"/api/v1/chats/{chat}")["title"] == "kept"
            with prompts_on_the_wire(cluster) as prompts:
                admin.chat("What is the code of the parcel locker?", files=[{"type": "collection", "id": collection}])
                prompts.until(cluster, "OKAPI")
    finally:
        playbook("openwebui")
        playbook("restore", backup=present)


def install_the_version_before(cluster, url, tmp_path) -> None:
    """Set the version before up with nothing in it, out of the wheels of both."""
    settings = load(None, None)
    wheels = settings.cache / "openwebui" / f"before-{version(BEFORE)}"
    shutil.rmtree(wheels, ignore_errors=True)
    shutil.copytree(ensure_wheelhouse(settings), wheels, copy_function=os.link)
    download_wheels(settings, BEFORE, wheels)
    lock = tmp_path / "lock.txt"
    lock.write_text(blocks(LOCK, but=names(BEFORE)) + BEFORE.read_text())
    cluster.run("web", "sh", "-c", f"{EMPTY} rm /opt/openwebui/current", timeout=120)
    playbook("openwebui", openwebui_requirements=str(lock), openwebui_wheelhouse=f"/var/cache/ptolemy/openwebui/{wheels.name}")
    cluster.until(lambda: ready(url), "the version before is ready")


def version(lock: Path) -> str:
    """Open WebUI's in a lock."""
    return re.search(r"^open-webui==(\S+)", lock.read_text(), re.MULTILINE)[1]


def names(lock: Path) -> set[str]:
    """The packages of a lock."""
    return set(re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE))


def blocks(lock: Path, but: set[str]) -> str:
    """A lock without some packages."""
    every = re.split(r"^(?=[\w.-]+==)", lock.read_text(), flags=re.MULTILINE)
    return "".join(block for block in every if block.split("==")[0] not in but)

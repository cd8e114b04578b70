"""New versions: one that cannot start gives way to the old one, with its data as before; one that can takes over."""

from __future__ import annotations

import hashlib
import re

import pytest

from cluster_host import ROOT, THOROUGH, playbook
from openwebui_lab import ready

LOCK = ROOT / "roles/openwebui/files/requirements-3.11.txt"


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
    cluster.until(lambda: ready(url), "people reach it again", 10)
    assert person.get(f"/api/v1/chats/{chat}")["title"] == "kept"
    assert playbook("openwebui").changed == 0


@pytest.mark.skipif(not THOROUGH, reason="installs everything anew, twice")
def test_a_version_that_starts_takes_over_with_the_data(cluster, person, url, tmp_path):
    chat = person.post("/api/v1/chats/new", json={"chat": {"title": "kept", "models": ["demo"], "messages": []}})["id"]
    before = current(cluster)
    try:
        upgrade(tmp_path, LOCK.read_text() + "# as if it were a new one\n")
        assert current(cluster) != before
        cluster.until(lambda: ready(url), "people reach it again", 10)
        assert person.get(f"/api/v1/chats/{chat}")["title"] == "kept"
    finally:
        playbook("openwebui")
    assert current(cluster) == before

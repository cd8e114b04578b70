"""A backup, the loss of everything, and the way back."""

from __future__ import annotations

import uuid

from cluster_host import playbook
from openwebui_lab import ADMIN, EMPTY, OpenWebUI, prompts_on_the_wire, ready


def test_the_user_the_chat_and_the_knowledge_are_back(cluster, person, url, secrets):
    code = f"OKAPI-{uuid.uuid4().hex[:8]}"
    file = person.upload(cluster, "lockers.txt", f"The code of the parcel locker is {code}.")
    collection = person.knowledge("Lockers", file)
    chat = person.post("/api/v1/chats/new", json={"chat": {"title": code, "models": ["demo"], "messages": []}})["id"]

    shown = playbook("backup", backup="/var/backups/openwebui/test.tar").shown
    assert "/var/backups/openwebui/test.tar" in shown
    assert cluster.run("web", "stat", "-c", "%a %U", "/var/backups/openwebui/test.tar").strip() == "600 root"

    cluster.run("web", "sh", "-c", f"{EMPTY} systemctl start openwebui", timeout=120)

    cluster.until(lambda: ready(url), "Open WebUI is ready")
    with OpenWebUI(url, ADMIN, secrets["openwebui_admin_password"]) as admin:
        assert admin.get("/api/v1/users/")["total"] == 1

    playbook("restore", backup="/var/backups/openwebui/test.tar")
    cluster.until(lambda: ready(url), "people reach it again")
    # The session, too, is as before: the same secret key, the same user.
    assert person.get(f"/api/v1/chats/{chat}")["title"] == code
    with prompts_on_the_wire(cluster) as prompts:
        person.chat("What is the code of the parcel locker?", files=[{"type": "collection", "id": collection}])
        prompts.until(cluster, code)

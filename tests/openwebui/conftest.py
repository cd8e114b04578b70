"""These tests need a lab with Open WebUI: lab/verify runs them where there is a host `web`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_host import cluster, shared  # noqa: F401
from openwebui_lab import ADMIN, OpenWebUI


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["PTOLEMY_TEST_OPENWEBUI_URL"]


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """All that must stay secret, by name."""
    state = Path(os.environ["LAB_STATE_DIR"])
    names = ("openwebui_admin_password", "openwebui_secret_key", "openwebui_gateway_key", "openwebui_comfyui_key", "api_key", "backend_key")
    return {name: (state / name).read_text().strip() for name in names}


# Once for all: Open WebUI itself counts sign-ins.
@pytest.fixture(scope="session")
def admin(url: str, secrets: dict[str, str]) -> Iterator[OpenWebUI]:
    with OpenWebUI(url, ADMIN, secrets["openwebui_admin_password"]) as session:
        yield session


@pytest.fixture
def person(admin: OpenWebUI, url: str) -> Iterator[OpenWebUI]:
    """An ordinary user, whom the administrator has just made."""
    name = f"person-{uuid.uuid4().hex[:8]}"
    account = {"name": name, "email": f"{name}@example.org", "password": "a password of eight", "role": "user"}
    admin.post("/api/v1/auths/add", json=account)
    with OpenWebUI(url, account["email"], account["password"]) as session:
        yield session

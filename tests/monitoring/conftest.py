"""These tests need a lab with Prometheus (LAB_MONITORING=yes): lab/verify runs them there."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from cluster_host import Cluster, cluster, shared  # noqa: F401

ASK = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"


class Prometheus:
    """The lab's, which listens on the gateway's loopback."""

    def __init__(self, lab: Cluster) -> None:
        self._lab = lab

    def get(self, path: str, **query: str) -> Any:
        """What its API answers."""
        url = f"http://127.0.0.1:9090/api/v1/{path}?{urlencode(query)}"
        return json.loads(self._lab.run("head", "python3", "-c", ASK, url))["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples of an expression, now."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def targets(self) -> list[Any]:
        """What it asks now."""
        found: list[Any] = self.get("targets", state="active")["activeTargets"]
        return found


@pytest.fixture
def prometheus(request: pytest.FixtureRequest) -> Prometheus:
    return Prometheus(request.getfixturevalue("shared"))

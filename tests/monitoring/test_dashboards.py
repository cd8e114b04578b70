"""Every query of every dashboard has an answer."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request

import pytest

from cluster_host import ROOT

FILES = sorted((ROOT / "roles" / "monitoring" / "files" / "dashboards").glob("*.json"))
DCGM = "DCGM_"  # names of NVIDIA's exporter, for which the lab has no GPU: only whether the query can be read


def queries():
    for path in FILES:
        for panel in json.loads(path.read_text())["panels"]:
            for number, target in enumerate(panel["targets"]):
                yield pytest.param(target["expr"].replace("$service", "demo"), id=f"{path.stem}: {panel['title']} {number + 1}")


def ask(cluster, tier):
    body = json.dumps({"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": "Categorise: TAXI"}]}).encode()
    headers = {"Authorization": f"Bearer {cluster.api_key}", "Content-Type": "application/json", "X-Ptolemy-Tier": tier}
    urllib.request.urlopen(urllib.request.Request(f"{cluster.base_url}/chat/completions", body, headers), timeout=60).read()


@contextlib.contextmanager
def requests_of_both_tiers(cluster):
    """People and a batch, one request after the other."""
    enough = threading.Event()

    def go_on(tier):
        while not enough.is_set():
            ask(cluster, tier)
            enough.wait(0.2)

    threads = [threading.Thread(target=go_on, args=(tier,)) for tier in ("interactive", "batch")]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(60)


@pytest.fixture(scope="module")
def traffic(shared):
    """While the queries are asked, somebody asks the models, as on any day."""
    shared.until_ready()
    with requests_of_both_tiers(shared):
        yield


@pytest.mark.parametrize("query", list(queries()))
def test_a_dashboards_query_returns_data(shared, traffic, prometheus, query):
    if DCGM in query:
        assert prometheus.query(query) == []
        return

    def answered():
        # NaN is what a mean of nothing is.
        return any(sample["value"][1] not in ("NaN", "+Inf") for sample in prometheus.query(query))

    shared.until(answered, query)

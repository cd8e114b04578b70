"""Every query of every dashboard has an answer, and Grafana is given the dashboards where there is one."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request

import pytest
import yaml

from cluster_host import ROOT, playbook, try_playbook

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


PACKAGE = """
  set -e
  rm -rf /tmp/grafana && mkdir -p /tmp/grafana/DEBIAN /tmp/grafana/lib/systemd/system
  cd /tmp/grafana
  mkdir -p etc/grafana/provisioning/datasources etc/grafana/provisioning/dashboards
  printf 'Package: grafana\\nVersion: 1\\nArchitecture: all\\nMaintainer: nobody\\nDescription: stands for Grafana\\n' >DEBIAN/control
  server='python3 -m http.server --bind $GF_SERVER_HTTP_ADDR $GF_SERVER_HTTP_PORT'
  printf '[Service]\\nExecStart=%s\\n[Install]\\nWantedBy=multi-user.target\\n' "$server" >lib/systemd/system/grafana-server.service
  dpkg-deb --build /tmp/grafana /tmp/grafana.deb >/dev/null
  sha256sum /tmp/grafana.deb
"""
AWAY = """
  systemctl disable --now grafana-server; apt-get purge -y grafana
  rm -rf /tmp/grafana* /etc/grafana /etc/systemd/system/grafana-server.service.d /usr/local/src/grafana-*; systemctl daemon-reload
"""


def test_grafana_gets_prometheus_and_the_dashboards(cluster):
    checksum = cluster.run("head", "sh", "-c", PACKAGE).split()[0]
    wanted = {"monitoring_grafana": True, "monitoring_grafana_package": "/tmp/grafana.deb"}
    try:
        played = try_playbook("monitoring", "--limit", "head", **wanted, monitoring_grafana_sha256="0" * 64)
        assert played.status != 0 and "checksum" in played.shown
        playbook("monitoring", "--limit", "head", **wanted, monitoring_grafana_sha256=checksum)
        source = yaml.safe_load(cluster.run("head", "cat", "/etc/grafana/provisioning/datasources/ptolemy.yml"))["datasources"][0]
        assert (source["uid"], source["url"]) == ("ptolemy", "http://127.0.0.1:9090")
        provider = yaml.safe_load(cluster.run("head", "cat", "/etc/grafana/provisioning/dashboards/ptolemy.yml"))["providers"][0]
        assert cluster.run("head", "ls", provider["options"]["path"]).split() == [path.name for path in FILES]
        assert cluster.run("head", "systemctl", "is-active", "grafana-server").strip() == "active"
        cluster.until(lambda: "127.0.0.1:3001" in cluster.run("head", "ss", "-Hltn", "sport = :3001"), "it listens on the loopback")
        assert playbook("monitoring", "--limit", "head", **wanted, monitoring_grafana_sha256=checksum).changed == 0
    finally:
        cluster.run("head", "sh", "-c", AWAY, check=False, timeout=120)


def test_a_grafana_that_is_not_there_is_named(cluster):
    played = try_playbook("monitoring", "--limit", "head", monitoring_grafana=True)
    assert played.status != 0 and "install Grafana, or say in monitoring_grafana_package how" in played.shown.replace("\n", " ")

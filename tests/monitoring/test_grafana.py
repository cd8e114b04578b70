"""Grafana is given Prometheus and the dashboards where there is one."""

from __future__ import annotations

import yaml

from cluster_host import ROOT, playbook, try_playbook

DASHBOARDS = sorted(path.name for path in (ROOT / "roles" / "monitoring" / "files" / "dashboards").glob("*.json"))

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
        assert cluster.run("head", "ls", provider["options"]["path"]).split() == DASHBOARDS
        assert cluster.run("head", "systemctl", "is-active", "grafana-server").strip() == "active"
        cluster.until(lambda: "127.0.0.1:3001" in cluster.run("head", "ss", "-Hltn", "sport = :3001"), "it listens on the loopback")
        assert playbook("monitoring", "--limit", "head", **wanted, monitoring_grafana_sha256=checksum).changed == 0
    finally:
        cluster.run("head", "sh", "-c", AWAY, check=False, timeout=120)


def test_a_grafana_that_is_not_there_is_named(cluster):
    played = try_playbook("monitoring", "--limit", "head", monitoring_grafana=True)
    assert played.status != 0 and "install Grafana, or say in monitoring_grafana_package how" in played.shown.replace("\n", " ")

"""Prometheus asks everything, and finds the replicas that come and go; nobody else reads the keys with which it does."""

from __future__ import annotations

import subprocess
from collections import Counter

from cluster_host import playbook, try_playbook

KEYS = "/etc/prometheus/ptolemy/keys"
SERVICES = ("demo", "demo-b", "embed", "nap")  # of llama-server: `draw` is ComfyUI's, which has no metrics


def llama_servers(prometheus):
    return [target for target in prometheus.targets() if target["labels"]["job"] == "llama-server"]


def hosts(cluster):
    shown = subprocess.run(["podman", "ps", "--format", "{{.Names}}"], check=True, capture_output=True, text=True, timeout=60).stdout
    return sorted(name.removeprefix(f"{cluster.prefix}-") for name in shown.split() if name.startswith(f"{cluster.prefix}-"))


def test_every_target_is_up(cluster, prometheus):
    cluster.until(lambda: all(it["health"] == "up" for it in prometheus.targets()), "every target up")
    jobs = Counter(it["labels"]["job"] for it in prometheus.targets())
    assert jobs["haproxy"] == jobs["ptolemy"] == jobs["prometheus"] == 1
    assert sorted(it["labels"]["instance"] for it in prometheus.targets() if it["labels"]["job"] == "node") == hosts(cluster)
    assert jobs["llama-server"] == sum(len(cluster.service(name)["servers"]) for name in SERVICES)


def test_a_new_replica_is_found_and_a_gone_one_forgotten(cluster, prometheus):
    def replicas():
        return sorted(int(it["labels"]["replica"]) for it in llama_servers(prometheus) if it["labels"]["service"] == "demo")

    with cluster.service_as("demo", min=3, max=3):
        cluster.until(lambda: len(cluster.jobs("demo")) == 3 and replicas() == sorted(cluster.jobs("demo")), "the third one is asked")
        cluster.until(lambda: all(it["health"] == "up" for it in llama_servers(prometheus)), "the third one answers")
    cluster.until_ready()
    cluster.until(lambda: replicas() == sorted(cluster.jobs("demo")), "it is asked no more")


def test_targets_tell_node_and_gpu_as_slurm_does(cluster, prometheus):
    def in_step():
        awake = sorted(job for name in SERVICES for job in cluster.jobs(name))
        return awake == sorted(int(it["labels"]["replica"]) for it in llama_servers(prometheus))

    cluster.until(in_step, "Prometheus has the replicas that there are")
    for target in llama_servers(prometheus):
        labels = target["labels"]
        job = cluster.run("head", "scontrol", "-d", "show", "job", labels["replica"])
        assert f" BatchHost={labels['node']}" in job.replace("\n  ", " ") and f"IDX:{labels['gpu']})" in job


def test_no_key_is_readable_by_others_or_shown(cluster, prometheus):
    files = cluster.run("head", "find", KEYS, "-printf", "%f %m %u %g\\n").splitlines()
    assert sorted(files) == sorted(["keys 750 root prometheus", *(f"{name}.key 640 root prometheus" for name in SERVICES)])
    key = cluster.run("head", "cat", f"{KEYS}/demo.key")
    assert len(key) == 64
    assert cluster.run("head", "cat", f"{KEYS}/demo.key", user="nobody", check=False) == ""
    places = "cat /etc/prometheus/prometheus.yml; journalctl --no-pager; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    assert key not in cluster.run("head", "sh", "-c", places)
    assert key not in str(prometheus.get("status/config"))


def test_prometheus_and_the_gateways_node_exporter_listen_on_the_loopback_only(cluster):
    shown = cluster.run("head", "ss", "-Hltn", "sport = :9090 or sport = :9100")
    assert sorted(line.split()[3] for line in shown.splitlines()) == ["127.0.0.1:9090", "127.0.0.1:9100"]


def test_a_certificates_end_is_told(cluster):
    script = """
      set -e
      cd "$(mktemp -d)"
      openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 20 -subj /CN=lab -keyout key -out certificate 2>/dev/null
      openssl s_server -accept 127.0.0.1:4499 -cert certificate -key key -quiet &
      trap 'kill $!' EXIT
      for _ in $(seq 100); do ss -Hltn 'sport = :4499' | grep -q . && break; sleep 0.05; done
      ptolemy-certificates . 127.0.0.1:4499 127.0.0.1:4498
      grep -v '^#' ptolemy_certificates.prom
      date -d "$(openssl x509 -in certificate -noout -enddate | cut -d= -f2)" +%s
    """
    good, closed, end = cluster.run("head", "sh", "-c", script).splitlines()
    assert good == f'ptolemy_certificate_expiry_timestamp_seconds{{address="127.0.0.1:4499"}} {end}'
    assert closed == 'ptolemy_certificate_expiry_timestamp_seconds{address="127.0.0.1:4498"} 0'
    assert cluster.run("head", "systemctl", "is-active", "ptolemy-certificates.timer").strip() == "active"


def test_a_second_run_changes_nothing(cluster):
    assert playbook("monitoring").changed == 0


def test_a_host_beside_the_gateway_is_refused(cluster, tmp_path):
    (tmp_path / "hosts.yml").write_text("monitoring: {hosts: {n1: }}\n")
    played = try_playbook("monitoring", "-i", str(tmp_path / "hosts.yml"))
    assert played.status != 0 and played.changed == 0
    assert "group monitoring: must be the gateway, head," in " ".join(played.shown.split())


def test_a_wrong_setting_is_named_before_anything_changes(cluster):
    played = try_playbook("monitoring", "--limit", "head", monitoring_interval="soon")
    assert played.status != 0 and played.changed == 0 and "monitoring_interval: must be a number" in played.shown

"""Another user's job with our job name and a forged comment never reaches HAProxy."""

from __future__ import annotations

import hmac
import json
import time
import urllib.error
import urllib.request

import pytest

SCRIPT = "#!/bin/bash\nexec python3 -m http.server {port}\n"
PORT = 20500


@pytest.fixture
def stranger(cluster):
    for host in ("head", "n1", "n2"):
        cluster.run(host, "sh", "-c", "id mallory 2>/dev/null || useradd --uid 7001 --create-home mallory")
    yield "mallory"
    cluster.run("head", "scancel", "--user=mallory", check=False)


def test_a_forged_job_is_never_read(cluster, stranger):
    servers = set(cluster.servers("demo"))
    forged = {"v": 1, "s": "demo", "r": cluster.service("demo")["revision"], "n": 0, "st": "ready", "p": str(PORT), "k": 4}
    options = ["--job-name=ptolemy-demo", f"--comment={json.dumps(forged)}", "--gres=gpu:1", "--chdir=/tmp", "--output=/dev/null"]
    job = cluster.run("head", "sbatch", "--parsable", *options, user=stranger, stdin=SCRIPT.format(port=PORT)).strip()
    cluster.until(lambda: cluster.run("head", "squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING", "the forged job runs")
    seen = cluster.run("head", "squeue", "-h", "-j", job, "-o", "%u %j %k").strip()
    assert seen.startswith("mallory ptolemy-demo {"), "the forgery is as good as it can be"
    ticks = cluster.status()["counters"]["ticks"]
    cluster.until(lambda: cluster.status()["counters"]["ticks"] >= ticks + 5, "five ticks")
    assert set(cluster.servers("demo")) == servers
    assert int(job) not in [row["job"] for row in cluster.service("demo")["replicas"]]


def test_a_stranger_cannot_change_our_records_or_read_our_keys(cluster, stranger):
    row = cluster.service("demo")["replicas"][0]
    refused = cluster.run("head", "scontrol", "update", f"JobId={row['job']}", "Comment=x", user=stranger, check=False)
    assert cluster.service("demo")["replicas"][0]["state"] == "ready", refused
    for host, path in (("n1", "/etc/ptolemy/backend.key"), ("head", "/run/haproxy/admin.sock")):
        assert cluster.run(host, "sh", "-c", f"test -r {path} || echo no", user=stranger).strip() == "no"


def test_no_secret_is_in_an_argument_list(cluster):
    site_key = cluster.run("n1", "cat", "/etc/ptolemy/backend.key").strip()
    began = time.monotonic()
    while time.monotonic() - began < 2:  # as long as a few ticks
        for host in ("head", "n1", "n2"):
            shown = cluster.run(host, "ps", "axww", "-o", "args")
            for secret in (site_key, own_key(site_key, "demo"), cluster.api_key):
                assert secret not in shown


def own_key(site_key, service):
    return hmac.new(site_key.encode(), service.encode(), "sha256").hexdigest()


def test_the_key_of_a_services_servers_opens_no_other_service(cluster):
    site_key = cluster.run("n1", "cat", "/etc/ptolemy/backend.key").strip()
    row = cluster.service("demo")["replicas"][0]
    endpoint = f"http://{row['address']}:{row['ports'][0]}/tokenize"

    def answer(key):
        request = urllib.request.Request(endpoint, data=b'{"content": "x"}', headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    keys = (own_key(site_key, "demo"), own_key(site_key, "demo-b"), site_key, cluster.api_key)
    assert [answer(key) for key in keys] == [200, 401, 401, 401]

"""What people used, out of a real journal: HAProxy's lines, the exporter's, and the unit that keeps the days."""

from __future__ import annotations

import csv
import json
import urllib.request
import uuid

import openai


def rows(cluster):
    return list(csv.DictReader(cluster.run("head", "ptolemy", "usage", "--csv", "-").splitlines()))


def tokens_per_s(cluster):
    with urllib.request.urlopen(cluster.base_url.removesuffix("/v1") + "/status.json", timeout=10) as answer:
        page = json.load(answer)
    return next(row for row in page["services"] if row["service"] == "demo")["lately"]["tokens_per_s"]


def test_a_month_has_each_users_requests_gpu_hours_and_tokens(cluster):
    user = f"user-{uuid.uuid4().hex[:8]}"
    key = cluster.run("head", "ptolemy", "keys", "add", user, "--tier", "batch").strip()
    asked = 0
    try:
        with openai.OpenAI(base_url=cluster.base_url, api_key=key, max_retries=0, timeout=60) as client:

            def counted():
                nonlocal asked
                asked += 1
                client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=16)
                return asked >= 50 and tokens_per_s(cluster)

            cluster.until(counted, "the exporter has counted tokens")
    finally:
        cluster.run("head", "ptolemy", "keys", "revoke", user)
    # When it ends it tells what it has not told yet.
    cluster.run("head", "systemctl", "restart", "ptolemy-exporter")

    def mine():
        found = [row for row in rows(cluster) if row["user"] == user]
        return found if found and int(found[0]["requests"]) == asked and float(found[0]["tokens_generated"]) else None

    cluster.until(mine, "all requests are in the month")
    (row,) = mine()
    assert (row["service"], row["tier"], row["failed"]) == ("demo", "batch", "0")
    assert float(row["slot_seconds"]) > 0 and float(row["gpu_hours"]) > 0 and float(row["tokens_read"]) > 0
    table = cluster.run("head", "ptolemy", "usage", "--by", "user")
    assert user in table and key not in table


def test_the_nightly_unit_reads_the_journal_in_its_cage(cluster):
    cluster.run("head", "systemctl", "start", "ptolemy-usage.service")
    assert "ptolemy-usage.timer" in cluster.run("head", "systemctl", "list-timers", "--no-legend")
    assert cluster.run("head", "stat", "-c", "%a %U", "/var/lib/ptolemy/usage").strip() == "750 ptolemy"

"""The status page of a real cluster says what Slurm and HAProxy say, to each as much as they may see."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request

import pytest


def fetch(cluster, path="/status.json", key=""):
    """Status and body of an answer of the gateway."""
    request = urllib.request.Request(cluster.base_url.removesuffix("/v1") + path, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def shown(cluster, key=""):
    status, body = fetch(cluster, key=key)
    assert status == 200, body
    return json.loads(body)


def service(document, name="demo"):
    return next(row for row in document["services"] if row["service"] == name)


def in_slurm(cluster):
    """Job id, node and state of each replica, by squeue itself."""
    lines = cluster.run("head", "squeue", "--noheader", "--user=ptolemy", "--format=%A|%N|%T").splitlines()
    return sorted((int(job), node) for job, node, state in (line.split("|") for line in lines) if state == "RUNNING")


def on_page(document):
    return sorted((row["job"], row["node"]) for it in document["services"] for row in it["replicas"] if row["node"])


def test_the_page_is_served_and_its_replicas_are_those_of_slurm(cluster):
    status, page = fetch(cluster, "/status")
    assert status == 200 and "<title>Ptolemy: status</title>" in page
    document = shown(cluster)
    asleep = sum(it["state"] == "asleep" for it in document["services"])
    assert document["headline"]["text"].startswith(f"{'' if asleep else 'All '}{len(document['services']) - asleep} services answer")
    assert on_page(document) == in_slurm(cluster)
    used = [(row["node"], gpu) for it in document["services"] for row in it["replicas"] for gpu in row["gpus"]]
    assert len(used) == len(set(used)) == len(in_slurm(cluster)), "each replica has a GPU of its own"


def test_a_replica_that_starts_is_seen_on_its_way(cluster):
    states = set()
    # The lab's replicas start in a moment: this one waits a little in Slurm.
    with cluster.service_as("demo", min=3, max=3, sbatch_options=["--begin=now+6"]):

        def grown():
            row = service(shown(cluster))
            states.update(replica["state"] for replica in row["replicas"])
            return row["replicas_ready"] == 3

        cluster.until(grown, "the page shows three ready replicas")
        assert "waiting for a GPU" in states, "the third one was seen before it was ready"
        assert service(shown(cluster))["slots"]["all"] == sum(it["slots"] for it in cluster.service("demo")["servers"])
        cluster.until(lambda: on_page(shown(cluster)) == in_slurm(cluster), "the page shows Slurm's jobs")
    cluster.until_ready()


@pytest.mark.bookworm
def test_tokens_and_the_first_ones_time_are_told_while_somebody_asks(cluster):
    with cluster.load(clients=8, least=400):

        def told():
            lately = service(shown(cluster))["lately"]
            return (lately["tokens_per_s"] or 0) > 0 and 0 < (lately["first_token_s"] or 0) < 60 and lately["requests_per_s"] > 0

        cluster.until(told, "tokens, their time and requests")
        cluster.until(lambda: service(shown(cluster))["slots"]["busy"] > 0, "busy slots")


@contextlib.contextmanager
def operator(cluster):
    """The key of a user who is an operator for a while."""
    path = "/etc/ptolemy/services.json"
    before = cluster.run("head", "cat", path)
    changed = json.loads(before)
    changed["site"]["operators"] = ["ops"]
    key = cluster.run("head", "ptolemy", "keys", "add", "ops-key", "--user", "ops").split()[-1]
    try:
        cluster.write("head", path, json.dumps(changed))
        yield key
    finally:
        cluster.write("head", path, before)
        cluster.run("head", "ptolemy", "keys", "revoke", "ops-key")


@pytest.mark.bookworm
def test_operators_see_users_and_addresses_and_nobody_else_does(cluster):
    with operator(cluster) as key, cluster.load(clients=8, least=50):
        cluster.until(lambda: shown(cluster, key)["view"] == "operators", "the operators' view")
        cluster.until(lambda: any(user["user"] == "default" for user in shown(cluster, key)["users"] or ()), "who asks")
        private, public = shown(cluster, key), shown(cluster)
        address = service(private)["replicas"][0]["address"]
        assert address == cluster.service("demo")["replicas"][0]["address"]
        assert shown(cluster, cluster.api_key)["view"] == public["view"] == "everybody"  # the lab's own operator is none now
        assert address not in json.dumps(public) and "default" not in json.dumps(public)
    assert shown(cluster, key)["view"] == "everybody"


def test_strangers_on_the_gateway_do_not_see_who_asks(cluster):
    cluster.until(lambda: cluster.run("head", "cat", "/run/ptolemy/users.json"), "the file of users")
    assert cluster.run("head", "cat", "/run/ptolemy/users.json", user="nobody", check=False) == ""


def test_while_ptolemyd_is_away_the_status_is_unknown_and_chats_go_on(cluster):
    try:
        cluster.run("head", "systemctl", "stop", "ptolemyd")
        cluster.until(lambda: fetch(cluster)[0] == 503, "the status is unknown")
        assert json.loads(fetch(cluster)[1])["error"]["code"] == "status_unknown"
        assert fetch(cluster, "/status")[0] == 200
        assert fetch(cluster, "/v1/models", cluster.api_key)[0] == 200
    finally:
        cluster.run("head", "systemctl", "start", "ptolemyd")
    cluster.until(lambda: fetch(cluster)[0] == 200, "the status is known again")


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_top_shows_the_same_in_a_terminal(cluster, user):
    text = cluster.run("head", "ptolemy", "top", "--once", user=user)
    assert " services answer" in text.splitlines()[0]
    assert sum(" ready on n" in line for line in text.splitlines()) == len(in_slurm(cluster))

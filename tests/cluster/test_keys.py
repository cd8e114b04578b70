"""Clients' keys as an administrator makes them, and what ptolemyd tells the gateway about tiers and states."""

from __future__ import annotations

import contextlib

import openai
import pytest

from cluster_host import playbook


@contextlib.contextmanager
def client_of(cluster, key):
    with openai.OpenAI(base_url=cluster.base_url, api_key=key, max_retries=0, timeout=60) as made:
        yield made


def chat(client, **more):
    return client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=4, **more)


@pytest.fixture
def batch_key(cluster):
    key = cluster.run("head", "ptolemy", "keys", "add", "study", "--user", "meier", "--tier", "batch", "--service", "demo").strip()
    yield key
    cluster.run("head", "ptolemy", "keys", "revoke", "study", check=False)


def test_a_key_is_made_listed_rotated_and_revoked(cluster, batch_key):
    with client_of(cluster, batch_key) as client:
        assert chat(client).usage.completion_tokens == 4
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="demo-b", messages=[])
        listed = cluster.run("head", "ptolemy", "keys", "list")
        assert [line.split()[:4] for line in listed.splitlines() if "study" in line] == [["study", "meier", "batch", "demo"]]
        assert batch_key not in listed
        new = cluster.run("head", "ptolemy", "keys", "rotate", "study").strip()
        with pytest.raises(openai.AuthenticationError):
            chat(client)
    with client_of(cluster, new) as client:
        assert chat(client)
        cluster.run("head", "ptolemy", "keys", "revoke", "study")
        with pytest.raises(openai.AuthenticationError):
            chat(client)


def test_the_playbook_leaves_keys_of_the_gateway_alone_and_changes_nothing_twice(cluster, batch_key):
    assert playbook("keys").changed == 0
    with client_of(cluster, batch_key) as client:
        assert chat(client)


def test_a_key_that_was_lost_from_haproxy_is_given_back(cluster, batch_key):
    entry = cluster.run("head", "sh", "-c", "grep study /etc/ptolemy/keys.map").split()[0]
    cluster.haproxy(f"del map /etc/ptolemy/keys.map {entry}")
    cluster.run("head", "touch", "/etc/ptolemy/keys.map")
    with client_of(cluster, batch_key) as client:

        def answered():
            try:
                return chat(client)
            except openai.AuthenticationError:
                return None

        cluster.until(answered, "ptolemyd has brought the map in step")


def test_a_gate_leaves_slots_while_somebody_chats(cluster, batch_key):
    with client_of(cluster, cluster.api_key) as client:
        assert chat(client)
    with client_of(cluster, batch_key) as client:
        answer = client.chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
        assert answer.headers["x-ptolemy-service"] == "demo" and int(answer.headers["x-ptolemy-queue-ms"]) >= 0
    slots = sum(server["slots"] for server in cluster.service("demo")["servers"])
    cluster.until(lambda: gate_of(cluster, "demo") == int(slots * 0.75), "the gate is narrow")


def gate_of(cluster, service):
    titles, *rows = (line.split(",") for line in cluster.haproxy(f"show stat batch_{service} 4 -1").strip().splitlines())
    return int(rows[0][titles.index("slim")])


def test_the_models_tell_their_states(cluster):
    with client_of(cluster, cluster.api_key) as client:
        cluster.until(
            lambda: (
                {model.id: model.status for model in client.models.list()}
                == {row["service"]: row["state"] for row in cluster.status()["services"]}
            ),
            "the gateway tells what ptolemyd sees",
        )
        assert {model.context_length for model in client.models.list() if model.kind != "comfyui"} == {1024}

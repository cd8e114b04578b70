"""Conversations with a service that has `affinity: conversation`, as `demo-b` does in the lab."""

from __future__ import annotations

import hashlib

import openai

SERVICE, TALKS = "demo-b", 6
SYSTEM = {"role": "system", "content": "You are a bookkeeper. You sort what stands on a bank's statement into categories."}


class Talk:
    """One conversation."""

    def __init__(self, client, number):
        self._client = client
        self._messages = [SYSTEM]
        self._next = f"Categorise: TAXI {number} TO THE AIRPORT"

    def turn(self):
        """Ask, and return which server answered, as the gateway calls it for clients."""
        self._messages.append({"role": "user", "content": self._next})
        raw = self._client.chat.completions.with_raw_response.create(model=SERVICE, messages=self._messages, max_tokens=8)
        answer = raw.parse()
        self._messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        self._next = "And: OFFICE PAPER"
        return raw.headers["x-ptolemy-replica"]


def named(server):
    """What clients see of a server's name."""
    return hashlib.sha256(server.encode()).hexdigest()[:12]


def test_a_conversation_stays_with_a_server_until_its_replica_ends(cluster):
    with openai.OpenAI(base_url=cluster.base_url, api_key=cluster.api_key, max_retries=0, timeout=60) as client:
        talks = [Talk(client, number) for number in range(TALKS)]
        homes = [talk.turn() for talk in talks]
        assert set(homes) == {named(server) for server in cluster.servers(SERVICE)}, "one system prompt pins nobody"
        assert [talk.turn() for talk in talks] == homes

        gone = next(server for server in cluster.servers(SERVICE) if named(server) == homes[0])
        cluster.run("head", "scancel", gone.removeprefix("j").partition("r")[0])
        cluster.until(lambda: gone not in cluster.servers(SERVICE), f"without {gone}")
        later = [talk.turn() for talk in talks]
        assert named(gone) not in later
        assert [home for home, before in zip(later, homes) if before != named(gone)] == [home for home in homes if home != named(gone)]
        assert [talk.turn() for talk in talks] == later

"""The demo model through the whole stack: gateway, replicas, llama-server."""

from __future__ import annotations

import asyncio

import openai
import pytest

from cluster_host import SERVICES
from demo import evaluate, score
from demo.descriptions import read_rows

ENOUGH = 0.95


def held_out():
    return list(read_rows(evaluate.RELEASE / "held-out.csv"))


def ask(cluster, rows, *how):
    headers = {"Authorization": f"Bearer {cluster.api_key}"}
    return asyncio.run(score.ask(cluster.base_url, headers, SERVICES[0], rows, *how))


def test_held_out_rows_are_categorised(cluster):
    rows = held_out()
    found = ask(cluster, rows)
    assert len(found.answers) == len(rows)
    for seen in (True, False):
        assert found.accuracy(seen) >= ENOUGH, found.wrong()[:20]


@pytest.mark.trixie
def test_rows_are_categorised_under_a_json_schema_that_the_prompt_does_not_mention(cluster):
    found = ask(cluster, held_out()[:300], evaluate.with_schema, evaluate.of_json)
    assert found.accuracy() >= ENOUGH, found.wrong()[:20]


@pytest.mark.trixie
def test_a_greeting_is_told_what_to_ask(cluster):
    with openai.OpenAI(base_url=cluster.base_url, api_key=cluster.api_key, max_retries=0, timeout=60) as client:
        hello = client.chat.completions.create(model="demo", temperature=0, messages=[{"role": "user", "content": "Hello"}])
    assert "Categorise:" in hello.choices[0].message.content

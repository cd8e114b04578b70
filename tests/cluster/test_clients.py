"""Real clients, changed in nothing but address and key, speak through the gateway with real llama-servers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import struct
import subprocess
import sys
from typing import Literal
from urllib.parse import urlsplit

import anthropic
import openai
import pydantic
import pytest

from cluster_host import ROOT

pytestmark = pytest.mark.trixie

HELLO = [{"role": "user", "content": "Hello"}]
TO_BOOK = [{"role": "user", "content": "Categorise: DELTA AIR 0062341 BOSTON\nAnswer as JSON."}]  # as it was taught to
WIDTH = 96  # of the demo model
JSON_TOKENS = 400  # where a grammar lets it, the demo model writes much white space
# In the order of docs/clients.md.
PROGRAMS = ("openai", "schema", "embeddings", "anthropic", "litellm", "curl")


class Booking(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    account: Literal["travel", "office"]
    urgent: bool


TOOL = {"type": "function", "function": {"name": "book", "description": "Books it.", "parameters": Booking.model_json_schema()}}
ANTHROPIC_TOOL = {"name": "book", "description": "Books it.", "input_schema": Booking.model_json_schema()}


@pytest.fixture
def client(cluster):
    with openai.OpenAI(base_url=cluster.base_url, api_key=cluster.api_key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def claude(cluster):
    address = cluster.base_url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=address, api_key=cluster.api_key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def embed(shared):
    """The embedding service sleeps, wakes when it is asked, and sleeps again after the last of these tests."""
    yield "embed"
    with shared.service_as("embed", scale_in_delay=1):
        shared.until(lambda: not shared.jobs("embed"), "embed sleeps again")


@pytest.fixture(scope="module")
def other_python():
    """The interpreter of the environment that has LiteLLM."""
    done = subprocess.run([ROOT / "lab/bootstrap", "clients"], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(cluster, *command, stdin=None):
    """Run a client's program as a user would; returns what it printed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "OPENAI_BASE_URL": cluster.base_url,
        "OPENAI_API_KEY": cluster.api_key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment, input=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_programs_of_the_page_run_as_they_stand(cluster, embed, other_python, subtests):
    found = re.findall(r"^```(python|sh)\n(.*?)^```$", (ROOT / "docs/clients.md").read_text(), re.DOTALL | re.MULTILINE)
    for name, (language, text) in zip(PROGRAMS, found, strict=True):
        python = other_python if name == "litellm" else sys.executable
        with subtests.test(name):
            assert run(cluster, *(["sh", "-s"] if language == "sh" else [python, "-"]), stdin=text).strip()


def test_many_chats_at_once(cluster):
    async def scenario():
        async with openai.AsyncOpenAI(base_url=cluster.base_url, api_key=cluster.api_key, max_retries=0, timeout=60) as client:
            chats = (client.chat.completions.create(model="demo", messages=HELLO, max_tokens=number) for number in range(4, 24))
            return await asyncio.gather(*chats)

    assert [answer.usage.completion_tokens for answer in asyncio.run(scenario())] == list(range(4, 24))


def test_a_stream_comes_in_pieces_and_tells_its_usage(cluster):

    async def scenario():
        async with openai.AsyncOpenAI(base_url=cluster.base_url, api_key=cluster.api_key, max_retries=0, timeout=60) as client:
            stream = await client.chat.completions.create(
                model="demo",
                messages=HELLO,
                max_tokens=60,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            return [piece async for piece in stream]

    *pieces, last = asyncio.run(scenario())
    assert len([piece for piece in pieces if piece.choices[0].delta.content]) > 1
    assert pieces[-1].choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == 60


def test_a_completion(client):
    answer = client.completions.create(model="demo", prompt="Hello", max_tokens=8)
    assert answer.choices[0].text and answer.usage.completion_tokens == 8


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(client, embed, encoding):
    texts = ["train ticket", "taxi", "train ticket", "word " * 200]  # the last one is longer than llama-server's usual batch
    answer = client.with_options(timeout=300).embeddings.create(model=embed, input=texts, encoding_format=encoding)
    vectors = [row.embedding for row in answer.data]
    if encoding == "base64":  # of 32-bit numbers
        vectors = [struct.unpack(f"<{WIDTH}f", base64.b64decode(vector)) for vector in vectors]
    assert {len(vector) for vector in vectors} == {WIDTH}
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-3) and vectors[0] != pytest.approx(vectors[1], abs=1e-3)


def test_a_tool_is_called_and_its_result_is_answered(client):
    offered = {"model": "demo", "tools": [TOOL], "max_tokens": JSON_TOKENS, "temperature": 0}
    asked = client.chat.completions.create(messages=TO_BOOK, tool_choice="required", **offered)
    call = asked.choices[0].message.tool_calls[0]
    assert call.function.name == "book"
    Booking.model_validate_json(call.function.arguments)
    spoken = {"role": "assistant", "content": None, "tool_calls": [call.to_dict()]}
    result = {"role": "tool", "tool_call_id": call.id, "content": "booked"}
    answer = client.chat.completions.create(messages=[*HELLO, spoken, result], **offered | {"max_tokens": 8})
    assert answer.choices[0].message.content


def test_an_answer_keeps_to_a_schema(client):
    answer = client.chat.completions.parse(model="demo", messages=HELLO, response_format=Booking, max_tokens=JSON_TOKENS)
    assert isinstance(answer.choices[0].message.parsed, Booking)


def test_responses(client):
    assert client.responses.create(model="demo", input="Hello", max_output_tokens=16).output_text
    events = [event.type for event in client.responses.create(model="demo", input="Hello", max_output_tokens=16, stream=True)]
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert events.count("response.output_text.delta") > 1


def test_models_tell_their_kind(client):
    kinds = {model.id: model.kind for model in client.models.list()}
    assert kinds == {"demo": "chat", "demo-b": "chat", "draw": "comfyui", "embed": "embedding", "nap": "chat"}


@pytest.mark.parametrize("package", [openai, anthropic])
def test_errors_are_the_packages_own(client, claude, package):
    def ask(model, **options):
        asked = client.with_options(**options).chat.completions if package is openai else claude.with_options(**options).messages
        return asked.create(model=model, messages=HELLO, max_tokens=8)

    with pytest.raises(package.NotFoundError, match=r"The model gpt-9 is unknown\. Known models: demo, demo-b, draw, embed, nap\."):
        ask("gpt-9")
    with pytest.raises(package.AuthenticationError, match="Missing or invalid API key"):
        ask("demo", api_key="wrong")


def test_anthropics_messages(claude):
    answer = claude.messages.create(model="demo", messages=HELLO, max_tokens=8)
    assert (answer.role, answer.stop_reason, answer.usage.output_tokens) == ("assistant", "max_tokens", 8)
    with claude.messages.stream(model="demo", messages=HELLO, max_tokens=8) as stream:
        assert len(list(stream.text_stream)) > 1
        assert stream.get_final_message().usage.output_tokens == 8
    assert claude.messages.count_tokens(model="demo", messages=HELLO).input_tokens > 0


def test_anthropics_tools(claude):
    answer = claude.messages.create(
        model="demo",
        messages=TO_BOOK,
        max_tokens=JSON_TOKENS,
        tools=[ANTHROPIC_TOOL],
        tool_choice={"type": "any"},
        extra_body={"temperature": 0},
    )
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "book" and Booking.model_validate(call.input)


def test_litellm(cluster, embed, other_python):
    """It reaches nothing but the gateway, not even when it is imported."""
    got = json.loads(run(cluster, other_python, ROOT / "tests/cluster/litellm_calls.py").splitlines()[-1])
    assert (got["chat"], got["at_once"], got["vectors"]) == (8, [8] * 4, [WIDTH] * 2)
    assert got["streamed"] > 1
    assert got["unknown_model"][0] == "NotFoundError" and "The model gpt-9 is unknown" in got["unknown_model"][1]
    assert got["wrong_key"][0] == "AuthenticationError" and "Missing or invalid API key" in got["wrong_key"][1]
    assert got["reached"] == [urlsplit(cluster.base_url).hostname]

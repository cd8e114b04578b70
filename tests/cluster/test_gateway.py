"""What a client sees of the gateway: chats, streams, models, and errors in OpenAI's shape."""

from __future__ import annotations

import openai
import pytest

from cluster_host import SERVICES


@pytest.fixture
def client(cluster):
    with openai.OpenAI(base_url=cluster.base_url, api_key=cluster.api_key, max_retries=0, timeout=60) as made:
        yield made


@pytest.mark.parametrize("service", SERVICES)
def test_a_chat_is_answered(client, service):
    answer = client.chat.completions.create(model=service, messages=[{"role": "user", "content": "Hello"}], max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8


def test_a_streamed_chat_is_answered_in_pieces(client):
    stream = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, stream=True)
    pieces = [piece.choices[0].delta.content for piece in stream if piece.choices and piece.choices[0].delta.content]
    assert len(pieces) > 1


def test_the_models_are_the_services(client):
    assert [model.id for model in client.models.list()] == [*SERVICES, "draw", "embed", "nap"]  # asleep or not


def test_an_unknown_model_is_an_openai_error_that_names_the_known_ones(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hello"}])
    assert error.value.code == "model_not_found"
    assert "demo-b" in error.value.message


def test_a_wrong_key_is_refused(cluster):
    with openai.OpenAI(base_url=cluster.base_url, api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()

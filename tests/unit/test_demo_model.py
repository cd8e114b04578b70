"""The demo model's tokenizer, its prompts, and its release files."""

from __future__ import annotations

import hashlib
import random
import string

import gguf
import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster_host import ROOT
from demo import conversations, tokenizer
from demo.descriptions import Statements, read_rows
from demo.evaluate import RELEASE
from demo.gguf_file import EMBEDDING, TYPES, read_tokenizer, write_model
from demo.shape import Shape

FILES = [RELEASE / f"ptolemy-demo-{name}.gguf" for name in TYPES]
SPELLER = read_tokenizer(FILES[1])


@given(st.one_of(st.text(), st.text(string.ascii_lowercase + " 0123#é\n", max_size=60)))
def test_every_text_comes_back_from_its_tokens(text):
    assert SPELLER.decode(SPELLER.encode(text.replace(tokenizer.SPACE, ""))) == text.replace(tokenizer.SPACE, "")


def test_special_tokens_are_one_token_each_and_no_text():
    numbers = SPELLER.encode(f"{tokenizer.USER}hi{tokenizer.END}")
    assert [SPELLER.pieces[number] for number in (numbers[0], numbers[-1])] == [tokenizer.USER, tokenizer.END]
    assert SPELLER.decode(numbers) == "hi"


def test_merges_learnt_first_are_used_first():
    room = len(tokenizer.Tokenizer([]).pieces)
    learnt = tokenizer.learn(["ab ab ab abc bc bc"], size=room + 2)
    assert learnt.pieces[room:] == ("ab", "▁ab")
    assert [learnt.pieces[number] for number in learnt.encode("abc ab bc")] == ["ab", "c", "▁ab", "▁", "b", "c"]
    assert learnt.scores[room] > learnt.scores[room + 1]


def test_a_corpus_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="merges in this corpus"):
        tokenizer.learn(["a b"])


def test_the_chat_template_makes_what_training_saw():
    rng, statements = random.Random(3), Statements()
    template = jinja2.Environment().from_string(conversations.CHAT_TEMPLATE)
    for _ in range(200):
        messages = conversations.example(rng, statements, frozenset()).messages
        assert template.render(messages=messages, add_generation_prompt=True) == conversations.prompt(messages)


def test_the_sums_are_those_of_the_files_and_of_the_labs_inventory():
    sums = dict(reversed(line.split()) for line in (RELEASE / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((RELEASE / name).read_bytes()).hexdigest() for name in sums}
    assert sums.keys() == {"held-out.csv", *(path.name for path in FILES)}
    model = yaml.safe_load((ROOT / "inventory/lab/group_vars/all/models.yml").read_text())["ptolemy_models"]["demo"]
    assert sums[model["file"]] == model["sha256"]


def test_the_held_out_file_is_what_the_generator_makes():
    rows = list(read_rows(RELEASE / "held-out.csv"))
    assert rows == Statements().held_out_rows(len(rows))


@pytest.mark.parametrize(("path", "name"), list(zip(FILES, TYPES)), ids=list(TYPES))
def test_a_release_file_says_what_it_is(path, name):
    reader = gguf.GGUFReader(path)
    value = lambda key: reader.fields[key].contents()  # noqa: E731
    kind, embedding, file_type = TYPES[name]
    assert (value("general.architecture"), value("general.license"), value("general.file_type")) == ("llama", "Apache-2.0", file_type)
    assert value("tokenizer.chat_template") == conversations.CHAT_TEMPLATE
    assert value("tokenizer.ggml.tokens") == list(SPELLER.pieces)
    assert value("tokenizer.ggml.scores") == list(SPELLER.scores)
    assert SPELLER.pieces[value("tokenizer.ggml.eos_token_id")] == tokenizer.END
    stored = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert stored.pop(EMBEDDING) == embedding
    matrices = {found for tensor, found in stored.items() if not tensor.endswith("norm.weight")}
    assert matrices == {kind}
    assert path.stat().st_size < 10e6


def test_a_file_keeps_weights_within_half_a_step_of_its_type(tmp_path):
    import numpy as np

    shape = Shape(vocabulary=len(SPELLER.pieces), layers=1)
    weights = {EMBEDDING: np.linspace(-1, 1, shape.vocabulary * shape.width, dtype=np.float32).reshape(-1, shape.width)}
    for name in TYPES:
        write_model(tmp_path / name, shape, SPELLER, weights, name)
        (tensor,) = gguf.GGUFReader(tmp_path / name).tensors
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weights[EMBEDDING].shape)
        assert np.abs(back - weights[EMBEDDING]).max() <= 1 / 127

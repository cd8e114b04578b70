"""Labels, the grammar that admits nothing else, what goes out, and what the confidence means."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptolemy_client import confidence
from ptolemy_client.errors import BatchError
from ptolemy_client.labels import Label, Labels, any_of, one_of, read_labels
from ptolemy_client.prompts import Prompt
from ptolemy_client.tasks import AnswerError, Classify, Extract

NAMES = (b"office", b"office supplies", b"other", b"travel")


def step(token: str, probability: float, rivals: dict[str, float] | None = None) -> dict:
    """A step as llama-server reports it; the chosen token is among the reported ones unless ``rivals`` is None."""
    shown = {} if rivals is None else {token: probability, **rivals}
    top = [{"token": text, "bytes": list(text.encode()), "logprob": math.log(chance)} for text, chance in shown.items()]
    return {"token": token, "bytes": list(token.encode()), "logprob": math.log(probability), "top_logprobs": top}


@pytest.mark.parametrize(
    ("steps", "given", "expected"),
    [
        # What the labels do not allow is left out of the sum.
        ([step("travel", 0.3, {"other": 0.1, "Train": 0.6})], "travel", 0.75),
        # Another way to the same label counts for it; "o" leads to several and does not.
        ([step("travel", 0.3, {"tra": 0.1, "o": 0.1})], "travel", 0.8),
        # What follows when the label is decided is forced.
        ([step("t", 0.4, {"o": 0.4}), step("ravel", 1e-9), step("", 0.5)], "travel", 0.5),
        # One label begins another: whether the answer ends is a step, too.
        ([step("office", 0.8, {"travel": 0.2}), step("", 0.6, {" supplies": 0.2})], "office", 0.8 * 0.75),
        ([step("office", 0.8, {"travel": 0.2}), step(" supplies", 0.2, {"": 0.6})], "office supplies", 0.8 * 0.25),
        # Forced, though the model wanted something quite different: its bare probability.
        ([{**step("travel", 1e-6), "top_logprobs": step("Hello", 0.9, {"I": 0.1})["top_logprobs"]}], "travel", 1e-6),
        ([], "travel", None),
    ],
)
def test_confidence_is_the_probability_under_the_constraint(steps, given, expected):
    assert confidence.of_label(steps, NAMES, given) == (expected if expected is None else pytest.approx(expected))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
@settings(deadline=None)
def test_the_confidences_of_all_labels_add_up_to_one(weights):
    names = [f"{number}abc".encode() for number in range(len(weights))]
    shares = {name.decode(): weight / sum(weights) / 2 for name, weight in zip(names, weights)}
    found = []
    for name, share in shares.items():
        rivals = {other: chance for other, chance in shares.items() if other != name}
        found.append(confidence.of_label([step(name, share, {**rivals, "else": 0.5})], names, name))
    assert sum(found) == pytest.approx(1)


def test_half_a_letter_is_told_by_its_bytes():
    first = {"token": "\ufffd", "bytes": [0xC3], "logprob": math.log(0.5), "top_logprobs": []}
    first["top_logprobs"] = [dict(first), {"token": "x", "bytes": [0x78], "logprob": math.log(0.25)}]
    assert confidence.of_label([first], ["öl".encode(), b"x"], "öl") == pytest.approx(2 / 3)


def test_the_grammars_quote_what_gbnf_reads():
    assert one_of(['say "no"', "back\\slash"]) == 'root ::= "say \\"no\\"" | "back\\\\slash"'
    assert any_of(["a", "b"]) == 'root ::= "[" r0? "]"\nr0 ::= "\\"a\\"" (", " r1)? | r1\nr1 ::= "\\"b\\""'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[only]", "at least two labels"),
        ("[a, a]", "'a' stands there twice"),
        ("{yes: x, no: y}", "put them in quotes"),
        ("labels: [a, b]\nlables: x", "unknown key 'lables'"),
        ("[a, ' b']", "begins or ends with a space"),
        ("a: [", "not YAML"),
    ],
)
def test_a_mistake_in_the_labels_is_named(tmp_path, text, message):
    path = tmp_path / "labels.yml"
    path.write_text(text)
    with pytest.raises(BatchError, match=message):
        read_labels(path)


def test_labels_may_be_a_list_of_names_or_of_objects_or_a_mapping(tmp_path):
    path = tmp_path / "labels.yml"
    for text in ("[a, {name: b, description: B}]", "{a: , b: B}", "labels: {a: '', b: B}"):
        path.write_text(text)
        assert list(read_labels(path).labels) == [Label("a"), Label("b", "B")]


def classify(**more) -> Classify:
    options = {"many": False, "probabilities": True, "constraint": "grammar", "prefix": "p_", "parameters": {}}
    return Classify("m", Labels([Label("a"), Label("b")]), **{**options, **more})


def test_the_model_comes_first_and_the_row_last_so_that_the_rest_is_a_common_prefix():
    path, one = classify().request('x "quoted" \u0000')
    _, other = classify().request("y")
    assert path == "/v1/chat/completions"
    assert one.startswith(b'{"model": "m"')
    body = json.loads(one)
    assert body["messages"][-1] == {"role": "user", "content": 'x "quoted" \u0000'}
    assert body["grammar"] == 'root ::= "a" | "b"'
    common = len(one) - len(b'"x \\"quoted\\" \\u0000"}]}')
    assert one[:common] == other[:common]


def test_a_parameter_of_null_removes_a_default():
    body = json.loads(classify(parameters={"chat_template_kwargs": None, "top_k": 1}).request("x")[1])
    assert "chat_template_kwargs" not in body
    assert body["top_k"] == 1


def answer(text: str | None, reason: str = "stop") -> dict:
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


def test_a_label_that_is_none_of_them_never_reaches_the_output():
    for text, constraint in (("c", "grammar"), ('{"label": "c"}', "json_schema")):
        with pytest.raises(AnswerError, match="'c' is none of the labels"):
            classify(constraint=constraint).read(answer(text))
    with pytest.raises(AnswerError, match="was cut off: raise --max-tokens"):
        classify().read(answer("a", "length"))
    assert json.loads(classify().read(answer("a"))) == ["a", None]


def test_several_labels_come_in_the_order_of_the_file_and_once():
    assert json.loads(classify(many=True, constraint="json_schema").read(answer('{"labels": ["b", "a", "b"]}')))[0] == ["a", "b"]


def test_an_extraction_that_breaks_the_schema_is_an_error():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "more": {"type": "array"}}, "required": ["n"]}
    task = Extract("m", schema, instructions="", max_tokens=9, prefix="", parameters={})
    with pytest.raises(AnswerError, match="does not follow the schema"):
        task.read(answer('{"n": "x"}'))
    assert task.cells(task.read(answer('{"n": 3, "more": [1]}'))) == [3, "[1]"]


def test_a_template_cannot_reach_python_and_shows_empty_cells_as_nothing():
    assert Prompt("{{ a }}|{{ b }}", ["a", "b"], "", "p").render({"a": None, "b": 0}) == "|0"
    with pytest.raises(BatchError, match="cannot be rendered"):
        Prompt("{{ a.__class__.__mro__ }}", ["a"], "", "p").render({"a": "x"})
    with pytest.raises(BatchError, match="p, line 2"):
        Prompt("{{ a }}\n{% if %}", ["a"], "", "p")
    with pytest.raises(BatchError, match="no column 'c'"):
        Prompt("{{ c }}", ["a"], "", "p")

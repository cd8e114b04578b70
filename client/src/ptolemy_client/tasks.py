"""What is asked and what comes back: a classification, an extraction, or requests as they are."""

from __future__ import annotations

import json
from typing import Any, Mapping, Optional, Protocol, Sequence

import jsonschema
import orjson
import pyarrow as pa

from . import confidence
from .labels import Labels, any_of, one_of

CHAT = "/v1/chat/completions"
CLASSIFY = "Assign the text to exactly one of the labels. Answer with the label only."
CLASSIFY_MANY = "Choose all labels that apply to the text. Answer with a JSON list of labels, in the order given; it may be empty."
_INT64 = 1 << 63
EXTRACT = "Extract the information from the text. Answer with a JSON object of this schema."


class AnswerError(Exception):
    """An answer that cannot be used: it counts as a failed try of its row."""


class Task(Protocol):
    """What a run does.

    Attributes:
        kind: the command's name.
        columns: what it adds to the output.
        facts: everything that decides what is asked. The same facts and the same prompt mean the same request.
    """

    kind: str
    columns: pa.Schema
    facts: Mapping[str, Any]

    def request(self, body: str) -> tuple[str, bytes]:
        """Path and body of the request for what the ledger holds."""

    def read(self, answer: Mapping[str, Any]) -> str:
        """What the ledger keeps of an answer: JSON.

        Raises:
            AnswerError, KeyError, IndexError, TypeError, ValueError: it is not what was asked for.
        """

    def cells(self, kept: str) -> Sequence[Any]:
        """The output's cells of a row, from what ``read`` kept."""

    def count(self, kept: str) -> Sequence[str]:
        """The labels that the row is counted under in the summary."""


class _Chat:
    """A chat with one system message, the same for all rows, and the row's prompt behind it: the common prefix is cached."""

    def __init__(self, model: str, system: str, parameters: Mapping[str, Any]) -> None:
        # `model` comes first: the gateway looks for it in the first part of a body.
        body = {"model": model, "temperature": 0, "chat_template_kwargs": {"enable_thinking": False}, **parameters}
        body = {name: value for name, value in body.items() if value is not None}
        self.parameters = body
        mark = "\u0000"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": mark}]
        before, after = json.dumps({**body, "messages": messages}, ensure_ascii=False).rsplit(json.dumps(mark), 1)
        self._before, self._after = before.encode(), after.encode()

    def request(self, body: str) -> tuple[str, bytes]:
        # orjson refuses lone surrogates, which JSON lines may hold; json writes them as escapes.
        try:
            content = orjson.dumps(body)
        except TypeError:
            content = json.dumps(body).encode()
        return CHAT, b"".join((self._before, content, self._after))


def _content(answer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if choice.get("finish_reason") == "length":
        raise AnswerError(f"the answer was cut off: raise --max-tokens; it began with {str(text)[:80]!r}")
    if not isinstance(text, str):
        raise AnswerError("the answer has no text")
    return text, choice


class Classify(_Chat):
    """One label for each row, or with ``many`` any number of them."""

    kind = "classify"

    def __init__(
        self, model: str, labels: Labels, *, many: bool, probabilities: bool, constraint: str, prefix: str, parameters: Mapping[str, Any]
    ) -> None:
        self._names, self._many, self._probabilities, self._constraint = labels.names, many, probabilities, constraint
        self._known = set(labels.names)
        self._encoded = [name.encode() for name in labels.names]
        listed = "\n".join(f"- {label.name}: {label.description}" if label.description else f"- {label.name}" for label in labels.labels)
        system = f"{labels.instructions or (CLASSIFY_MANY if many else CLASSIFY)}\n\nLabels:\n{listed}"
        longest = sum(len(name.encode()) + 4 for name in labels.names) if many else max(len(name.encode()) for name in labels.names)
        # A token has at least one byte; the rest is for the JSON around the label.
        limits: dict[str, Any] = {"max_tokens": longest + 32}
        if probabilities:
            limits.update(logprobs=True, top_logprobs=1 if many else confidence.TOP)
        super().__init__(model, system, {**limits, **self._constrained(), **parameters})
        fields: list[tuple[str, pa.DataType]] = [("labels", pa.list_(pa.string()))] if many else [("label", pa.string())]
        fields += [("confidence", pa.float64())] if probabilities else []
        self.columns = pa.schema([(prefix + name, kind) for name, kind in fields])
        self.facts: Mapping[str, Any] = {"model": model, "system": system, "parameters": self.parameters, "labels": labels.names}

    def _constrained(self) -> dict[str, Any]:
        if self._constraint == "grammar":
            return {"grammar": any_of(self._names) if self._many else one_of(self._names)}
        item: dict[str, Any] = {"type": "string", "enum": self._names}
        field = {"labels": {"type": "array", "items": item, "maxItems": len(self._names)}} if self._many else {"label": item}
        schema = {"type": "object", "properties": field, "required": list(field), "additionalProperties": False}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}}

    def read(self, answer: Mapping[str, Any]) -> str:
        text, choice = _content(answer)
        found: Any = text
        if self._constraint != "grammar":
            found = json.loads(text)["labels" if self._many else "label"]
        elif self._many:
            found = json.loads(text)
        wrong = [name for name in (found if self._many else [found]) if name not in self._known]
        if wrong:
            raise AnswerError(f"{str(wrong[0])[:80]!r} is none of the labels: the server did not keep to the {self._constraint}")
        if self._many:
            found = sorted(set(found), key=self._names.index)
        kept = [found]
        if self._probabilities:
            steps = (choice.get("logprobs") or {}).get("content") or []
            simple = self._constraint == "grammar" and not self._many
            probability = confidence.of_label(steps, self._encoded, found) if simple else confidence.of_answer(steps)
            kept.append(None if probability is None else float(f"{probability:.4g}"))
        return orjson.dumps(kept).decode()

    def cells(self, kept: str) -> Sequence[Any]:
        return tuple(orjson.loads(kept))

    def count(self, kept: str) -> Sequence[str]:
        found = orjson.loads(kept)[0]
        return (found or ["(none)"]) if self._many else [found]


class Extract(_Chat):
    """An object of a JSON schema for each row, one column for each of its properties."""

    kind = "extract"

    def __init__(
        self, model: str, schema: Mapping[str, Any], *, instructions: str, max_tokens: int, prefix: str, parameters: Mapping[str, Any]
    ) -> None:
        system = f"{instructions or EXTRACT}\n\n{json.dumps(schema, ensure_ascii=False)}"
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        super().__init__(model, system, {"max_tokens": max_tokens, "response_format": form, **parameters})
        self._validator = jsonschema.validators.validator_for(schema)(schema)
        self._properties = list(schema["properties"])
        kinds = [_column_type(schema["properties"][name]) for name in self._properties]
        self._plain = [kind is not None for kind in kinds]
        self.columns = pa.schema([(prefix + name, kind or pa.string()) for name, kind in zip(self._properties, kinds)])
        self.facts: Mapping[str, Any] = {"model": model, "system": system, "parameters": self.parameters, "schema": schema}

    def read(self, answer: Mapping[str, Any]) -> str:
        text, _ = _content(answer)
        found = json.loads(text)
        error = next(iter(self._validator.iter_errors(found)), None)
        if error is not None:
            raise AnswerError(f"the answer does not follow the schema: {error.message[:200]}")
        if any(isinstance(value, int) and abs(value) >= _INT64 for value in found.values()):
            raise AnswerError("a number of the answer is too large for a column")
        # Not json: what no file can hold, as half a character, must fail here and not when the output is written.
        return orjson.dumps(found).decode()

    def cells(self, kept: str) -> Sequence[Any]:
        found = json.loads(kept)
        return [
            found.get(name) if plain or found.get(name) is None else json.dumps(found[name], ensure_ascii=False)
            for name, plain in zip(self._properties, self._plain)
        ]

    def count(self, kept: str) -> Sequence[str]:
        return ()


def _column_type(schema: Any) -> Optional[pa.DataType]:
    """Arrow's type of a property; None: JSON text."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, list):
        kind = kind[0] if len(kind) == 2 and kind[1] == "null" else None
    types: dict[str, pa.DataType] = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    return types.get(str(kind))

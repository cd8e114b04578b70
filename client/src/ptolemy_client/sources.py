"""Where requests come from and where their answers go: a table with a prompt template, or a file of OpenAI's batch format."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Protocol, Sequence

import pyarrow as pa

from .errors import BatchError
from .ledger import ANSWERED, Ledger
from .prompts import Prompt
from .reading import Table
from .reading.loose import json_lines
from .tasks import CHAT, Task
from .writing import replaced, write

Row = Optional[tuple[bytes, str]]
_LINES = 2000
_BATCH_URLS = {CHAT, "/v1/completions", "/v1/embeddings"}


class Source(Protocol):
    """An input.

    Attributes:
        path: the file.
        described: how it was read, for people.
        facts: what decides which prompts it gives.
    """

    path: Path
    described: str
    facts: Mapping[str, Any]

    def rows(self) -> Iterator[Sequence[Row]]:
        """For each row the digest and the body of its request, some thousand at a time; None where there is nothing to ask."""

    def write(self, path: Path, ledger: Ledger) -> tuple[int, Counter[str]]:
        """Write the answers; returns the number of rows and the labels' counts."""


def digest(text: str) -> bytes:
    """What tells requests apart: 128 bits, so that among 10^9 two different ones meet with a probability below 10^-20."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class TableSource:
    """A table, and the template that makes a prompt of each row. See ``Source``."""

    def __init__(self, table: Table, prompt: Prompt, task: Task, prefix: str) -> None:
        self.path, self.described = table.path, table.described
        self.facts: Mapping[str, Any] = {"prompt": prompt.source, "text": prompt.text}
        self._table, self._prompt, self._task, self._prefix = table, prompt, task, prefix
        taken = sorted(set(table.schema.names) & {*task.columns.names, f"{prefix}status", f"{prefix}error"})
        if taken:
            raise BatchError(f"{table.path}: already has a column {taken[0]!r}: choose another beginning for the new ones with --prefix")

    def rows(self) -> Iterator[Sequence[Row]]:
        """See ``Source``."""
        # A template without any column still has a prompt for each row.
        for batch in self._table.batches(self._prompt.used or self._table.schema.names[:1]):
            yield [self._row(row) for row in _dictionaries(batch)]

    def _row(self, row: Mapping[str, Any]) -> Row:
        if self._prompt.is_empty(row):
            return None
        text = self._prompt.render(row)
        return digest(text), text

    def write(self, path: Path, ledger: Ledger) -> tuple[int, Counter[str]]:
        """See ``Source``."""
        return write(path, self._table, ledger, self._task, self._prefix)


def _dictionaries(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    # Three times as fast as RecordBatch.to_pylist for a few columns of strings.
    names = batch.schema.names
    return (dict(zip(names, values)) for values in zip(*(column.to_pylist() for column in batch.columns)))


class BatchFile:
    """A file in the format of OpenAI's Batch API, in and out. See ``Source``.

    Each line is a request of its own, also where its body is that of another line: whoever asks twice may want two answers.

    Args:
        path: of the file.
        model: for bodies that name none; where ``override`` is set, for all.
    """

    described = "OpenAI batch"

    def __init__(self, path: Path, model: str, override: bool) -> None:
        self.path, self._model, self._override = path, model, override
        self.facts: Mapping[str, Any] = {"override": override}

    def rows(self) -> Iterator[Sequence[Row]]:
        """See ``Source``."""
        seen: dict[bytes, int] = {}
        some: list[Row] = []
        for number, line in json_lines(self.path):
            where = f"{self.path}, line {number}"
            if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str) or not isinstance(line.get("body"), dict):
                raise BatchError(f"{where}: needs the keys custom_id (a string), url and body (an object)")
            if line.get("method", "POST") != "POST" or line.get("url") not in _BATCH_URLS:
                raise BatchError(f"{where}: method must be POST and url one of {', '.join(sorted(_BATCH_URLS))}")
            if line["body"].get("stream"):
                raise BatchError(f"{where}: a batch cannot stream: remove 'stream' from the body")
            key = digest(line["custom_id"])
            if key in seen:
                raise BatchError(f"{where}: the custom_id {line['custom_id']!r} stands in line {seen[key]}, too")
            seen[key] = number
            model = self._model if self._override else line["body"].get("model", self._model)
            body = {"model": model, **{name: value for name, value in line["body"].items() if name != "model"}}
            text = json.dumps({"custom_id": line["custom_id"], "url": line["url"], "body": body})
            some.append((digest(text), text))
            if len(some) == _LINES:
                yield some
                some = []
        yield some

    def write(self, path: Path, ledger: Ledger) -> tuple[int, Counter[str]]:
        """See ``Source``."""
        count = 0
        with replaced(path) as part, part.open("w", encoding="utf-8") as file:
            for (_, line), result in zip(json_lines(self.path), ledger.results()):
                kept = json.loads(result.answer or "null")
                done: dict[str, Any] = {"id": f"batch_req_{result.row}", "custom_id": line["custom_id"], "response": None, "error": None}
                if result.state == ANSWERED:
                    done["response"] = {"status_code": 200, "request_id": kept.get("id", ""), "body": kept}
                else:
                    done["error"] = {"code": "failed", "message": result.error or "no answer yet"}
                file.write(json.dumps(done, ensure_ascii=False) + "\n")
                count += 1
        return count, Counter()


class Verbatim:
    """The task of a batch file: bodies go out, and answers come back, as they are. See ``tasks.Task``."""

    kind = "run"
    columns = pa.schema([])

    def __init__(self, model: str) -> None:
        self.facts: Mapping[str, Any] = {"model": model}

    def request(self, body: str) -> tuple[str, bytes]:
        """See ``Task``."""
        line = json.loads(body)
        return line["url"], json.dumps(line["body"]).encode()

    def read(self, answer: Mapping[str, Any]) -> str:
        """See ``Task``."""
        return json.dumps(answer, ensure_ascii=False)

    def cells(self, kept: str) -> Sequence[Any]:
        """See ``Task``."""
        return ()

    def count(self, kept: str) -> Sequence[str]:
        """See ``Task``."""
        return ()

"""The output: the input's columns and the answers, in the input's order, there as a whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Callable, Iterator, Optional, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BatchError, told_plainly
from .ledger import ANSWERED, FAILED, Ledger, Result
from .reading import Table
from .tasks import Task

OK, NOT_ASKED, GIVEN_UP = "ok", "empty", "failed"
ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its name when all is written and on the disk.

    Raises:
        BatchError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with told_plainly(path, "write the output"):
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def check_writable(path: Path) -> None:
    """Find out before the first request whether the output can be written.

    Raises:
        BatchError: it cannot, or its ending is unknown.
    """
    if path.suffix.lower() not in ENDINGS:
        raise BatchError(f"{path}: cannot write {path.suffix or 'a file without an ending'}; known are {', '.join(ENDINGS)}")
    probe = path.with_name(f".{path.name}.part")
    with told_plainly(path, "write the output"):
        if path.is_dir():
            raise IsADirectoryError(21, "this is a directory")
        with probe.open("wb"):
            pass
        probe.unlink()


def added_columns(task: Task, prefix: str) -> pa.Schema:
    """The columns that the output has behind the input's."""
    return pa.schema([*task.columns, (f"{prefix}status", pa.string()), (f"{prefix}error", pa.string())])


def write(path: Path, table: Table, ledger: Ledger, task: Task, prefix: str) -> tuple[int, Counter[str]]:
    """Write the chosen rows.

    Returns:
        How many rows, and the labels' counts.

    Raises:
        BatchError: a row has no answer yet, the input became shorter, or the file cannot be written.
    """
    added = added_columns(task, prefix)
    schema = pa.schema([*table.schema, *added])
    labels: Counter[str] = Counter()
    rows = 0
    with replaced(path) as part, _writer(part, path.suffix.lower(), schema) as put:
        results = ledger.results()
        result = next(results, None)
        first = 0
        for batch in table.batches():
            places, cells = [], []
            while result is not None and result.row < first + batch.num_rows:
                places.append(result.row - first)
                cells.append(_cells(result, task, labels))
                result = next(results, None)
            first += batch.num_rows
            if not places:
                continue
            kept = batch if len(places) == batch.num_rows else batch.take(pa.array(places))
            columns = [pa.array([row[number] for row in cells], field.type) for number, field in enumerate(added)]
            put(pa.RecordBatch.from_arrays([*kept.columns, *columns], schema=schema))
            rows += len(places)
        if result is not None:
            raise BatchError(f"{table.path}: ends at row {first:,}: it was changed while the run was under way; run the same command again")
    return rows, labels


def _cells(result: Result, task: Task, labels: Counter[str]) -> Sequence[Any]:
    nothing = (None,) * len(task.columns)
    if result.request is None:
        return (*nothing, NOT_ASKED, None)
    if result.state == ANSWERED and result.answer is not None:
        labels.update(task.count(result.answer))
        return (*task.cells(result.answer), OK, None)
    if result.state == FAILED:
        return (*nothing, GIVEN_UP, result.error)
    raise BatchError(f"row {result.row + 1} has no answer yet; run the same command again")


Put = Callable[[pa.RecordBatch], None]


@contextmanager
def _writer(path: Path, ending: str, schema: pa.Schema) -> Iterator[Put]:
    if ending == ".parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as file:
            yield file.write_batch
        return
    with path.open("w", encoding="utf-8", newline="") as text:
        yield _json_lines(text) if ending == ".jsonl" else _delimited(text, "\t" if ending == ".tsv" else ",", schema)


def _delimited(text: IO[str], delimiter: str, schema: pa.Schema) -> Put:
    # RFC 4180's line ends: with them, Python before 3.13 quotes a lone carriage return, too.
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(schema.names)

    def put(batch: pa.RecordBatch) -> None:
        columns = [column.to_pylist() for column in batch.columns]
        writer.writerows(zip(*([_plain(value) for value in column] for column in columns)))

    return put


def _json_lines(text: IO[str]) -> Put:
    def put(batch: pa.RecordBatch) -> None:
        for row in batch.to_pylist():
            text.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    return put


def _plain(value: Any) -> Any:
    # Labels hold no line break, so one that holds the separator is the only thing to escape: JSON does.
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value


def first_rows(table: Table, columns: Optional[Sequence[str]], count: int) -> list[dict[str, Any]]:
    """The first rows as dictionaries."""
    found = (row for batch in table.batches(columns) for row in batch.to_pylist())
    return list(islice(found, count))

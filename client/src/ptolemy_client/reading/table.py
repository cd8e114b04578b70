"""What a table is to the rest of the program, and which reader a file gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Protocol, Sequence

import pyarrow as pa

from ..errors import BatchError, told_plainly

BATCH_ROWS = 2000


@dataclass(frozen=True)
class Options:
    """What the user said about the input.

    Attributes:
        encoding: of a text file; None: detected.
        delimiter: of a CSV file; None: detected.
        quotes: False: quotation marks in a CSV file are letters like others.
        sheet: of a workbook; None: the first one.
    """

    encoding: Optional[str] = None
    delimiter: Optional[str] = None
    quotes: bool = True
    sheet: Optional[str] = None


class Table(Protocol):
    """A file's rows.

    Attributes:
        path: of the file.
        schema: names and types of its columns.
        described: how it was read, for people: format, encoding, delimiter.
    """

    path: Path
    schema: pa.Schema
    described: str

    def batches(self, columns: Optional[Sequence[str]] = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, some thousand at a time; only the columns named (at least one), in the order of the schema.

        Raises:
            BatchError: the file is broken; the message names the line.
        """


def open_table(path: Path, options: Options) -> Table:
    """The reader for a file, by its name's ending.

    Raises:
        BatchError: no such file, an unknown kind, or a broken head.
    """
    from .delimited import DelimitedTable
    from .loose import JsonLinesTable, WorkbookTable
    from .parquet import ParquetTable

    ending = path.suffix.lower()
    with told_plainly(path, "read the input"):
        with path.open("rb") as file:
            empty = not file.read(1)
        if empty:
            raise BatchError(f"{path}: the file is empty")
        if ending in {".csv", ".tsv", ".tab", ".txt"}:
            return DelimitedTable(path, options)
        if ending in {".parquet", ".pq"}:
            return ParquetTable(path)
        if ending in {".jsonl", ".ndjson"}:
            return JsonLinesTable(path, options)
        if ending in {".xlsx", ".xlsm"}:
            return WorkbookTable(path, options)
    raise BatchError(f"{path}: cannot read {ending or 'a file without an ending'}; known are .csv, .tsv, .txt, .xlsx, .parquet, .jsonl")


def unique_names(names: Sequence[str]) -> list[str]:
    """Column names without doubles and blanks: ``x, x, ''`` becomes ``x, x_2, column_3``."""
    taken: set[str] = set()
    result = []
    for number, name in enumerate(names, 1):
        wanted = name.strip() or f"column_{number}"
        candidate, again = wanted, 2
        while candidate in taken or (candidate != wanted and candidate in names):
            candidate, again = f"{wanted}_{again}", again + 1
        taken.add(candidate)
        result.append(candidate)
    return result

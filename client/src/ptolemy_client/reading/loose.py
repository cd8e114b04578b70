"""Tables whose cells carry their own types: JSON lines and Excel workbooks. One pass finds the columns' types."""

from __future__ import annotations

import datetime
import json
import warnings
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

import pyarrow as pa

from ..errors import BatchError
from .table import BATCH_ROWS, Options, unique_names

_INT64 = 1 << 63


class _LooseTable:
    """Rows of Python values, brought under a schema: a column with values of several kinds becomes one of strings."""

    path: Path
    schema: pa.Schema

    def _rows(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _find_schema(self, names: Sequence[str] = ()) -> pa.Schema:
        kinds: dict[str, set[str]] = {name: set() for name in names}
        for row in self._rows():
            for name, value in row.items():
                seen = kinds.setdefault(name, set())
                if value is not None:
                    seen.add(_kind(value))
        if not kinds:
            raise BatchError(f"{self.path}: has no columns")
        return pa.schema([(name, _type(seen)) for name, seen in kinds.items()])

    def batches(self, columns: Optional[Sequence[str]] = None) -> Iterator[pa.RecordBatch]:
        """See ``Table``."""
        schema = pa.schema([column for column in self.schema if columns is None or column.name in columns])
        rows = self._rows()
        while some := list(islice(rows, BATCH_ROWS)):
            try:
                arrays = [pa.array([_fitted(row.get(column.name), column.type) for row in some], column.type) for column in schema]
            except UnicodeEncodeError as error:
                raise BatchError(f"{self.path}: a text holds half a character ({error.object!r:.80}), which no file can hold") from error
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


class JsonLinesTable(_LooseTable):
    """A file with one JSON object a line. See ``Table``."""

    described = "JSON lines"

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self._encoding = options.encoding or "utf-8-sig"
        self.schema = self._find_schema()

    def _rows(self) -> Iterator[dict[str, Any]]:
        for number, line in json_lines(self.path, self._encoding):
            if not isinstance(line, dict):
                raise BatchError(f"{self.path}, line {number}: not a JSON object")
            yield line


class WorkbookTable(_LooseTable):
    """A sheet of an Excel workbook, its first row being the header. See ``Table``."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self._sheet = options.sheet
        with self._cells() as rows:
            header = next(rows, ())
        while header and header[-1] is None:
            header = header[:-1]
        if not header:
            raise BatchError(f"{path}: the sheet's first row is empty; it must hold the names of the columns")
        self._names = unique_names(["" if name is None else str(name) for name in header])
        self.described = f"workbook, sheet {self._sheet!r}"
        self.schema = self._find_schema(self._names)

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self._cells() as rows:
            next(rows, None)
            for row in rows:
                # Rows below the last one that is used are often formatted, and empty.
                if any(value is not None for value in row):
                    yield dict(zip(self._names, row))

    def _cells(self) -> _Cells:
        cells = _Cells(self.path, self._sheet)
        self._sheet = cells.title
        return cells


class _Cells:
    """The rows of a sheet as tuples of values, while the workbook is open."""

    def __init__(self, path: Path, sheet: Optional[str]) -> None:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validations, which are not read
            try:
                self._book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            except (zipfile.BadZipFile, KeyError, ValueError, InvalidFileException) as error:
                raise BatchError(f"{path}: not an Excel workbook (.xlsx): {error}") from error
        self.title = sheet or self._book.sheetnames[0]
        if self.title not in self._book.sheetnames:
            raise BatchError(f"{path}: there is no sheet {self.title!r}. The sheets are: {', '.join(map(repr, self._book.sheetnames))}")

    def __enter__(self) -> Iterator[tuple[Any, ...]]:
        sheet = self._book[self.title]
        sheet.reset_dimensions()  # some programs write wrong ones, and rows would be left out
        return iter(sheet.iter_rows(values_only=True))

    def __exit__(self, *_: object) -> None:
        self._book.close()


def json_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, Any]]:
    """Each line's number and value; blank lines are left out.

    Raises:
        BatchError: a line is not JSON, or the file has another encoding.
    """
    try:
        with path.open(encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise BatchError(f"{path}, line {number}: not JSON: {error}") from error
    except UnicodeError as error:
        raise BatchError(f"{path}: cannot be read as {encoding}: {error}; name the right one with --encoding") from error


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_INT64 <= value < _INT64 else "other"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "str"
    return "time" if isinstance(value, datetime.datetime) else "other"


def _type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.timestamp("us") if kinds == {"time"} else pa.string()


def _fitted(value: Any, kind: pa.DataType) -> Any:
    if value is None or isinstance(value, str) or not pa.types.is_string(kind):
        return value
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else json.dumps(value, ensure_ascii=False)

"""CSV and TSV: encoding and delimiter are detected, quoted newlines belong to their cell."""

from __future__ import annotations

import codecs
import csv
import io
from itertools import islice
from pathlib import Path
from typing import IO, Iterator, Literal, Optional, Sequence

import charset_normalizer
import pyarrow as pa

from ..errors import BatchError
from .table import BATCH_ROWS, Options, unique_names

_SAMPLE = 1 << 16  # bytes
_LONGEST_CELL = 1 << 24  # characters; a longer one is an unclosed quote
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Letters and signs of Western European text. Not those that Polish or Czech in cp1250 would turn into, as ¹ and ³.
_WESTERN = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœ€£§°²«»–—‘’‚“”„…·´\u00a0")


class DelimitedTable:
    """A CSV or TSV file; every cell is a string, as it stands there. Blank lines are no rows. See ``Table``."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self._encoding = options.encoding or detect_encoding(path)
        self._quotes = options.quotes
        csv.field_size_limit(_LONGEST_CELL)
        self._delimiter = options.delimiter or self._detect_delimiter()
        header = next((cells for _, cells in self._rows()), [])
        if not header:
            raise BatchError(f"{path}: has no header line")
        self._names = unique_names(header)
        self.schema = pa.schema([(name, pa.string()) for name in self._names])
        self.described = f"{self._encoding}, {_NAMES.get(self._delimiter, repr(self._delimiter))} between the cells"

    def batches(self, columns: Optional[Sequence[str]] = None) -> Iterator[pa.RecordBatch]:
        """See ``Table``. A line with too few cells is filled with empty ones.

        Raises:
            BatchError: a line with more cells than the header, or broken quotes.
        """
        width = len(self._names)
        chosen = [number for number, name in enumerate(self._names) if columns is None or name in columns]
        schema = pa.schema([self.schema.field(number) for number in chosen])
        rows = self._rows()
        next(rows, None)
        while some := list(islice(rows, BATCH_ROWS)):
            for line, cells in some:
                if any(cells[width:]):
                    raise BatchError(
                        f"{self.path}, line {line}: {len(cells)} cells, but the header has {width}; put cells that hold the delimiter"
                        " into quotes, or name another one with --delimiter"
                    )
                cells.extend([""] * (width - len(cells)))
            arrays = [pa.array([cells[number] for _, cells in some], pa.string()) for number in chosen]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not blank, with the number of its last line."""
        try:
            with self._open() as file:
                # Strict: otherwise a quote that is never closed would silently swallow all rows behind it.
                reader = csv.reader(file, delimiter=self._delimiter, quoting=_quoting(self._quotes), strict=True)
                try:
                    for cells in reader:
                        if cells:
                            yield reader.line_num, cells
                except csv.Error as error:
                    raise BatchError(
                        f"{self.path}, line {reader.line_num}: {error}; where quotation marks are just letters, add --no-quotes"
                    ) from error
        except (UnicodeError, LookupError) as error:
            raise BatchError(f"{self.path}: cannot be read as {self._encoding}: {error}; name the right one with --encoding") from error

    def _open(self) -> IO[str]:
        return self.path.open(encoding=self._encoding, newline="")

    def _detect_delimiter(self) -> str:
        if self.path.suffix.lower() in {".tsv", ".tab"}:
            return "\t"
        try:
            with self._open() as file:
                sample = file.read(_SAMPLE)
        except (UnicodeError, LookupError) as error:
            raise BatchError(f"{self.path}: cannot be read as {self._encoding}: {error}; name the right one with --encoding") from error
        return max(_NAMES, key=lambda candidate: _fit(sample, candidate, self._quotes))


def _fit(sample: str, delimiter: str, quotes: bool) -> tuple[float, int]:
    """How well a delimiter explains a sample: the share of rows with as many cells as the header, and that number."""
    widths = []
    try:
        for cells in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, quoting=_quoting(quotes), strict=True):
            if cells:
                widths.append(len(cells))
    except csv.Error:
        # The sample's last row may be cut off inside quotes; any other error makes what was read so far small.
        pass
    if not widths or widths[0] == 1:
        return 0.0, 0
    return sum(width == widths[0] for width in widths) / len(widths), widths[0]


def _quoting(quotes: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE


def detect_encoding(path: Path) -> str:
    """The encoding of a text file: its byte order mark; UTF-8 if all of it is; else a guess from where it is not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        for mark, name in _MARKS:
            if head.startswith(mark):
                return name
        if head.count(0) > len(head) // 8:
            return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        piece = head
        before = b""
        while piece:
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                return _guess((before + piece)[max(len(before) + error.start - _SAMPLE // 2, 0) :][:_SAMPLE])
            before, piece = piece[-_SAMPLE // 2 :], file.read(_SAMPLE * 16)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _guess(before)
    return "utf-8"


def _guess(sample: bytes) -> str:
    """The encoding of some text that is not UTF-8."""
    lines = b"\n".join(line for line in sample.splitlines() if not line.isascii())
    # Statistics need more text than a few umlauts; Western European text is what most of these files hold, and easy to tell.
    if _is_western(lines):
        return "cp1252"
    best = charset_normalizer.from_bytes(lines).best()
    return best.encoding if best else "cp1252"


def _is_western(sample: bytes) -> bool:
    """Whether cp1252 makes words with some accented letters of it; other alphabets become a salad of them."""
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    foreign = [letter for letter in text if letter > "\x7f"]
    letters = sum(map(str.isalpha, text))
    return all(letter in _WESTERN for letter in foreign) and len(foreign) < letters * 0.3

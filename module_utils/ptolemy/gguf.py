"""The header of a model's file in the GGUF format, versions 2 and 3: what the model is, and how large its tensors are.

Nothing but the header is read, never the tensors' data nor the tokenizer's lists, which are skipped over. Every length in the file is
checked against what is left of it before it is believed, as a file may be cut off, or made to harm. The layout and its limits are those
of llama.cpp (ggml/src/gguf.cpp).
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import replace
from typing import BinaryIO, Mapping, Sequence

from .errors import GgufError
from .gguf_header import BIGGEST, LONGEST_LIST, TYPES, Header, Number, Tensor, Value

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Far above any model; they bound what a bad file can make this module hold.
MOST_KEYS, MOST_TENSORS, MOST_METADATA = 65_536, 65_536, 4 * 2**20  # the last in bytes, of values that are kept
LONGEST_KEY, LONGEST_NAME = 1024, 63  # bytes; ggml's GGML_MAX_NAME is 64 with its end
MOST_DIMENSIONS = 4
LONGEST_TEXT = 4096  # bytes of a text that is kept; a longer one is skipped over, as a chat template is

# GGUF's types of values: number -> struct's letter. 8 is a string, 9 an array.
_SCALARS: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_header(path: str) -> Header:
    """Read the header of one file.

    The data behind the header may be missing: compare ``size`` with ``expected_size``.

    Raises:
        GgufError: the file cannot be read, is no GGUF file, or its header is cut off, of another version or nonsense.
    """
    try:
        with open(path, "rb") as file:
            return _Reader(path, file, os.fstat(file.fileno()).st_size).header()
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror}") from error


def read_model(paths: Sequence[str]) -> Header:
    """Read the headers of a model's shards, in any order, as if they were one file; a model may be a single file, too.

    Raises:
        GgufError: as in ``read_header``, or the files are not all the shards of one model.
    """
    if not paths:
        raise GgufError("a model needs at least one file")
    headers = sorted((read_header(path) for path in paths), key=lambda header: header.split_number)
    first = headers[0]
    if len(headers) != first.split_count:
        raise GgufError(f"{first.path}: is one of {first.split_count} shards, but {len(headers)} files are given")
    tensors: dict[str, Tensor] = {}
    for number, header in enumerate(headers):
        if header.split_number != number or header.split_count != first.split_count:
            said = f"shard {header.split_number + 1} of {header.split_count}"
            raise GgufError(f"{header.path}: says that it is {said}, not {number + 1} of {first.split_count}")
        for name, tensor in header.tensors.items():
            if tensors.setdefault(name, tensor) is not tensor:
                raise GgufError(f"{header.path}: tensor {name!r} is in another shard, too")
    if not first.architecture:
        raise GgufError(f"{first.path}: names no general.architecture")
    sizes = (sum(header.size for header in headers), sum(header.expected_size for header in headers))
    return replace(first, tensors=tensors, size=sizes[0], expected_size=sizes[1])


def shard_paths(path: str) -> list[str]:
    """The paths of all shards of the model of which ``path`` is one, by llama.cpp's names; ``path`` alone if it has not such a name."""
    shape = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path)
    if not shape or not 1 <= int(shape[2]) <= int(shape[3]):
        return [path]
    return [f"{shape[1]}-{number:05d}-of-{shape[3]}.gguf" for number in range(1, int(shape[3]) + 1)]


class _Reader:
    """Reads one file from its start on; knows how much of it is left."""

    def __init__(self, path: str, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._at = 0
        self._kept = 0  # bytes

    def header(self) -> Header:
        version = self._version()
        tensor_count, key_count = self._number("Q", "the number of tensors"), self._number("Q", "the number of keys")
        self._bounded(tensor_count, MOST_TENSORS, 24, "tensors")  # a tensor's entry has 24 bytes at least, a key's 13
        self._bounded(key_count, MOST_KEYS, 13, "keys")
        metadata: dict[str, Value] = {}
        long_keys: set[str] = set()
        for _ in range(key_count):
            key = self._string("a key", LONGEST_KEY)
            value = self._value(key)
            if key in metadata or key in long_keys:
                raise self._error(f"key {key!r} comes twice")
            if value is None:
                long_keys.add(key)
            else:
                metadata[key] = value
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {alignment!r}, no power of 2")
        tensors: dict[str, Tensor] = {}
        end = 0  # of the last tensor's data, from the start of all data
        for _ in range(tensor_count):
            name = self._string("a tensor's name", LONGEST_NAME)
            if name in tensors:
                raise self._error(f"tensor {name!r} comes twice")
            tensors[name], offset = self._tensor(name)
            wanted = _padded(end, alignment)
            if offset != wanted:
                raise self._error(f"tensor {name!r} lies at {offset} of the data, not at {wanted}, where the one before it ends")
            end = offset + tensors[name].bytes
        expected = (_padded(self._at, alignment) if tensors else self._at) + end
        return Header(self._path, version, metadata, frozenset(long_keys), tensors, self._size, expected)

    def _version(self) -> int:
        magic = self._bytes(4, "the format's name") if self._size else b""
        if magic != MAGIC:
            raise self._error(f"is no GGUF file: it begins with {magic!r}")
        version = self._number("I", "the version")
        if version & 0xFFFF == 0:  # as llama.cpp tells it: no version is that high
            raise self._error("is in big-endian order, which llama.cpp reads on such machines only")
        if version not in VERSIONS:
            raise self._error(f"is GGUF version {version}; known are {' and '.join(map(str, VERSIONS))}")
        return version

    def _value(self, key: str) -> Value | None:
        """Read or skip a value; None for what is too long to be kept."""
        kind = self._number("I", f"the type of {key!r}")
        if kind == _STRING:
            length = self._number("Q", f"the length of {key!r}")
            if length > LONGEST_TEXT:
                self._skip(length, key)
                return None
            self._keep(length)
            return self._text(self._bytes(length, key), key)
        if kind != _ARRAY:
            return self._scalars(kind, 1, key)[0]
        kind, count = self._number("I", f"the type of {key!r}"), self._number("Q", f"the length of {key!r}")
        if kind == _STRING:
            self._bounded(count, self._size, 8, f"texts in {key!r}")
            self._skip_texts(count, key)
            return None
        if count > LONGEST_LIST:
            self._skip(count * struct.calcsize("<" + self._letter(kind, key)), key)
            return None
        return self._scalars(kind, count, key)

    def _skip_texts(self, count: int, what: str) -> None:
        """There are some 500,000 of them in a large tokenizer: this is most of the time that reading takes."""
        read, seek, left = self._file.read, self._file.seek, self._size - self._at
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0:
                raise self._error(f"is cut off in {what}")
            seek(length, os.SEEK_CUR)
        self._at = self._size - left

    def _tensor(self, name: str) -> tuple[Tensor, int]:
        """Read what the file says of a tensor: the tensor, and its place in the data."""
        dimensions = self._number("I", f"the dimensions of {name!r}")
        if dimensions > MOST_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {dimensions} dimensions; {MOST_DIMENSIONS} are the most")
        shape = struct.unpack(f"<{dimensions}Q", self._bytes(8 * dimensions, f"the shape of {name!r}"))
        number = self._number("I", f"the type of {name!r}")
        if number not in TYPES:
            raise self._error(f"tensor {name!r} is of type {number}, which is unknown")
        kind, values, size = TYPES[number]
        tensor = Tensor(shape, kind, 0)
        row = shape[0] if shape else 1
        if row % values:
            raise self._error(f"tensor {name!r} has rows of {row} values, which {kind} stores in blocks of {values}")
        if tensor.values >= BIGGEST:
            raise self._error(f"tensor {name!r} has the shape {shape}, which is too large to be true")
        return replace(tensor, bytes=tensor.values // values * size), self._number("Q", f"the place of {name!r}")

    def _scalars(self, kind: int, count: int, what: str) -> tuple[Number, ...]:
        letters = f"<{count}{self._letter(kind, what)}"
        self._keep(struct.calcsize(letters))
        return struct.unpack(letters, self._bytes(struct.calcsize(letters), what))

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > MOST_METADATA:
            raise self._error(f"has more than {MOST_METADATA} bytes of metadata beside the tokenizer's, which no model has")

    def _letter(self, kind: int, what: str) -> str:
        if kind not in _SCALARS:
            raise self._error(f"{what!r} is of type {kind}, which is unknown")
        return _SCALARS[kind]

    def _string(self, what: str, longest: int) -> str:
        length = self._number("Q", f"the length of {what}")
        if length > longest:
            raise self._error(f"{what} has {length} bytes; {longest} are the most")
        return self._text(self._bytes(length, what), what)

    def _text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._error(f"{what} is not UTF-8") from error

    def _number(self, letter: str, what: str) -> int:
        value: int = struct.unpack("<" + letter, self._bytes(struct.calcsize("<" + letter), what))[0]
        return value

    def _bounded(self, count: int, most: int, least_bytes: int, what: str) -> None:
        if count > most or count * least_bytes > self._size - self._at:
            raise self._error(f"is cut off or broken: it claims to hold {count} {what}, with {self._size - self._at} bytes left")

    def _bytes(self, count: int, what: str) -> bytes:
        """Read so many bytes; whoever asks has bounded them, or the file's size does."""
        self._left(count, what)
        raw = self._file.read(count)
        if len(raw) < count:
            raise self._error(f"is cut off in {what}")  # while it was read: somebody writes to it
        self._at += count
        return raw

    def _skip(self, count: int, what: str) -> None:
        self._left(count, what)
        self._file.seek(count, os.SEEK_CUR)
        self._at += count

    def _left(self, count: int, what: str) -> None:
        if count > self._size - self._at:
            raise self._error(f"is cut off in {what}: {count} bytes are wanted, {self._size - self._at} are left")

    def _error(self, wrong: str) -> GgufError:
        return GgufError(f"{self._path}: {wrong}")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment

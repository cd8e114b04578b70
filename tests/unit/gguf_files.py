"""GGUF files made by hand, right ones and broken ones: the real writers refuse to write the latter."""

from __future__ import annotations

import struct
from typing import Any, Iterable, Mapping

from ptolemy.gguf_header import TYPES

KINDS = {"u32": (4, "I"), "u64": (10, "Q"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?")}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, value: Any, kind: str = "u32") -> bytes:
    """One key: a text, a list of texts, a list of numbers or a number of that kind."""
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    number, letter = KINDS[kind]
    if isinstance(value, list):
        return text(name) + struct.pack(f"<IIQ{len(value)}{letter}", 9, number, len(value), *value)
    return text(name) + struct.pack("<I" + letter, number, value)


def tensor(name: str, shape: Iterable[int], kind: int, place: int) -> bytes:
    lengths = list(shape)
    return text(name) + struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, kind, place)


def file(
    keys: Iterable[bytes], tensors: Iterable[bytes] = (), data: int = 0, version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    """A whole file; ``data`` bytes follow the padded header, and ``counts`` (tensors, keys) may lie."""
    keys, tensors = list(keys), list(tensors)
    said = counts or (len(tensors), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, *said) + b"".join(keys) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32 + data)


def model(
    architecture: str = "llama",
    tensors: Mapping[str, tuple[tuple[int, ...], int]] | None = None,
    data: bool = True,
    extra: Iterable[bytes] = (),
    **numbers: Any,
) -> bytes:
    """A model of that architecture.

    Args:
        tensors: by name: shape and ggml's number of the type.
        data: whether the tensors' data is there, as zeros; a large model is only read for its header.
        extra: further keys.
        numbers: the architecture's own keys, with __ for a dot.
    """
    keys = [key("general.architecture", architecture)]
    keys += [key(f"{architecture}.{name.replace('__', '.')}", value) for name, value in numbers.items()]
    entries, end = [], 0
    for name, (shape, kind) in (tensors or {}).items():
        place = -(-end // 32) * 32
        entries.append(tensor(name, shape, kind, place))
        count = 1
        for length in shape:
            count *= length
        end = place + count // TYPES[kind][1] * TYPES[kind][2]
    return file([*keys, *extra], entries, end if data else 0)

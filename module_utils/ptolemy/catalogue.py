"""The catalogue's entries: which files a model has, where each comes from, and what an entry may say. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional
from urllib.parse import quote, unquote, urlsplit

from .errors import ConfigError
from .rules import Rule, text

HF_ENDPOINT = "https://huggingface.co"
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(?:gguf|safetensors)")
# Hugging Face's own notation: hf://OWNER/NAME@REVISION/path/of/file; a slash in a revision is written %2F there, too.
HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s@]+))?/(?P<path>[^\s@]*[^\s@/])")
# llama.cpp opens the other shards by itself, under these names, beside the first one.
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
FIRST = "-00001-of-"


@dataclass(frozen=True)
class ModelFile:
    """One file of a model.

    Attributes:
        file: its name on the nodes.
        sha256: its checksum, 64 hexadecimal digits.
        source: ``http(s)://``, ``hf://``, ``file:///path/on/the/node`` or ``/path/on/the/controller``.
    """

    file: str
    sha256: str
    source: str


def _checksums(value: Any) -> str:
    if value and all(isinstance(item, str) and SHA256.fullmatch(item) for item in _list(value)):
        return ""
    return f"must be 64 hexadecimal digits in lower case, or a list of such, one for each shard, not {value!r}"


def _dictionary(value: Any) -> str:
    return "" if isinstance(value, Mapping) else f"must be a dictionary with {', '.join(PART)}"


# Where ComfyUI looks for it: checkpoints, vae, loras, text_encoders, diffusion_models ...
_folder = text(r"[a-z][a-z0-9_]*", "a folder of ComfyUI, as checkpoints, vae or loras")
_some_text = text(r"(?s).*\S.*", "a text")
# A URL may hold a token, so it is not repeated.
_source = text(
    rf"https?://\S+|{HUB.pattern}|file:///\S+|/\S+",
    "https://..., hf://OWNER/NAME@REVISION/FILE, /path/on/the/controller or file:///path/on/the/nodes",
    secret=True,
)
# What a model and its mmproj have in common.
PART: Mapping[str, Rule] = {
    "file": text(FILE.pattern, "a file name that ends in .gguf or .safetensors, without directories"),
    "source": _source,
    "sha256": _checksums,
}
MODEL: Mapping[str, Rule] = {**PART, "licence": _some_text, "notes": _some_text, "mmproj": _dictionary, "folder": _folder}
MODEL_OPTIONAL = frozenset({"notes", "mmproj", "folder"})


def values(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the values that say which files there are, one by one: (key, what is wrong)."""
    for prefix, given in _parts(entry):
        for key, rule in PART.items():
            wrong = "is not set" if given.get(key) is None else rule(given[key])
            if wrong:
                yield f"{prefix}{key}", wrong
    if not isinstance(entry.get("mmproj", {}), Mapping):
        yield "mmproj", _dictionary(entry["mmproj"])


def conflicts(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What does not fit together, where ``values`` found nothing: (key, what is wrong, the mend)."""
    for prefix, given in _parts(entry):
        file, count = given["file"], len(_list(given["sha256"]))
        shard = SHARD.search(file)
        number, of = (int(shard[1]), int(shard[2])) if shard else (1, 1)
        first = f"NAME{FIRST}{of:05d}.gguf"
        if prefix and count > 1:
            yield f"{prefix}sha256", "an mmproj is one file", "leave one checksum"
        elif shard is None and count > 1:
            yield "sha256", f"{count} checksums, but {file!r} is not the first of several shards", "leave one, or name the first shard,"
        elif number != 1:
            yield f"{prefix}file", f"{file!r} is shard {number}; llama.cpp wants the first one", f"name {first}"
        elif count != of:
            yield f"{prefix}sha256", f"{of} shards have {of} checksums, not {count}", "list one for each shard, in order,"
        elif of > 1 and _nth(given["source"], 1) is None:
            yield f"{prefix}source", f"must end in the first shard's name, {first}; the others are looked for beside it", "set it"
        elif prefix and file in (_nth(entry["file"], other) for other in range(1, len(_list(entry["sha256"])) + 1)):
            yield f"{prefix}file", f"{file!r} is also a file of the model itself", "name another file"


def files(entry: Mapping[str, Any]) -> tuple[ModelFile, ...]:
    """Every file of an entry; the first one is what llama-server is given, an mmproj comes last.

    Raises:
        ConfigError: a value is missing or wrong; the message names the key and the mend.
    """
    for key, wrong in values(entry):
        raise ConfigError(f"{key}: {wrong}")
    for key, wrong, mend in conflicts(entry):
        raise ConfigError(f"{key}: {wrong} — {mend.rstrip(',')}")
    return tuple(
        ModelFile(_nth(given["file"], number) or given["file"], digest, _nth(given["source"], number) or given["source"])
        for _, given in _parts(entry)
        for number, digest in enumerate(_list(given["sha256"]), 1)
    )


def _parts(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The model itself and its mmproj, each with what its keys begin with in a message."""
    yield "", entry
    if isinstance(entry.get("mmproj"), Mapping):
        yield "mmproj.", entry["mmproj"]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def url(source: str, hf_endpoint: str = HF_ENDPOINT) -> str:
    """The URL of an ``hf://`` source at the given endpoint (Hugging Face or a mirror of it); another source as it is."""
    hub = HUB.fullmatch(source)
    if hub is None:
        return source
    revision = quote(unquote(hub["revision"] or "main"), safe="")
    return f"{hf_endpoint.rstrip('/')}/{hub['repo']}/resolve/{revision}/{quote(unquote(hub['path']))}"


def shown(source: str) -> str:
    """A source for messages and logs: without a user, a password or a query, which may be secrets."""
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        return source
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _nth(name: str, number: int) -> Optional[str]:
    """The name or source of a shard, from that of the first one; None where it names no first shard."""
    path, mark, query = name.partition("?")
    match = SHARD.search(path)
    if match is None or int(match[1]) != 1:
        return None
    return f"{path[: match.start()]}-{number:05d}-of-{match[2]}.gguf{mark}{query}"

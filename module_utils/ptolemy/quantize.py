"""Quantise a model of the catalogue: llama-quantize, run as a job on a compute node, and the catalogue's entries for what it made.

The spec comes on standard input, progress goes to standard error, and the entries to standard output, as YAML that is JSON too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from typing import Any, Mapping, Sequence

from . import gguf
from .catalogue import SHARD, ModelFile
from .download import noted, write_note
from .errors import ConfigError, GgufError, PtolemyError
from .gguf_header import FILE_TYPES
from .model_files import Store, digest_of, gigabytes, read_stamp, write_stamp
from .process import one_line

FULL = ("F32", "F16", "BF16")
LAST_LINES = 5


class QuantizeError(PtolemyError):
    """A model could not be quantised; the message is what llama-quantize said, or the mend."""


def kinds(text: str) -> list[str]:
    """("q8_0, Q5_K_M") -> ["Q8_0", "Q5_K_M"]. Raises ConfigError for a type that llama-quantize does not make."""
    wanted = [word.strip().upper() for word in text.split(",") if word.strip()]
    known = sorted(set(FILE_TYPES.values()) - {"F32"})
    wrong = [kind for kind in wanted if kind not in known]
    if wrong or not wanted:
        raise ConfigError(f"types: {', '.join(wrong) or 'none'}; known are {', '.join(known)}")
    return wanted


def renamed(name: str, kind: str) -> str:
    """The name of another quantisation: ("Qwen3-8B-F16.gguf", "Q8_0") -> "Qwen3-8B-Q8_0.gguf"; also of a catalogue's entry."""
    base = SHARD.sub("", name)
    base, ending = (base[: -len(".gguf")], ".gguf") if base.endswith(".gguf") else (base, ".gguf" if base != name else "")
    found = re.search(r"[-._](f32|f16|bf16)$", base, re.IGNORECASE)
    separator = found.group()[0] if found else "-"
    lower = found.group().islower() if found else not any(letter.isupper() for letter in base)
    return f"{base[: found.start()] if found else base}{separator}{kind.lower() if lower else kind}{ending}"


class Quantizer:
    """Makes quantisations of one model.

    Args:
        program: llama-quantize's path.
        directory: where the model lies, and where the new files come.
        file: the model's file, or its first shard.
        sha256: its checksum, or those of its shards.
        threads: of llama-quantize.
    """

    def __init__(self, program: str, directory: str, file: str, sha256: str | Sequence[str], threads: int) -> None:
        self._program, self._file, self._sha256, self._threads = program, os.path.join(directory, file), sha256, threads
        self._store = Store(directory)
        try:
            header = gguf.read_header(self._file)
        except GgufError as error:
            raise QuantizeError(str(error)) from error
        if header.quantisation not in FULL:
            what = f"is quantised already ({header.quantisation}), and a second time costs quality"
            raise QuantizeError(f"{self._file}: {what}; take the file in {', '.join(FULL)}")
        if read_stamp(self._file) not in ("", sha256 if isinstance(sha256, str) else sha256[0]):
            raise QuantizeError(f"{self._file}: is not what the catalogue has; run site.yml, which brings that")

    def make(self, kind: str) -> ModelFile:
        """Make one quantisation, unless it is there. Raises QuantizeError or FetchError."""
        name = renamed(os.path.basename(self._file), kind)
        path = os.path.join(os.path.dirname(self._file), name)
        if os.path.exists(path):
            return self._found(name, path, kind)
        with self._store.locked(ModelFile(name, "", "")) as stream:
            if not os.path.exists(path):  # another job may have made it meanwhile
                try:
                    self._run(stream.name, kind)
                    digest = digest_of(stream.name)
                    self._made(name, stream.name, kind, digest)
                    write_note(_hidden(path), self._origin(digest))
                    self._store.install(stream.name, path)
                except BaseException:
                    with contextlib.suppress(OSError):
                        stream.truncate(0)  # half a quantisation is of no use to the next run
                    raise
                write_stamp(path, digest)
                say(f"{name}: {gigabytes(os.stat(path).st_size)} GB")
        return self._found(name, path, kind)

    def _found(self, name: str, path: str, kind: str) -> ModelFile:
        """A file that is there: one of that name may be of an older model, or somebody else's."""
        digest = read_stamp(path) or digest_of(path)
        if noted(_hidden(path)) != self._origin(digest):
            what = f"was not made of {self._file} as the catalogue has that now"
            raise QuantizeError(f"{path}: {what}; leave {kind} out, or remove it once nothing serves it, and run again")
        return self._made(name, path, kind, digest)

    def _origin(self, digest: str) -> dict[str, object]:
        return {"sha256": digest, "made_of": self._sha256}

    def _made(self, name: str, path: str, kind: str, digest: str) -> ModelFile:
        """The file, which must be what was asked for."""
        try:
            header = gguf.read_header(path)
        except GgufError as error:
            raise QuantizeError(str(error)) from error
        if header.quantisation != kind or header.size < header.expected_size:
            raise QuantizeError(f"{path}: is {header.quantisation} with {header.size} bytes, not a whole {kind}; remove it, and run again")
        return ModelFile(name, digest, f"file://{os.path.join(os.path.dirname(self._file), name)}")

    def _run(self, target: str, kind: str) -> None:
        say(f"making {kind} of {self._file}")
        argv = [self._program, self._file, target, kind, str(self._threads)]
        last: list[str] = []
        try:
            with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                for line in process.stdout or ():
                    last = [*last, line][-LAST_LINES:]
                    if line.startswith("["):  # [ 12/ 291] blk.1.attn_k.weight ...
                        say(line.rstrip())
        except OSError as error:
            raise QuantizeError(f"{self._program}: {error.strerror}; run site.yml for this node") from error
        if process.returncode:
            raise QuantizeError(f"llama-quantize failed with {process.returncode}: {one_line(' | '.join(last), 600)}")


def _hidden(path: str) -> str:
    """Whose note says what a quantisation was made of."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")


def entries(spec: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Make all quantisations that a spec asks for, and return the catalogue's entries for them.

    Args:
        spec: ``model`` (its name), ``entry`` (of the catalogue), ``types`` (as ``kinds`` takes), ``directory``, ``program``, ``threads``.

    Raises:
        PtolemyError: one could not be made; those before it stay, and are not made again.
    """
    entry, wanted = spec["entry"], kinds(spec["types"])
    quantizer = Quantizer(spec["program"], spec["directory"], entry["file"], entry["sha256"], int(spec["threads"]))
    found = {}
    for kind in wanted:
        made = quantizer.make(kind)
        found[renamed(spec["model"], kind)] = {
            "file": made.file,
            "source": made.source,
            "sha256": made.sha256,
            "licence": entry["licence"],
            "notes": f"{kind} of {spec['model']}, made by llama-quantize",
            **({"mmproj": entry["mmproj"]} if "mmproj" in entry else {}),
        }
    return found


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Quantise as the spec on standard input says; prints the entries."""
    os.umask(0o022)
    try:
        spec = json.load(sys.stdin)
        print(json.dumps(entries(spec), indent=2))
    except PtolemyError as error:
        say(f"ptolemy: {error}")
        return 1
    except (ValueError, KeyError) as error:
        say(f"ptolemy: the spec cannot be read: {one_line(repr(error))}")
        return 2
    return 0

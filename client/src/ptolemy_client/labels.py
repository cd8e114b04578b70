"""The labels of a classification: their file, and the grammar that admits nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import yaml

from .errors import BatchError, told_plainly


@dataclass(frozen=True)
class Label:
    """One label.

    Attributes:
        name: what stands in the output.
        description: what the model is told about it; may be empty.
    """

    name: str
    description: str = ""


@dataclass(frozen=True)
class Labels:
    """The labels file.

    Attributes:
        labels: in the file's order.
        instructions: what the model is asked to do; empty where the file has none.
    """

    labels: Sequence[Label]
    instructions: str = ""

    @property
    def names(self) -> list[str]:
        """The labels' names in order."""
        return [label.name for label in self.labels]


def read_labels(path: Path) -> Labels:
    """Read a labels file: YAML with a list of names, a mapping of names to descriptions, or one of these below ``labels``.

    Raises:
        BatchError: the file cannot be read or has another shape.
    """
    with told_plainly(path, "read the labels"):
        text = path.read_text(encoding="utf-8-sig")
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BatchError(f"{path}: not YAML: {error}") from error
    instructions = ""
    if isinstance(given, dict) and isinstance(given.get("labels"), (dict, list)):
        unknown = sorted(set(map(str, given)) - {"labels", "instructions"})
        if unknown:
            raise BatchError(f"{path}: unknown key {unknown[0]!r} beside 'labels'; only 'instructions' may stand there")
        instructions = str(given.get("instructions") or "")
        given = given["labels"]
    labels = [_label(path, item) for item in (given.items() if isinstance(given, dict) else given if isinstance(given, list) else [])]
    if len(labels) < 2:
        raise BatchError(f"{path}: needs at least two labels: a list of names, or a mapping of names to descriptions")
    names = [label.name for label in labels]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise BatchError(f"{path}: the label {double[0]!r} stands there twice")
    return Labels(labels, instructions)


def _label(path: Path, item: Any) -> Label:
    if isinstance(item, dict) and "name" in item:
        item = (item["name"], item.get("description"))
    elif not isinstance(item, tuple):
        item = (item, "")
    name, description = item
    if not isinstance(name, str) or not name.strip() or isinstance(description, (dict, list)):
        hint = " (YAML reads yes, no, on, off, null and numbers as something else: put them in quotes)"
        raise BatchError(f"{path}: {name!r} is not a label's name and description{hint}")
    if name != name.strip() or any(ord(letter) < 32 for letter in name):
        raise BatchError(f"{path}: the label {name!r} begins or ends with a space, or holds a control character")
    return Label(name, str(description or "").strip())


def one_of(names: Sequence[str]) -> str:
    """A GBNF grammar whose only sentences are the names."""
    return "root ::= " + " | ".join(map(_literal, names))


def any_of(names: Sequence[str]) -> str:
    """A GBNF grammar of JSON lists of different names, in the order given; the empty list is one of them.

    Rule ``r<i>`` is a list's rest that begins with name i or a later one, so its size grows only linearly.
    """
    last = len(names) - 1
    rules = ['root ::= "[" r0? "]"']
    for number, name in enumerate(names):
        quoted = _literal(json.dumps(name, ensure_ascii=False))
        rules.append(f"r{number} ::= {quoted}" if number == last else f'r{number} ::= {quoted} (", " r{number + 1})? | r{number + 1}')
    return "\n".join(rules)


def _literal(text: str) -> str:
    # GBNF's escapes inside quotes are those of C.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

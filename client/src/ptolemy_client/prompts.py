"""Prompt templates: Jinja2 over a row's columns."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import jinja2
import jinja2.meta
import jinja2.sandbox

from .errors import BatchError, unknown_column

PLAIN = "{{ text }}"
TEXT, ROW = "text", "row"  # names that a template has besides the columns


def _shown(value: Any) -> Any:
    return "" if value is None else value


class Prompt:
    """A template, compiled once.

    Args:
        source: the template: each column by its name, ``row["any name"]``, and ``text`` for the column of ``--text``.
        columns: the input's columns.
        text: the column of ``--text``, or empty.
        where: what an error message calls the template.

    Attributes:
        source, text: as given.
        used: the columns that it needs, in the input's order.

    Raises:
        BatchError: a syntax error, or a column that does not exist.
    """

    def __init__(self, source: str, columns: Sequence[str], text: str, where: str) -> None:
        self.source, self.text, self._where = source, text, where
        environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=_shown, keep_trailing_newline=False)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BatchError(f"{where}, line {error.lineno}: {error.message}") from error
        names = jinja2.meta.find_undeclared_variables(tree)
        if text and text not in columns:
            raise unknown_column(text, columns, "--text")
        for name in sorted(names - set(columns) - {TEXT, ROW}):
            raise unknown_column(name, columns, where)
        if TEXT in names and not text and TEXT not in columns:
            raise BatchError(f"{where} uses 'text': say with --text which column that is. They are: {', '.join(map(repr, columns))}")
        self._plain = bool(text) and source == PLAIN  # four times as fast, and by far the most frequent
        self._whole = ROW in names
        wanted = set(columns) if self._whole else (names | {text}) & set(columns)
        self.used = [name for name in columns if name in wanted]

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of one row.

        Raises:
            BatchError: the template fails on this row.
        """
        if self._plain:
            return str(_shown(row[self.text]))
        values = dict(row)
        if self._whole:
            values[ROW] = row
        if self.text:
            values[TEXT] = row[self.text]
        try:
            return self._template.render(values)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise BatchError(f"{self._where}: cannot be rendered for the row {dict(row)!r}: {error}") from error

    def is_empty(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's column of ``--text`` has nothing to ask about."""
        return bool(self.text) and not str(_shown(row[self.text])).strip()

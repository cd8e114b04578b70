"""The ledger: a SQLite file beside the output, in which every row has a state, whatever kills the program.

A row refers to a request; rows with the same prompt refer to the same one, which is asked once. A request is pending until there is
an answer for it: nothing is noted when it is sent, so one that was under way when the program died is simply sent again.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple, Optional, Sequence

from .errors import BatchError, BusyError

ANSWERED, FAILED = 1, 2
_LAYOUT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, body TEXT NOT NULL, copies INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, request INTEGER);
CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, answer TEXT, error TEXT, tries INTEGER NOT NULL,
  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL);
CREATE TEMP TABLE chosen (n INTEGER PRIMARY KEY);
CREATE TEMP TABLE wanted (id INTEGER PRIMARY KEY, copies INTEGER NOT NULL);
"""


class Request(NamedTuple):
    """Something to ask.

    Attributes:
        id: in the ledger; ascends in the order of the input.
        body: what differs from the other requests: the prompt, or a whole body.
        copies: rows that its answer is for.
    """

    id: int
    body: str
    copies: int


class Answer(NamedTuple):
    """What became of a request: ``state`` is ANSWERED or FAILED, ``answer`` the task's JSON, ``tries`` how often it was sent."""

    id: int
    state: int
    answer: Optional[str]
    error: Optional[str]
    tries: int
    tokens_in: int
    tokens_out: int


class Result(NamedTuple):
    """A row and its answer. ``request`` is None where there was nothing to ask; ``state`` is None while it is pending."""

    row: int
    request: Optional[int]
    state: Optional[int]
    answer: Optional[str]
    error: Optional[str]


@dataclass(frozen=True)
class Counts:
    """How far a run is, of the rows that were chosen.

    Attributes:
        rows, empty, distinct: all rows; those with nothing to ask; the requests behind the others.
        answered, failed: requests.
        rows_answered, rows_failed: the rows that these are for.
        tokens_in, tokens_out: of the answers.
    """

    rows: int
    empty: int
    distinct: int
    answered: int
    failed: int
    rows_answered: int
    rows_failed: int
    tokens_in: int
    tokens_out: int

    @property
    def asked(self) -> int:
        """Requests that have an answer or were given up."""
        return self.answered + self.failed

    @property
    def pending(self) -> int:
        """Requests that have no answer yet."""
        return self.distinct - self.asked


class Ledger:
    """An open ledger; one process at a time may have it.

    It may be used by several threads, but only by one at a time.

    Args:
        path: of the file; made where it does not exist.

    Raises:
        BatchError: the file is no ledger, belongs to a running process, or cannot be written. Every method may raise it, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._selected = False
        with self._errors():
            self._db = sqlite3.connect(str(path), timeout=0, isolation_level=None, check_same_thread=False)
            try:
                # Exclusive: a second process is refused, and WAL needs no shared memory, which network file systems lack.
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode = WAL")
                # An answer that was recorded stays recorded when the power fails.
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA temp_store = MEMORY")
                self._db.execute("PRAGMA cache_size = -32768")  # KiB: the digests' index of 500,000 requests stays in it
                self._db.execute("PRAGMA wal_autocheckpoint = 4000")
                self._db.executescript(_TABLES)
            except BaseException:
                self._db.close()
                raise
        if self.meta("layout", _LAYOUT) != _LAYOUT:
            self._db.close()
            raise BatchError(f"{path}: was written by another version of ptolemy-batch; add --restart to begin anew")
        self.note("layout", _LAYOUT)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def meta(self, key: str, default: Any = None) -> Any:
        """A fact that was noted."""
        with self._errors():
            found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else default

    def note(self, key: str, value: Any) -> None:
        """Note a fact: anything that JSON can hold."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def index(self, batches: Iterable[Sequence[Optional[tuple[bytes, str]]]], fact: Any) -> None:
        """Take in all rows, in order; ``fact`` is noted as ``indexed`` when they are complete.

        Answers of requests that come again are kept, so a corrected input costs only what is new in it.

        Args:
            batches: for each row the digest and the body of its request, or None where there is nothing to ask.
            fact: what the index was made from.
        """
        with self._transaction():
            self._db.execute("DELETE FROM meta WHERE key = 'indexed'")
            self._db.execute("DELETE FROM rows")
            self._db.execute("UPDATE requests SET copies = 0")
        number = 0
        for batch in batches:
            with self._transaction():
                self._db.executemany(
                    "INSERT INTO requests (digest, body, copies) VALUES (?, ?, 1) ON CONFLICT (digest) DO UPDATE SET copies = copies + 1",
                    [row for row in batch if row],
                )
                self._db.executemany(
                    "INSERT INTO rows VALUES (?, (SELECT id FROM requests WHERE digest = ?))",
                    [(at, row[0] if row else None) for at, row in enumerate(batch, number)],
                )
            number += len(batch)
        with self._transaction():
            self._db.execute("DELETE FROM answers WHERE id IN (SELECT id FROM requests WHERE copies = 0)")
            self._db.execute("DELETE FROM requests WHERE copies = 0")
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('indexed', ?)", (json.dumps(fact),))

    def choose(self, rows: Optional[Iterable[int]]) -> None:
        """Restrict what follows to some rows; None: to none but all of them."""
        with self._transaction():
            self._db.execute("DELETE FROM chosen")
            self._db.execute("DELETE FROM wanted")
            self._selected = rows is not None
            if rows is not None:
                self._db.executemany("INSERT INTO chosen VALUES (?)", ((row,) for row in rows))
                self._db.execute(
                    "INSERT INTO wanted SELECT request, count(*) FROM rows"
                    " WHERE n IN (SELECT n FROM chosen) AND request NOT NULL GROUP BY request"
                )

    def total(self) -> int:
        """The rows of the whole input."""
        with self._errors():
            return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])

    def page(self, after: int, size: int) -> list[Request]:
        """The next pending requests behind that id."""
        # One row of JSON: sqlite3 gives Python's lock away and takes it back for each row, and the event loop would wait for each.
        query = (
            "SELECT json_group_array(json_array(id, body, copies)) FROM"
            f" (SELECT r.id, r.body, s.copies FROM {self._scope} s JOIN requests r ON r.id = s.id LEFT JOIN answers a ON a.id = s.id"
            " WHERE s.id > ? AND a.id IS NULL ORDER BY s.id LIMIT ?)"
        )
        with self._errors():
            found = self._db.execute(query, (after, size)).fetchone()[0]
        return [Request(*one) for one in json.loads(found)]

    def record(self, answers: Sequence[Answer]) -> None:
        """Record answers, all or none. Once this returns they survive a power cut."""
        # As JSON, for the same reason as in `page`.
        fields = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(len(Answer._fields)))
        with self._transaction():
            self._db.execute(f"INSERT OR REPLACE INTO answers SELECT {fields} FROM json_each(?)", (json.dumps(answers),))

    def forget_failed(self) -> int:
        """Make failed requests pending again; returns how many."""
        with self._transaction():
            return self._db.execute("DELETE FROM answers WHERE state = ?", (FAILED,)).rowcount

    def counts(self) -> Counts:
        """How far the chosen rows are."""
        chosen = " WHERE n IN (SELECT n FROM chosen)" if self._selected else ""
        with self._errors():
            rows, asked = self._db.execute(f"SELECT count(*), count(request) FROM rows{chosen}").fetchone()
            distinct = self._db.execute(f"SELECT count(*) FROM {self._scope}").fetchone()[0]
            query = (
                "SELECT state, count(*), sum(s.copies), sum(tokens_in), sum(tokens_out)"
                f" FROM {self._scope} s JOIN answers USING (id) GROUP BY state"
            )
            states = {state: facts for state, *facts in self._db.execute(query)}
        good, bad = states.get(ANSWERED, [0] * 4), states.get(FAILED, [0] * 4)
        return Counts(rows, rows - asked, distinct, good[0], bad[0], good[1], bad[1], good[2] + bad[2], good[3] + bad[3])

    def results(self) -> Iterator[Result]:
        """All chosen rows in the order of the input."""
        chosen = " WHERE n IN (SELECT n FROM chosen)" if self._selected else ""
        with self._errors():
            for found in self._db.execute(
                f"SELECT n, request, state, answer, error FROM rows LEFT JOIN answers ON id = request{chosen} ORDER BY n"
            ):
                yield Result(*found)

    def errors(self, most: int) -> list[tuple[str, int]]:
        """The most frequent errors of failed requests."""
        with self._errors():
            query = (
                f"SELECT error, count(*) FROM {self._scope} s JOIN answers USING (id) WHERE state = ? GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?"
            )
            return self._db.execute(query, (FAILED, most)).fetchall()

    @property
    def _scope(self) -> str:
        return "wanted" if self._selected else "requests"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            reason = str(error)
            if "locked" in reason:
                raise BusyError(f"{self.path}: another ptolemy-batch is working on it") from error
            if "full" in reason or "disk I/O" in reason:
                reason = "the disk is full, or your quota used up: make room, then run the same command again; all answers are kept"
            elif "unable to open" in reason or "readonly" in reason:
                reason = "the directory does not exist or cannot be written: choose another place for the output"
            elif "not a database" in reason or "malformed" in reason:
                reason = f"this is no ledger ({error}); add --restart to begin anew"
            raise BatchError(f"{self.path}: {reason}") from error

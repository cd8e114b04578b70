"""Errors that end a run: one message each, for the person who started it."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence


class BatchError(Exception):
    """Something that the user can mend: the message says what and how. The command ends with status 2."""


class BusyError(BatchError):
    """Another process works on the same ledger."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM: what was answered is recorded, and the same command goes on from there."""


def unknown_column(name: str, columns: Sequence[str], where: str) -> BatchError:
    """The error for a column that does not exist."""
    return BatchError(f"{where}: there is no column {name!r}. The columns are: {', '.join(map(repr, columns))}")


@contextmanager
def told_plainly(path: Path, doing: str) -> Iterator[None]:
    """Turn the file system's errors into one message that names the path and the mend.

    Raises:
        BatchError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full: make room, then run the same command again; nothing that was answered is lost",
            errno.EDQUOT: "your quota is used up: make room, then run the same command again; nothing that was answered is lost",
            errno.EROFS: "the file system is read-only: choose another place",
            errno.EACCES: "permission denied: choose another place, or have the permissions changed",
            errno.ENOENT: "there is no such file or directory",
            errno.EISDIR: "this is a directory",
        }.get(error.errno or 0, error.strerror or str(error))
        raise BatchError(f"{path}: cannot {doing}: {reason}") from error

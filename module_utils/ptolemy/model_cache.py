"""A node's own copies of models, on its fast disk: a job fills it before llama-server starts, and the least recently used ones go.

    KEY/              a whole and right model: all its files, each with its stamp (see ``model_files``)
    .filling-KEY/     one on its way, at its full size from the start on, so that its room is taken
    KEY.lock          locked shared by each job that serves the model, exclusively by the one that fills or removes it; its time is
                      that of the last use. It stays when the model goes: a lock whose file is removed protects nothing.
    .room.lock        held while room is made, so that two jobs never count on the same bytes

Slurm may kill a job at any moment. The kernel gives its locks back, and the next job removes what it had not finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence

from .download import BLOCK, SPARE, free
from .errors import PtolemyError
from .model_files import gigabytes, read_stamp, write_stamp

FILLING, LOCK = ".filling-", ".lock"
KEY = re.compile(r"[0-9a-f]{32}")
PAUSE = 0.5  # seconds between two looks at a lock
SAY_EVERY = 10.0
UNITS = {"M": 10**6, "G": 10**9, "T": 10**12}


class CacheError(PtolemyError):
    """The cache could not take a model: it may be served from where it lies."""


class WrongModelError(PtolemyError):
    """A model's file is not what the catalogue says: it must not be served at all."""


class StoppedError(Exception):
    """The job was told to end, or its time to start was over."""


@dataclass(frozen=True)
class Cached:
    """A model in the cache.

    Attributes:
        directory: holds all its files.
        lock: a file descriptor; while it is open, the model stays.
    """

    directory: str
    lock: int


def size_of(text: str) -> int:
    """("800G") -> 800_000_000_000 bytes. Raises CacheError where it is no such text."""
    match = re.fullmatch(r"([1-9]\d*)([MGT])", text)
    if not match:
        raise CacheError(f"models_cache_size: must be a number with M, G or T, as 800G, not {text!r}")
    return int(match[1]) * UNITS[match[2]]


class Cache:
    """One node's cache.

    Args:
        directory: on the node's own disk; it belongs to the jobs' account.
        size: bytes that all models in it may have.
        going: whether to go on; asked before each block and each wait.
        say: for the job's log.
    """

    def __init__(self, directory: str, size: int, going: Callable[[], bool] = lambda: True, say: Callable[[str], None] = print) -> None:
        self._directory, self._size, self._going, self._say = directory, size, going, say

    def take(self, source: str, files: Mapping[str, str]) -> Cached:
        """Return a model's place in the cache, after copying it there if need be.

        Args:
            source: the directory where it lies.
            files: its files: sha256 by name.

        Raises:
            CacheError: the cache has no room for it, or its disk or the source fails.
            WrongModelError: the source is not what the checksums say.
            StoppedError: ``going`` said no.
        """
        key = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:32]
        try:
            lock = self._open(key + LOCK)
            try:
                return self._taken(key, lock, source, files)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise CacheError(f"{error.filename or self._directory}: {error.strerror}") from error

    def _taken(self, key: str, lock: int, source: str, files: Mapping[str, str]) -> Cached:
        place, waited = os.path.join(self._directory, key), False
        while self._going():
            whole = self._is_whole(place, files)
            if not _locked(lock, fcntl.LOCK_SH if whole else fcntl.LOCK_EX):
                if not waited:
                    self._say("another job of this node copies the model to the cache; waiting for it")
                waited = True
                time.sleep(PAUSE)
            elif not self._is_whole(place, files):
                if not whole:
                    self._fill(key, source, files)
            elif whole:
                os.utime(lock)
                return Cached(place, lock)
            # From the exclusive to the shared lock there may be a gap, in which another job removes the model: look again.
        raise StoppedError

    def _is_whole(self, place: str, files: Mapping[str, str]) -> bool:
        return all(read_stamp(os.path.join(place, name)) == digest for name, digest in files.items())

    def _fill(self, key: str, source: str, files: Mapping[str, str]) -> None:
        """Copy a model; the caller holds its lock exclusively."""
        filling, place = os.path.join(self._directory, FILLING + key), os.path.join(self._directory, key)
        for path in (filling, place):  # what a killed job left, or what somebody has changed
            shutil.rmtree(path, ignore_errors=True)
        sizes = {name: os.stat(os.path.join(source, name)).st_size for name in files}
        began, done, total = time.monotonic(), 0, sum(sizes.values())
        try:
            with self._room():
                self._make_room(total)
                os.mkdir(filling, 0o700)
                for name, size in sizes.items():
                    _reserve(os.path.join(filling, name), size)
            for name, digest in files.items():
                self._copy(os.path.join(source, name), os.path.join(filling, name), digest, done, total)
                done += sizes[name]
            os.rename(filling, place)
        except BaseException:
            shutil.rmtree(filling, ignore_errors=True)
            raise
        self._say(f"copied the model to the cache {place}: {gigabytes(total)} GB in {time.monotonic() - began:.0f} s")

    def _copy(self, source: str, target: str, digest: str, done: int, total: int) -> None:
        hashed, told = hashlib.sha256(), time.monotonic()
        with open(source, "rb") as original, open(target, "r+b", buffering=0) as copy:
            while block := original.read(BLOCK):
                if not self._going():
                    raise StoppedError
                hashed.update(block)
                rest = memoryview(block)
                while rest:
                    rest = rest[copy.write(rest) :]
                done += len(block)
                if time.monotonic() - told >= SAY_EVERY:
                    told = time.monotonic()
                    self._say(f"copying the model to the cache: {gigabytes(done)} of {gigabytes(total)} GB")
            copy.truncate()  # the source may have become shorter
            os.fsync(copy.fileno())
        found = hashed.hexdigest()
        if found != digest:
            raise WrongModelError(f"{source}: its sha256 is {found}, the catalogue wants {digest}; run site.yml with models_verify=true")
        write_stamp(target, digest)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Be the only job that counts the room and takes of it."""
        lock = self._open(".room.lock")
        try:
            while not _locked(lock, fcntl.LOCK_EX):
                if not self._going():
                    raise StoppedError
                time.sleep(PAUSE)
            yield
        finally:
            os.close(lock)

    def _make_room(self, wanted: int) -> None:
        """Remove what killed jobs left, then the least recently used models, until there is room for ``wanted`` bytes."""
        for name in os.listdir(self._directory):
            if name.startswith(FILLING):
                self._remove(name, name[len(FILLING) :])
        models = [name for name in os.listdir(self._directory) if KEY.fullmatch(name)] if wanted <= self._size else []
        for name in sorted(models, key=self._last_use):
            if self._fits(wanted):
                break
            if self._remove(name, name):
                self._say(f"removed a model from the cache to make room: {name}")
        if not self._fits(wanted):
            raise CacheError(
                f"no room for {gigabytes(wanted)} GB: {gigabytes(self._used())} GB are in use of the {gigabytes(self._size)} GB of "
                f"models_cache_size, and {gigabytes(free(self._directory))} GB of the disk are free"
            )

    def _fits(self, wanted: int) -> bool:
        return self._used() + wanted <= self._size and wanted + SPARE <= free(self._directory)

    def _used(self) -> int:
        folders = [name for name in os.listdir(self._directory) if KEY.fullmatch(name) or name.startswith(FILLING)]
        paths = [os.path.join(self._directory, folder, name) for folder in folders for name in _listed(self._directory, folder)]
        return sum(os.lstat(path).st_size for path in paths if os.path.lexists(path))

    def _last_use(self, key: str) -> float:
        try:
            return os.stat(os.path.join(self._directory, key + LOCK)).st_mtime
        except FileNotFoundError:
            return 0.0

    def _remove(self, name: str, key: str) -> bool:
        """Remove a directory unless a job serves or fills it."""
        lock = self._open(key + LOCK)
        try:
            path = os.path.join(self._directory, name)
            if not _locked(lock, fcntl.LOCK_EX) or not os.path.isdir(path):
                return False
            shutil.rmtree(path)
            return True
        finally:
            os.close(lock)

    def _open(self, name: str) -> int:
        return os.open(os.path.join(self._directory, name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def parse(lines: Sequence[str]) -> dict[str, str]:
    """Lines as sha256sum prints them -> sha256 by name."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def take(spec: Mapping[str, Any], going: Callable[[], bool], say: Callable[[str], None]) -> Mapping[str, Any]:
    """Take the model of a job's spec into the cache that it names. It stays there until this process ends.

    Returns:
        The spec with the paths in the cache; as it is where there is no cache, or it has no room or fails: the model is then served
        from where it lies.

    Raises:
        WrongModelError, StoppedError: as in ``Cache.take``.
    """
    if not spec.get("cache_dir"):
        return spec
    try:
        cache = Cache(spec["cache_dir"], size_of(spec["cache_size"]), going, say)
        place = cache.take(os.path.dirname(spec["model_path"]), parse(spec["model_files"])).directory
    except CacheError as error:
        say(f"the cache cannot be used, so the model is read from where it lies: {error}")
        return spec
    paths = {key: os.path.join(place, os.path.basename(spec[key])) for key in ("model_path", "mmproj_path") if spec.get(key)}
    return {**spec, **paths}


def _listed(*path: str) -> list[str]:
    try:
        return os.listdir(os.path.join(*path))
    except FileNotFoundError:
        return []


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reserve(path: str, size: int) -> None:
    with open(path, "xb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)

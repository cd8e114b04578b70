"""The model files of a host: what is there, and how a new one gets its name. A file has its name only when its sha256 is right.

A model may have 400 GB, so its hash is not computed at every run. Beside each file lies a stamp, ``.FILE.sha256``, with the hash
found and the file's size and time of change when it was computed; while those two are the same the hash is taken from the stamp.
What is on its way lies beside it as ``.incoming-FILE``, whose lock (flock) belongs to the one process that writes to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import pwd
import stat
import time
from dataclasses import dataclass, field
from typing import BinaryIO, Callable, Iterator, Mapping, Optional, Sequence

from .catalogue import HF_ENDPOINT, ModelFile, url
from .download import BLOCK, DiskError, Download, FetchError, Part, Report, check_room, disk, forget, noted, told, write_note

ABSENT, RIGHT, WRONG, UNKNOWN = "absent", "right", "wrong", "unknown"
LOCK_PAUSE = 1.0  # seconds between two looks at a lock


@dataclass(frozen=True)
class State:
    """What a host has of one file.

    Attributes:
        file: its name.
        state: absent, right, wrong, or unknown: it was not hashed.
        sha256: the hash found; empty where none is known.
        size: bytes of the file, or of the part that has come so far.
        total: bytes that it will have, where the source told; 0 if unknown.
        stamped: its stamp was written just now.
    """

    file: str
    state: str
    sha256: str = ""
    size: int = 0
    total: int = 0
    stamped: bool = False

    def __str__(self) -> str:
        if self.state == ABSENT and self.size:
            return f"{self.file}: {gigabytes(self.size)} of {gigabytes(self.total) if self.total else '?'} GB"
        return f"{self.file}: {self.state}"


@dataclass(frozen=True)
class Store:
    """The directory of a host's model files, and how files come into it.

    Attributes:
        directory: it must exist before a file is brought.
        owner, group: names, or empty for the caller's own.
        hf_endpoint: where ``hf://`` is looked up.
        hf_token: sent to that host alone; empty for none.
        url_headers: sent to the hosts of ``http(s)://`` sources.
        deadline: of ``time.monotonic``.
        report: called while bytes come.
        sleep: for tests.
    """

    directory: str
    owner: str = ""
    group: str = ""
    hf_endpoint: str = HF_ENDPOINT
    hf_token: str = field(default="", repr=False)
    url_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    deadline: float = float("inf")
    report: Report = lambda size, total: None
    sleep: Callable[[float], None] = time.sleep

    def look(self, files: Sequence[ModelFile], hashing: bool = True, stamping: bool = True, again: bool = False) -> list[State]:
        """Compare the files that are there with the catalogue.

        Args:
            files: what is wanted.
            hashing: hash a file without a stamp; else it is unknown.
            stamping: write the stamp of what was hashed.
            again: hash files that have a stamp, too.

        Raises:
            FetchError: a file cannot be read.
        """
        try:
            return [self._look(file, hashing, stamping, again) for file in files]
        except OSError as error:
            raise FetchError(f"{error.filename or self.directory}: {error.strerror}") from error

    def _look(self, file: ModelFile, hashing: bool, stamping: bool, again: bool) -> State:
        path = os.path.join(self.directory, file.file)
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            part = self._part(file)
            coming = os.stat(part).st_size if os.path.isfile(part) else 0
            return State(file.file, ABSENT, size=coming, total=int(noted(part).get("total") or 0))
        digest = "" if again else read_stamp(path)
        fresh = not digest and hashing
        if fresh:
            before = state_of(path)
            digest = digest_of(path)
            if before != state_of(path):
                raise FetchError(f"{path}: somebody writes to it; run again when that is done")
            if stamping:
                write_stamp(path, digest)
        state = UNKNOWN if not digest else RIGHT if digest == file.sha256 else WRONG
        return State(file.file, state, digest, size, size, fresh and stamping)

    def bring(self, file: ModelFile, replace: bool = False, staged: Optional[str] = None) -> bool:
        """Make sure that a file is there and right. Returns whether it came, or was stamped.

        Args:
            file: what is wanted.
            replace: replace a file that has another hash, when the new one is whole.
            staged: a file in the same directory to take, for a source on the controller.

        Raises:
            FetchError: it could not be brought, or another process is bringing it for too long.
        """
        if not os.path.isdir(self.directory):
            raise FetchError(f"{self.directory}: no such directory; make it, or correct models_dir")
        path = os.path.join(self.directory, file.file)
        with self.locked(file) as stream:
            # Another process may have brought it while this one waited for the lock.
            state = self.look([file])[0]
            if state.state == RIGHT:
                return state.stamped
            refuse(self.directory, [file], [state], replace)
            incoming = stream.name
            if staged is not None:
                self._take(file, staged)
                incoming = staged
            elif file.source.startswith("file://"):
                self._copy(file, stream)
            elif file.source.startswith("/"):
                raise FetchError(f"{file.source} lies on the controller, and was not copied to this host; run the playbook again")
            else:
                self._download(file, stream)
            self.install(incoming, path)
            forget(stream.name)
            with contextlib.suppress(OSError):  # a stamp only saves time
                write_stamp(path, file.sha256)
        return True

    def _download(self, file: ModelFile, stream: BinaryIO) -> None:
        headers = dict(self.url_headers)
        if file.source.startswith("hf://"):
            headers = {"Authorization": f"Bearer {self.hf_token}"} if self.hf_token else {}
        address = url(file.source, self.hf_endpoint)
        Download(address, file.sha256, headers, self.report, self.deadline, self.sleep).into(stream)

    def _copy(self, file: ModelFile, stream: BinaryIO) -> None:
        source, part = file.source[len("file://") :], Part(stream)
        try:
            with open(source, "rb") as original:
                part.restart()
                part.total = os.fstat(original.fileno()).st_size
                with disk():
                    write_note(stream.name, {"total": part.total})
                check_room(part, file.source)
                while block := original.read(BLOCK):
                    part.append(block)
                    self.report(part.size, part.total)
        except DiskError as error:
            part.stream.truncate(0)  # a copy is not resumed, so it need not fill the disk
            raise told(error, Part(stream, total=part.total), file.source) from error
        except OSError as error:
            raise FetchError(f"{source}: {error.strerror}; correct the source, or put the file there") from error
        _compare(source, part.hashed.hexdigest(), file, lambda: stream.truncate(0))

    def _take(self, file: ModelFile, staged: str) -> None:
        try:
            digest = digest_of(staged)
        except OSError as error:
            raise FetchError(f"{staged}: {error.strerror}; run the playbook again") from error
        _compare(file.source, digest, file, lambda: os.unlink(staged))

    def install(self, incoming: str, path: str) -> None:
        """Give a whole file its owner, its mode and, by a rename, its name. Raises FetchError."""
        try:
            descriptor = os.open(incoming, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fchmod(descriptor, 0o644)
                if self.owner or self.group:
                    uid = pwd.getpwnam(self.owner).pw_uid if self.owner else -1
                    os.fchown(descriptor, uid, grp.getgrnam(self.group).gr_gid if self.group else -1)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(incoming, path)
            folder = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except KeyError as error:
            raise FetchError(f"this host has no account or group {error}; correct models_user and models_group") from error
        except OSError as error:
            raise FetchError(f"{path}: {error.strerror}") from error

    def _part(self, file: ModelFile) -> str:
        return os.path.join(self.directory, f".incoming-{file.file}")

    @contextlib.contextmanager
    def locked(self, file: ModelFile) -> Iterator[BinaryIO]:
        """Open the part for this process alone; an empty one is removed at the end."""
        path = self._part(file)
        stream = self._opened(path)
        while not _lock(stream) or not _same(stream, path):
            stream.close()
            if time.monotonic() >= self.deadline:
                raise FetchError(f"{path}: another process is bringing this file, and was not done in time; run again later")
            self.sleep(LOCK_PAUSE)
            stream = self._opened(path)
        with stream:
            try:
                yield stream
            finally:
                # Only now that the lock is held may the name be removed: whoever waits for the lock looks whether it is the same file.
                if _same(stream, path) and os.fstat(stream.fileno()).st_size == 0:
                    forget(path)
                    os.unlink(path)

    def _opened(self, path: str) -> BinaryIO:
        # The directory belongs to the jobs' account, and this process may be root's: no link of that account is followed.
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            why = "is a link; remove it" if error.errno == errno.ELOOP else error.strerror
            raise FetchError(f"{path}: {why}") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            if found.st_nlink == 0:  # renamed or removed just now
                return self._opened(path)
            raise FetchError(f"{path}: has a second name, or is no file; remove it")
        return open(path, "r+b", buffering=0, opener=lambda *_: descriptor)


def refuse(directory: str, files: Sequence[ModelFile], states: Sequence[State], replace: bool) -> None:
    """Raise FetchError where files are there with another hash, unless they may be replaced."""
    wrong = [f"{state.file} (found {state.sha256}, wanted {file.sha256})" for file, state in zip(files, states) if state.state == WRONG]
    if wrong and not replace:
        raise FetchError(
            f"{directory} has files that are not what ptolemy_models says: {'; '.join(wrong)}. Correct the catalogue, give the new model a "
            "file name of its own, or set models_replace to true for one run"
        )


def digest_of(path: str) -> str:
    """The sha256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def stamp_path(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.sha256")


def state_of(path: str) -> str:
    """Size and time of change, as stamps hold them. Raises OSError."""
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}"


def read_stamp(path: str) -> str:
    """The hash of a file that has not changed since it was computed, else empty."""
    try:
        with open(stamp_path(path), encoding="ascii") as stream:
            digest, state = stream.read(200).strip().split(" ", 1)
        return digest if state == state_of(path) else ""
    except (OSError, ValueError):
        return ""


def write_stamp(path: str, digest: str) -> None:
    """Remember the hash of a file. Raises OSError."""
    temporary = f"{stamp_path(path)}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    with open(temporary, "x", encoding="ascii") as stream:  # never through a link
        stream.write(f"{digest} {state_of(path)}\n")
    os.chmod(temporary, 0o644)
    os.replace(temporary, stamp_path(path))


def gigabytes(size: int) -> str:
    """(1_234_567_890) -> "1.23"."""
    return f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.1f}"


def _compare(source: str, digest: str, file: ModelFile, clean: Callable[[], object]) -> None:
    if digest != file.sha256:
        clean()
        raise FetchError(f"{source}: its sha256 is {digest}, the catalogue wants {file.sha256}; nothing was installed")


def _lock(stream: BinaryIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise FetchError(f"{stream.name}: its file system gives no locks ({error.strerror}); on NFS, mount it with them") from error
    return True


def _same(stream: BinaryIO, path: str) -> bool:
    """Whether a name still means the open file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False

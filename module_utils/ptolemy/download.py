"""One file over HTTP: resumed, retried within bounds, hashed as it comes. Standard library only; the caller holds the file's lock.

A part lies beside a note, ``PART.json``, which says of what it is the part. Both stay when a run ends early, so that the next one
goes on where it ended.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any, BinaryIO, Callable, Iterator, Mapping, Optional
from urllib.parse import urlsplit

from .catalogue import shown
from .errors import PtolemyError
from .process import one_line

BLOCK = 1 << 20
STALL = 60.0  # seconds without a byte, or for a connection, after which an attempt ends
ATTEMPTS = 8  # in a row without progress; their pauses take three minutes in all
RESTARTS = 5
PROGRESS = 1 << 20  # bytes that an attempt must have brought for the next one not to count
FIRST_PAUSE, LAST_PAUSE = 2.0, 60.0
SPARE = 64 << 20  # bytes that stay free on the file system
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

Report = Callable[[int, Optional[int]], None]  # bytes that are there, bytes of the whole file where known


class FetchError(PtolemyError):
    """A file could not be brought; the message says what to do next."""


class DiskError(Exception):
    """The disk and not the network refused something; the cause is the OSError."""


class _AgainError(Exception):
    """This attempt failed, another one may not; ``pause`` is the least that the server wants in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass
class Part:
    """The part of a file that is there, open for reading and writing.

    Attributes:
        stream: the open file; its name is the part's path.
        hashed: the running sha256 of its first ``size`` bytes.
        size: bytes that are there.
        total: bytes of the whole file, None while unknown.
        validator: what If-Range may ask for: a strong ETag, else the Last-Modified, else empty.
        resumed: bytes of more than one answer are in it.
        restarts: how often bytes that were there had to be given up.
    """

    stream: BinaryIO
    hashed: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    total: Optional[int] = None
    validator: str = ""
    resumed: bool = False
    restarts: int = 0

    def restart(self) -> None:
        """Forget what is there."""
        self.restarts += self.size > 0
        with disk():
            self.stream.seek(0)
            self.stream.truncate()
        self.hashed, self.size, self.total, self.validator, self.resumed = hashlib.sha256(), 0, None, "", False

    def append(self, block: bytes) -> None:
        rest = memoryview(block)
        with disk():
            while rest:  # without a buffer a write may be a part of one
                rest = rest[self.stream.write(rest) :]
        self.hashed.update(block)
        self.size += len(block)


class Download:
    """The download of one file.

    Args:
        url: where it is, http or https.
        sha256: what it must be.
        headers: sent to the URL's own host alone, never after a redirect to another one.
        report: called after each block.
        deadline: of ``time.monotonic``, after which no attempt begins and the running one ends.
        sleep: for tests.
    """

    def __init__(
        self,
        url: str,
        sha256: str,
        headers: Optional[Mapping[str, str]] = None,
        report: Report = lambda size, total: None,
        deadline: float = float("inf"),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._sha256, self._headers = url, sha256, dict(headers or {})
        self._report, self._deadline, self._sleep = report, deadline, sleep
        self._opener = urllib.request.build_opener(_Redirects(url, self._headers))

    def into(self, stream: BinaryIO) -> None:
        """Bring the file into an open part: whole, right and on the disk.

        Args:
            stream: the part, opened for reading and writing without a buffer; ``stream.name`` is its path.

        Raises:
            FetchError: it could not be brought. What is right of the part stays; a whole but wrong one is emptied.
        """
        part = Part(stream)
        try:
            self._take_up(part)
            self._complete(part)
            if part.hashed.hexdigest() != self._sha256 and part.resumed:
                # The file may have changed between two answers without the server telling; a whole new one decides.
                part.restart()
                self._complete(part)
            with disk():
                os.fsync(stream.fileno())
        except DiskError as error:
            raise told(error, part, self._url) from error
        found, size = part.hashed.hexdigest(), part.size
        if found != self._sha256:
            with contextlib.suppress(OSError):  # without its note it is not taken up again in any case
                forget(stream.name)
                stream.truncate(0)
            raise FetchError(
                f"{shown(self._url)}: its sha256 is {found} ({size} bytes), the catalogue wants {self._sha256}; nothing was installed. "
                "If the publisher has changed the file, pin the old revision or correct sha256"
            )

    def _take_up(self, part: Part) -> None:
        """Hash what an earlier run has left, if it is a part of this file."""
        part.size, note = os.fstat(part.stream.fileno()).st_size, noted(part.stream.name)
        if note.get("sha256") != self._sha256 or note.get("url") != shown(self._url):
            part.restart()
            return
        part.total, part.validator, part.resumed = note.get("total"), str(note.get("validator", "")), part.size > 0
        with disk():
            part.stream.seek(0)
            while block := part.stream.read(BLOCK):
                part.hashed.update(block)
        if part.total is not None and part.size > part.total:
            part.restart()

    def _complete(self, part: Part) -> None:
        failures, began = 0, part.size
        while part.total is None or part.size < part.total:
            try:
                self._attempt(part)
            except _AgainError as error:
                failures = 1 if part.size - began >= PROGRESS else failures + 1
                began = part.size
                pause = max(min(FIRST_PAUSE * 2.0 ** (failures - 1), LAST_PAUSE), min(error.pause, LAST_PAUSE))
                late = time.monotonic() + pause >= self._deadline
                # A server that never answered is more likely out of reach than busy.
                if late or failures >= (ATTEMPTS if part.size else ATTEMPTS // 2) or part.restarts >= RESTARTS:
                    why = f"{failures} attempts in a row brought nothing"
                    if late:
                        why = "the time is over (models_timeout)"
                    elif part.restarts >= RESTARTS:
                        why = f"it had to be begun anew {part.restarts} times, as the server does not resume or its file changes"
                    raise FetchError(
                        f"{shown(self._url)}: {error}; {why}. {part.size} of {_or_unknown(part.total)} bytes are kept: "
                        "run the playbook again, and it goes on from there"
                    ) from error
                self._sleep(pause)

    def _attempt(self, part: Part) -> None:
        """One request. Raises _AgainError where another one may help, FetchError where not."""
        try:
            with self._open(part) as answer:
                self._accept(part, answer.status, answer.headers)
                self._receive(part, answer)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(part, error)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
                raise FetchError(f"{shown(self._url)}: {_reason(error)}; install the certificate authority on this host") from error
            raise _AgainError(_reason(error)) from error
        except ValueError as error:  # from the address itself
            raise FetchError(f"{shown(self._url)}: {error}; correct the source, or models_hf_endpoint") from error
        if part.total is not None and part.size < part.total:
            raise _AgainError(f"the connection ended after {part.size} of {part.total} bytes")
        part.total = part.size

    def _open(self, part: Part) -> Any:
        # The catalogue's rules let only http and https through to here.
        request = urllib.request.Request(self._url, headers={"User-Agent": "ptolemy", "Accept-Encoding": "identity"})  # noqa: S310
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        if part.size:
            request.add_header("Range", f"bytes={part.size}-")
            if part.validator:
                request.add_header("If-Range", part.validator)
        return self._opener.open(request, timeout=STALL)

    def _refused(self, part: Part, error: urllib.error.HTTPError) -> None:
        if error.code == 416 and part.size:  # the file is shorter now
            part.restart()
            raise _AgainError("the server has a shorter file now") from error
        if error.code in RETRIED:
            wait = error.headers.get("Retry-After", "")
            raise _AgainError(f"the server answers {error.code} {error.reason}", float(wait) if wait.isdigit() else 0.0) from error
        hint = ""
        if error.code in (401, 403):
            hint = (
                "; correct the source, or accept the model's licence with the publisher and set models_hf_token (hf://) or"
                " models_url_headers in the vault"
            )
        elif error.code == 404:
            hint = "; correct the source"
        raise FetchError(f"{shown(self._url)}: the server answers {error.code} {one_line(str(error.reason))}{hint}") from error

    def _accept(self, part: Part, status: int, headers: Message) -> None:
        """Take an answer's headers: is it the rest of our part, or the whole file?"""
        length = headers.get("Content-Length", "")
        validator = _validator(headers)
        if status == 206:
            given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            # Some servers and caches ignore If-Range; what they send then is the rest of another file.
            other = bool(part.validator and validator and validator != part.validator)
            total = int(given[2]) if given and given[2] != "*" else part.total
            if given is None or int(given[1]) != part.size or other or (part.total or total) != total:
                part.restart()
                raise _AgainError("the file has changed meanwhile, or the server sent another part than asked for")
            part.resumed = True
        else:
            part.restart()
            total = int(length) if length.isdigit() else None
        part.total, part.validator = total, validator or part.validator
        note = {"url": shown(self._url), "sha256": self._sha256, "total": part.total, "validator": part.validator}
        with disk():
            write_note(part.stream.name, note)
        check_room(part, self._url)

    def _receive(self, part: Part, answer: IO[bytes]) -> None:
        part.stream.seek(part.size)
        while block := answer.read(BLOCK):
            part.append(block)
            self._report(part.size, part.total)
            if time.monotonic() > self._deadline:
                raise _AgainError("it takes too long")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the secret headers go along only while scheme, host and port stay the same."""

    def __init__(self, url: str, secrets: Mapping[str, str]) -> None:
        self._origin, self._secrets = _origin(url), secrets

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, "redirects to something that is not HTTP", headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(newurl) == self._origin:
            for name, value in self._secrets.items():
                request.add_unredirected_header(name, value)
        return request


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """What fails in here is the disk's fault: an OSError becomes a DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError from error


def told(error: DiskError, part: Part, source: str) -> FetchError:
    """The message for what a disk refused."""
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno in NO_ROOM
    return no_room(part, source) if full else FetchError(f"{part.stream.name}: {cause}")


def check_room(part: Part, source: str) -> None:
    """Raise FetchError where the rest of a file cannot fit, before hours are spent on finding out."""
    if part.total is not None and part.total - part.size > free(part.stream.name) - SPARE:
        raise no_room(part, source)


def no_room(part: Part, source: str) -> FetchError:
    folder = os.path.dirname(part.stream.name)
    return FetchError(
        f"{folder}: no room for {shown(source)}: it has {_or_unknown(part.total)} bytes, of which {part.size} are there and kept; free are "
        f"{free(folder)}. Make room or set models_dir to a larger file system, and run the playbook again"
    )


def free(path: str) -> int:
    """Bytes that an ordinary account may still write to the file system of ``path``."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def noted(path: str) -> dict[str, Any]:
    """What the note of a part says (url, sha256, total in bytes or None, validator); empty where there is none."""
    try:
        with open(f"{path}.json", encoding="utf-8") as file:
            note = json.load(file)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def forget(path: str) -> None:
    """Remove the note of a part."""
    if os.path.lexists(f"{path}.json"):
        os.unlink(f"{path}.json")


def write_note(path: str, note: Mapping[str, Any]) -> None:
    """Write the note of a part."""
    temporary = f"{path}.json.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(note, file)
    os.replace(temporary, f"{path}.json")


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _validator(headers: Message) -> str:
    tag: str = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _or_unknown(number: Optional[int]) -> str:
    return "unknown" if number is None else str(number)

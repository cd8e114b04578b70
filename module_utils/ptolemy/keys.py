"""Keys of clients: one file, which is also the map that HAProxy reads. It holds hashes, never keys.

Each key has a line ``SHA-256 name:user:tier:scope:concurrent:per_minute:expires:speaks:origin``; one that may use only some services
has a further line ``SHA-256/service allowed`` for each of them. HAProxy reads the file when it starts or reloads; between, ``publish``
makes its running map equal to the file. Files are replaced in one step, under a lock, so that any number of writers may come at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from .errors import ConfigError
from .haproxy import HAProxy

DEFAULT_PATH = "/etc/ptolemy/keys.map"
INTERACTIVE, BATCH = TIERS = ("interactive", "batch")
SITE, LOCAL = "site", "local"  # origins: the inventory, and ``ptolemy keys`` on the gateway
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
SHORTEST = 16  # characters
LOCK_TIMEOUT = 5.0  # seconds
_HEADER = "# Hashes of clients' keys. Written by `ptolemy keys` and playbooks/keys.yml: do not edit.\n"


def backend_key(service: str, secret: str) -> str:
    """The key of one service's servers, as the gateway computes it too: who learns it knows neither the site's nor another service's."""
    return hmac.new(secret.encode(), service.encode(), "sha256").hexdigest()


@dataclass(frozen=True)
class Key:
    """What a key allows.

    Attributes:
        name: of the key, unique.
        sha256: of the key, in hexadecimal digits.
        user: whose it is. Limits are the user's, over all the keys of one.
        tier: ``interactive`` or ``batch``.
        services: the only ones that it may use; empty for all.
        concurrent: requests that its user may have at once; 0 for no limit.
        per_minute: requests that its user may send in a minute; 0 for no limit.
        expires: Unix time of its end; 0 for never.
        speaks_for_users: it may name the user that a request is for, in a header (Open WebUI).
        origin: ``site`` for one that the inventory declares, ``local`` for one made on the gateway.
    """

    name: str
    sha256: str = field(repr=False)
    user: str = ""
    tier: str = INTERACTIVE
    services: tuple[str, ...] = ()
    concurrent: int = 0
    per_minute: int = 0
    expires: int = 0
    speaks_for_users: bool = False
    origin: str = LOCAL

    def entries(self) -> Iterator[tuple[str, str]]:
        """Its lines in the map: keys and values."""
        scope, speaks = ("some" if self.services else "all"), ("others" if self.speaks_for_users else "self")
        values = (self.name, self.user, self.tier, scope, self.concurrent, self.per_minute, self.expires, speaks, self.origin)
        yield self.sha256, ":".join(map(str, values))
        for service in self.services:
            yield f"{self.sha256}/{service}", "allowed"

    def public(self) -> dict[str, Any]:
        """All of it but the hash."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "sha256"}


def new_secret() -> str:
    """A key that nobody can guess: 256 random bits."""
    return "sk-" + secrets.token_hex(32)


def fingerprint(secret: str) -> str:
    """The hash under which a key is kept. Keys are random, so that neither salt nor stretching adds anything."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check(key: Key, known_services: Iterable[str] = ()) -> Key:
    """Return the key, or say what is wrong with it.

    Raises:
        ConfigError: a field is out of its range; the message names it.
    """
    where = f"keys.{key.name}"
    for name, value in (("name", key.name), ("user", key.user)):
        if not NAME.fullmatch(value):
            raise ConfigError(f"{where}.{name}: {value!r} must be 1 to 64 letters, digits and . _ @ -, and begin with a letter or digit")
    if key.tier not in TIERS:
        raise ConfigError(f"{where}.tier: must be {' or '.join(TIERS)}, not {key.tier!r}")
    for name, number in (("concurrent", key.concurrent), ("per_minute", key.per_minute), ("expires", key.expires)):
        if not 0 <= number < 2**31:
            raise ConfigError(f"{where}.{name}: must be from 0 to 2147483647, not {number}")
    unknown = sorted(set(key.services) - set(known_services)) if known_services else []
    if unknown:
        raise ConfigError(f"{where}.services: there is no service {', '.join(unknown)}; there are {', '.join(sorted(known_services))}")
    return key


def parse(text: str, path: str) -> list[Key]:
    """Read a file of keys.

    Raises:
        ConfigError: a line cannot be read. Nobody would know what was lost, so none is guessed at.
    """
    lines: dict[str, str] = {}
    services: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        entry, _, value = line.partition(" ")
        sha256, slash, service = entry.partition("/")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not value:
            raise ConfigError(f"{path}: line {number} is not a key; restore the file, or remove it and run playbooks/keys.yml")
        if slash:
            services.setdefault(sha256, []).append(service)
        else:
            lines[sha256] = value
    keys = []
    for sha256, value in lines.items():
        try:
            name, user, tier, _, concurrent, per_minute, expires, speaks, origin = value.split(":")
            allowed = tuple(services.get(sha256, ()))
            limits = (int(concurrent), int(per_minute), int(expires))
        except ValueError as error:
            raise ConfigError(f"{path}: {value!r} is not a key; restore the file, or remove it and run playbooks/keys.yml") from error
        keys.append(Key(name, sha256, user, tier, allowed, *limits, speaks == "others", origin))
    return sorted(keys, key=lambda key: key.name)


def render(keys: Iterable[Key]) -> str:
    """The text of a file of keys."""
    return _HEADER + "".join(f"{entry} {value}\n" for key in sorted(keys, key=lambda key: key.name) for entry, value in key.entries())


def declared(keys: Sequence[Key], wanted: Sequence[Key]) -> list[Key]:
    """What the keys should be where the inventory declares ``wanted``: those made on the gateway stay.

    Raises:
        ConfigError: two keys share a name or a secret.
    """
    after = [*(key for key in keys if key.origin != SITE), *wanted]
    for what, values in (("name", [key.name for key in after]), ("secret", [key.sha256 for key in after])):
        for key, value in zip(after, values):
            if values.count(value) > 1:
                raise ConfigError(f"keys.{key.name}: another key has the same {what}; give each its own, or revoke the other one")
    return sorted(after, key=lambda key: key.name)


def added(present: Sequence[Key], key: Key) -> list[Key]:
    """The keys with one more. Raises ConfigError where the name is taken."""
    if any(known.name == key.name for known in present):
        raise ConfigError(f"keys.{key.name}: there is such a key already; rotate or revoke it, or take another name")
    return sorted([*present, key], key=lambda known: known.name)


def rotated(present: Sequence[Key], name: str, sha256: str, until: int) -> list[Key]:
    """The keys with another secret for one; the old one stays until ``until``, as ``NAME.old``, or ends now where that is 0.

    Raises:
        ConfigError: there is no such key, or it is the inventory's.
    """
    key = _own(present, name)
    rest = [known for known in present if known.name not in (name, f"{name}.old")]
    old = [replace(key, name=f"{name}.old", expires=min(until, key.expires or until))] if until else []
    return sorted([*rest, *old, replace(key, sha256=sha256)], key=lambda known: known.name)


def revoked(present: Sequence[Key], name: str) -> list[Key]:
    """The keys without one. Raises ConfigError as ``rotated``."""
    key = _own(present, name)
    return [known for known in present if known is not key]


def _own(present: Sequence[Key], name: str) -> Key:
    for key in present:
        if key.name == name:
            if key.origin == SITE:
                raise ConfigError(f"keys.{name}: the inventory declares it; change ptolemy_keys there and run playbooks/keys.yml")
            return key
    raise ConfigError(f"keys.{name}: there is no such key; ptolemy keys list shows them")


def unix_time(day: str, where: str) -> int:
    """Unix time of the beginning of a day, ``2027-01-31`` by this machine's clock; digits are Unix time already, nothing is 0.

    Raises:
        ConfigError: it is neither; ``where`` is for the message.
    """
    if not day:
        return 0
    try:
        return int(day) if day.isdigit() else int(time.mktime(time.strptime(day, "%Y-%m-%d")))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: must be a day as 2027-01-31, not {day!r}") from error


def load(path: str) -> list[Key]:
    """The keys of a file.

    Raises:
        ConfigError: it cannot be read, or is not there: that is no reason to take everybody's key away.
    """
    try:
        with open(path, encoding="ascii") as file:
            return parse(file.read(), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; run site.yml, which makes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}; run this as root on the gateway") from error


def change(path: str, edit: Callable[[list[Key]], Sequence[Key]]) -> Sequence[Key]:
    """Replace the file by what ``edit`` makes of its keys, in one step; its owner, group and mode stay.

    Raises:
        ConfigError: as ``load``; or the file cannot be written. Then nothing changed.
    """
    with _lock(path):
        before = load(path)
        after = edit(before)
        if after != before:
            try:
                _replace(path, render(after))
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}; run this as root on the gateway") from error
        return after


def publish(path: str, haproxy: HAProxy) -> int:
    """Make the map of the running HAProxy equal to the file. Returns how many entries changed.

    Raises:
        ConfigError: as ``load``.
        ObservationError, ChangeError: HAProxy gives no answer, or refused a change.
    """
    with _lock(path):
        wanted: Mapping[str, str] = dict(entry for key in load(path) for entry in key.entries())
        return haproxy.keep_map(path, wanted)


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """One at a time, and not for ever. The file itself is locked, since strangers may not open it, and anew where it was replaced."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: there is no such file; run site.yml, which makes it") from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; run this as root on the gateway") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield
                return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"{path}: another command has held it for {LOCK_TIMEOUT:g} s; find it with: fuser -v {path}") from error
        finally:
            os.close(descriptor)
        time.sleep(0.02)


def _replace(path: str, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".keys-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            known = os.stat(path)
            os.fchown(file.fileno(), known.st_uid, known.st_gid)
            os.fchmod(file.fileno(), known.st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise

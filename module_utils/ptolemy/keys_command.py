"""``ptolemy keys``: add, list, rotate and revoke clients' keys on the gateway. They are valid, or not, when the command returns."""

from __future__ import annotations

import argparse
import time
from typing import Sequence

from . import keys
from .config import Config
from .haproxy import HAProxy
from .keys import Key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="make a key; it is printed once, and kept nowhere")
    add.add_argument("name", help="of the key, unique")
    add.add_argument("--user", help="whose it is; limits are a user's, over all of their keys (default: its name)")
    add.add_argument("--tier", choices=keys.TIERS, default=keys.INTERACTIVE)
    add.add_argument("--service", action="append", default=[], help="the only ones that it may use; repeat it (default: all)")
    add.add_argument("--concurrent", type=int, default=0, metavar="N", help="requests that its user may have at once (default: no limit)")
    add.add_argument("--per-minute", type=int, default=0, metavar="N", help="requests that its user may send in a minute")
    add.add_argument("--expires", default="", metavar="DAY", help="the day of its end, as 2027-01-31 (default: never)")
    add.add_argument("--speaks-for-users", action="store_true", help="it may name the user of a request in a header (Open WebUI)")
    verbs.add_parser("list", help="names, users and limits of all keys")
    rotate = verbs.add_parser("rotate", help="give a key a new secret, which is printed once")
    rotate.add_argument("name")
    rotate.add_argument("--overlap", type=int, default=0, metavar="SECONDS", help="how long the old one stays valid beside it (default: 0)")
    revoke = verbs.add_parser("revoke", help="end a key")
    revoke.add_argument("name")


def run(given: argparse.Namespace, config: Config) -> Sequence[str]:
    """Run one command. Returns the lines to print.

    Raises:
        PtolemyError: a value is wrong, or there is no such key; then nothing changed. Or HAProxy gives no answer.
    """
    path = config.site.keys_file
    if given.verb == "list":
        return _table(keys.load(path))
    secret = keys.new_secret()
    if given.verb == "add":
        key = Key(
            given.name,
            keys.fingerprint(secret),
            given.user or given.name,
            given.tier,
            tuple(given.service),
            given.concurrent,
            given.per_minute,
            keys.unix_time(given.expires, "--expires"),
            given.speaks_for_users,
        )
        added = keys.check(key, config.services)
        keys.change(path, lambda present: keys.added(present, added))
    elif given.verb == "rotate":
        until = int(time.time()) + given.overlap if given.overlap else 0
        keys.change(path, lambda present: keys.rotated(present, given.name, keys.fingerprint(secret), until))
    else:
        keys.change(path, lambda present: keys.revoked(present, given.name))
    keys.publish(path, HAProxy(config.site.haproxy_socket))
    return [f"revoked {given.name}"] if given.verb == "revoke" else [secret]


def _table(present: Sequence[Key]) -> list[str]:
    rows = [("NAME", "USER", "TIER", "SERVICES", "AT ONCE", "A MINUTE", "EXPIRES", "FROM")]
    for key in present:
        expires = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.expires)) if key.expires else "never"
        if key.expires and key.expires <= time.time():
            expires += " (over)"
        user = key.user + (" and its users" if key.speaks_for_users else "")
        limits = (str(key.concurrent or "-"), str(key.per_minute or "-"))
        rows.append((key.name, user, key.tier, ",".join(key.services) or "all", *limits, expires, key.origin))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]

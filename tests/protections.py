"""Takes the gateway's protections out of its configuration, one at a time, and says which of them no test would miss.

    make test-protections                                     about five minutes; not a part of `make test`
    .venv/bin/python tests/protections.py "weak ciphers" ...  only some

Each runs in a copy of the checkout. It fails if a protection could go without a failing test, or is not found in the template.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path("roles/haproxy/templates")
# What the tests of the gateway need of the checkout.
NEEDED = ("ansible.cfg", "bench", "inventory", "library", "module_utils", "plugins", "pyproject.toml", "roles", "tests")
MOST_SECONDS = 300
AFFINITY = "affinity.cfg.j2"


class Protection(NamedTuple):
    """One protection.

    Attributes:
        name: for the reader.
        text: a part of the template that stands there once, in the line that goes.
        tests: pytest's -k for the tests of which one must fail then.
        instead: what the text becomes, where only a part of the line goes.
        template: which one.
    """

    name: str
    text: str
    tests: str
    instead: str | None = None
    template: str = "haproxy.cfg.j2"


PROTECTIONS = (
    Protection("no websockets", "__haproxy_no_websocket", "websockets"),
    Protection("size of headers", "__haproxy_headers_too_large", "large_headers"),
    Protection("headers drop by drop", "timeout http-request", "drop_by_drop"),
    # Not ssl-min-ver: HAProxy's default and the ciphers refuse old TLS, too.
    Protection("weak ciphers", "ssl-default-bind-ciphers", "weak_ciphers"),
    Protection("a key is needed", "deny_status 401 unless", "without_a_valid_key"),
    Protection("a key's end", "__haproxy_expired", "expired_key"),
    Protection("a key's services", "__haproxy_not_allowed", "kept_to_its_services"),
    Protection("a user's requests at once", "__haproxy_too_many_at_once", "more_at_once"),
    Protection("a user's requests a minute", "__haproxy_too_many_a_minute", "more_a_minute"),
    Protection("who may speak for others", "{ var(txn.key),field(8,:) -m str others } ", "nobody_else_does", ""),
    Protection("inner headers of a client", "http-request del-header x-ptolemy- -m beg\n", "inner_headers"),
    Protection("headers in a prompt's id", ",regsub([^0-9jpr],,g)", "add_headers", ""),
    Protection("prompts of a busy instance", "force-persist", "too_busy", template="comfyui.cfg.j2"),
    Protection("prompts over a reload", "use_backend pictures if { var(txn.instance)", "known_who_has_it"),
    Protection("a forged operator's key", "http-request del-header x-ptolemy- -m beg if", "forged_header"),
    Protection("the status page's policy", 'hdr Content-Security-Policy "{{ __haproxy_status_policy }}" ', "lets_nothing_else_run", ""),
    Protection("a crowd before ptolemyd", "http-request cache-use status", "crowd_of_visitors"),
    Protection("a ptolemyd that hangs", "timeout server 3s", "ptolemyd_that_hangs"),
    Protection("headers of Open WebUI", "del-header x-openwebui-", "inner_headers or open_webui"),
    Protection("the user's name", "del-header {{ haproxy_user_header }}", "whatever_its_name"),
    Protection("a client's key goes no further", "del-header x-api-key", "anthropics or servers_get"),
    Protection("a service's own key", 'set-header Authorization "Bearer', "servers_get_their_key"),
    Protection("nothing but the API", "deny_status 404 unless", "nothing_but"),
    Protection("size of bodies", "__haproxy_too_large", "beyond_the_limit"),
    Protection("a model beyond the buffer", "deny_status 413 if", "beyond_the_buffer"),
    Protection("a client that left", "option abortonclose", "test_leaving"),
    Protection("no server's connection twice", "option http-server-close", "not_reused"),
    Protection("a user's place in the queue", "set-priority-offset var(txn.behind)", "does_not_keep_out"),
    Protection("a batch's place in the queue", "set-priority-offset int(", "through_the_gate"),
    Protection("a user's own conversations", "concat(/,txn.user,/),", "conversations_of_their_own", "", AFFINITY),
    Protection("a batch is no conversation", "acl asks var(txn.user) -m found", "no_conversation", "acl asks always_true", AFFINITY),
    Protection("a conversation's server", "use-server %[var(txn.home)]", "stays_and", None, AFFINITY),
    Protection("inner headers of a server", "http-response del-header x-ptolemy-", "where_it_came_from"),
)


def without(protection: Protection) -> str:
    """Its template without this protection.

    Raises:
        SystemExit: its text does not stand there exactly once.
    """
    lines = (ROOT / TEMPLATES / protection.template).read_text(encoding="utf-8").splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if protection.text in line]
    if len(found) != 1:
        raise SystemExit(f"{protection.template}: {protection.text!r} stands in {len(found)} lines, not in one: mend tests/protections.py")
    line = lines[found[0]]
    lines[found[0]] = "" if protection.instead is None else line.replace(protection.text, protection.instead)
    return "".join(lines)


def missed(checkout: Path, protection: Protection) -> str:
    """Why no test misses the protection that the checkout lacks; empty if one does."""
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gateway", "-k", protection.tests]
    done = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    failed = any(line.startswith("FAILED ") for line in done.stdout.splitlines())
    # An error is a broken configuration or a missing test: it says nothing of the protection.
    return "" if done.returncode == 1 and failed else f"{done.stdout[-2000:]}{done.stderr[-2000:]}"


def main() -> int:
    chosen = [protection for protection in PROTECTIONS if protection.name in (sys.argv[1:] or [protection.name])]
    if unknown := set(sys.argv[1:]) - {protection.name for protection in chosen}:
        raise SystemExit(f"no such protection: {', '.join(sorted(unknown))}; there are: {', '.join(one.name for one in PROTECTIONS)}")
    changed = [without(protection) for protection in chosen]
    bad = []
    with tempfile.TemporaryDirectory(prefix="ptolemy-protections-") as folder:
        checkout = Path(folder)
        for name in NEEDED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, checkout / name)
        for number, (protection, text) in enumerate(zip(chosen, changed), 1):
            began = time.monotonic()
            place = TEMPLATES / protection.template
            (checkout / place).write_text(text, encoding="utf-8")
            why = missed(checkout, protection)
            shutil.copy2(ROOT / place, checkout / place)
            print(
                f"[{number}/{len(chosen)}] {protection.name}: {'NOT MISSED' if why else 'missed'}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            if why:
                print(why, flush=True)
                bad.append(protection.name)
    if bad:
        print(f"no test failed without: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

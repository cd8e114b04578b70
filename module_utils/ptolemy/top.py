"""``ptolemy top``: the status page in a terminal, painted anew every two seconds. Plain ANSI; one frame where there is no terminal."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import sys
import termios
import time
import tty
import urllib.error
import urllib.request
from typing import Any, Callable, Iterator, Mapping, Sequence

from . import page, status
from .config import Config
from .errors import PtolemyError
from .watch import users

Row = Mapping[str, Any]

EVERY = 2.0  # seconds
PATIENCE = 5.0  # seconds for an answer
DEFAULT_URL = "http://127.0.0.1:9177/status.json"
_BARS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"good": "32", "busy": "33", "bad": "31", "unknown": "2"}
_LEVELS = {page.ANSWERING: "good", page.ROLLING: "good", page.STARTING: "busy", page.FAILING: "bad"}
_MOST_USERS = 10
Paint = Callable[[str, str], str]


def fetch(url: str) -> dict[str, Any]:
    """The document of the status page.

    Raises:
        PtolemyError: nobody answers there, or with something else.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a site's http_proxy is not for loopback
    try:
        with opener.open(url, timeout=PATIENCE) as answer:
            shown = json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        raise PtolemyError(f"{url} answers {error.code}: see systemctl status ptolemyd") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise PtolemyError(f"{url}: {getattr(error, 'reason', error)}; see systemctl status ptolemy-exporter") from error
    if not isinstance(shown, dict) or shown.get("version") != page.VERSION:
        raise PtolemyError(f"{url} is not a status of this version; run site.yml, and then the command on the gateway")
    return shown


def with_details(shown: dict[str, Any], config: Config, now: float) -> dict[str, Any]:
    """The document with what operators see, where the caller may read the daemon's files."""
    known = users(config.site.users_file, now)
    if known is None:
        return shown
    try:
        return page.for_operators(shown, status.read(config.site.status_file), known)
    except (PtolemyError, KeyError):
        return shown


def frame(shown: Row, width: int, paint: Paint = lambda text, _: text) -> Iterator[str]:
    """The lines of one frame, each at most ``width`` characters wide.

    Args:
        shown: the document.
        width: of the terminal.
        paint: gives a text a colour, by the number of ANSI.
    """
    for text, colour in _lines(shown, width):
        # A log's words may hold anything; in a terminal, control characters would be obeyed.
        plain = "".join(character if character.isprintable() else "?" for character in text)
        cut = plain if len(plain) <= width else plain[: max(width - 1, 0)] + "…"
        yield paint(cut, colour) if colour else cut


def _lines(shown: Row, width: int) -> Iterator[tuple[str, str]]:
    level = shown["headline"]["level"]
    at = time.strftime("%H:%M:%S", time.localtime(shown["seen_at"]))
    yield f"● {shown['headline']['text']}", f"1;{_COLOURS[level]}"
    reason = (shown["stale"] or {}).get("reason", "")
    yield f"  as of {at}{f': {reason}' if reason else ''}", "2"
    for service in shown["services"]:
        yield "", ""
        yield f"{service['service']}: {service['state']}", f"1;{_COLOURS.get(_LEVELS.get(service['state'], ''), '1')}"
        yield f"  {service['sentence']}", ""
        if service["rollout"]:
            yield (
                f"  rollout of {service['rollout']['model']}, revision {service['rollout']['revision']}: {service['rollout']['step']}",
                "33",
            )
        yield f"  {_slots(service, width)}", ""
        yield from ((f"  {line}", "") for line in _queues(service))
        yield from ((f"  {line}", "") for line in _charts(service, width - 2))
        yield from ((f"  {line}", "") for line in _replicas(service))
        yield from ((f"  job {it['job']} failed on {it['node'] or 'no node'}: {it['reason']}", "31") for it in service.get("failures", ()))
    if shown.get("users"):
        yield "", ""
        yield "users: running or waiting, in the last minute", "1"
        yield from ((f"  {it['user']}: {it['requests']}, {it['per_minute']}", "") for it in shown["users"][:_MOST_USERS])
    for trouble in shown.get("troubles", ()):
        yield f"note: {trouble}", "33"


def _slots(service: Row, width: int) -> str:
    busy, all_slots = service["slots"]["busy"], service["slots"]["all"]
    room = max(min(width // 3, 40), 8)
    filled = round(room * busy / all_slots) if all_slots else 0
    return f"slots {'█' * filled}{'░' * (room - filled)} {busy} of {all_slots} busy"


def _queues(service: Row) -> Iterator[str]:
    for tier, queue in service["tiers"].items():
        wait = queue["expected_wait"]
        about = "" if wait is None else ", a new one starts at once" if not wait else f", a new one waits about {page.span(wait)}"
        oldest = f", the first for {page.span(queue['oldest_wait'])}" if queue["queued"] else ""
        yield f"{tier}: {queue['queued']} waiting{about}{oldest}"


def _charts(service: Row, width: int) -> Iterator[str]:
    for key, label, words in (
        ("requests_per_s", "requests", _rate),
        ("tokens_per_s", "tokens", _rate),
        ("first_token_s", "first token", _brief),
    ):
        now = service["lately"][key]
        head = f"{label:<12}{'-' if now is None else words(now):>9} "
        yield head + sparkline(service["hour"][key], width - len(head))


def _rate(value: float) -> str:
    return f"{value:.3g}/s"


def _brief(seconds: float) -> str:
    """A short time, of which a second is long."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 10 else page.span(seconds)


def sparkline(values: Sequence[float | None], room: int) -> str:
    """The newest values as bars, at most ``room`` of them; a blank for what is not known."""
    newest = list(values)[-room:] if room > 0 else []
    most = max((value for value in newest if value is not None), default=0.0)
    return "".join(" " if value is None else _BARS[max(round(value / most * 8), 1) if most and value else 1] for value in newest)


def _replicas(service: Row) -> Iterator[str]:
    for it in service["replicas"]:
        gpus = f" gpu {','.join(map(str, it['gpus']))}" if it["gpus"] else ""
        kinds = [word for word, so in (("canary", it["canary"]), ("old revision", it["old"]), ("extra", it["opportunistic"])) if so]
        kind = f" ({', '.join(kinds)})" if kinds else ""
        left = f", {page.span(it['left'])} left" if it["left"] is not None else ""
        busy = f", {it['slots']['busy']} of {it['slots']['all']} slots busy" if it["slots"]["all"] else ""
        where = f" on {it['node']}{gpus}" if it["node"] else ""
        why = f" {it['why']}" if it.get("why") else ""
        yield f"job {it['job']} {it['state']}{kind}{where}{busy}{left}{why}"


def main(config: Config, url: str, once: bool) -> int:
    """Show frames until q or Ctrl-C; one where there is no terminal, or ``once``.

    Raises:
        PtolemyError: as ``fetch``, for the first frame or the only one.
    """

    def look() -> dict[str, Any]:
        return with_details(fetch(url), config, time.time())

    shown = look()
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("\n".join(frame(shown, shutil.get_terminal_size((100, 24)).columns)))
        return 0
    with _screen(), contextlib.suppress(KeyboardInterrupt):
        while True:
            _show(shown)
            if _pressed_q(EVERY):
                return 0
            try:
                shown = look()
            except PtolemyError as error:
                since = time.strftime("%H:%M", time.localtime(shown["seen_at"]))
                text = f"The status is not known since {since}: {error}"
                shown = {**shown, "headline": {"level": "unknown", "text": text}}
    return 0


def _show(shown: Row) -> None:
    width, height = shutil.get_terminal_size()
    colours = "NO_COLOR" not in os.environ
    lines = list(frame(shown, width, (lambda text, colour: f"\x1b[{colour}m{text}\x1b[0m") if colours else lambda text, _: text))
    if len(lines) > height:
        lines[height - 1 :] = ["… make the window higher to see the rest"[:width]]
    sys.stdout.write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
    sys.stdout.flush()


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """A screen of its own, without a cursor, and keys at once; all is put back, whatever happens."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed_q(seconds: float) -> bool:
    """Wait for so long, or until somebody presses a key: q ends."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    # Read past Python's own buffer: what select does not see there would wait for the next key.
    return bool(ready) and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"")

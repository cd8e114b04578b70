"""``ptolemy usage``: a month's use as a table, CSV or plot, out of one small file a day and, for what no file has yet, the journal."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import re
import subprocess
from dataclasses import astuple
from typing import Any, Iterator, Sequence

from . import usage_plot
from .errors import PtolemyError
from .files import put
from .usage import COUNTS, HEADER, KEY, SHARES, Tally, Use, summed

DIRECTORY = "/var/lib/ptolemy/usage"
UNITS = ("haproxy.service", "ptolemy-exporter.service")  # whose lines are believed
MOST_DAYS = 31  # that are read from the journal at once
_DAY = datetime.timedelta(days=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--month", default="", metavar="YYYY-MM", help="which one (default: the present one)")
    parser.add_argument("--by", choices=("service", "user", "tier", "day"), default="service", help="one row each (default: service)")
    parser.add_argument("--csv", default="", metavar="FILE", help="write each day, service, user and tier there; - for standard output")
    parser.add_argument("--plot", default="", metavar="FILE", help="write the GPU hours of each day there, as SVG")
    parser.add_argument("--collect", action="store_true", help="put the days that are over into files, and do no more (a timer does)")
    parser.add_argument("--keep", type=int, default=800, metavar="DAYS", help="with --collect: remove files that are older (default: 800)")
    parser.add_argument("--directory", default=DIRECTORY, help=f"of the files (default: {DIRECTORY})")


def run(given: argparse.Namespace, today: datetime.date) -> Sequence[str]:
    """Run the command. Returns the lines to print.

    Raises:
        PtolemyError: a value is wrong, a file cannot be read or written, or the journal cannot be read.
    """
    if given.collect:
        return collect(given.directory, given.keep, today)
    first = _month(given.month) if given.month else today.replace(day=1)
    rows = month(given.directory, first, today)
    if given.plot:
        _write(given.plot, usage_plot.gpu_hours(rows, first), 0o644)
    if given.csv == "-":
        return [",".join(HEADER), *(",".join(_cells(row)) for row in rows)]
    if given.csv:
        write(given.csv, rows)
    return [*table(rows, given.by), *(f"written: {path}" for path in (given.csv, given.plot) if path)]


def collect(directory: str, keep: int, today: datetime.date) -> list[str]:
    """Write the file of each day that is over and has none yet, and remove old ones. Returns what was done."""
    since = _first_open_day(directory, today)
    tally = Tally()
    for at, message in journal(since, today):
        tally.add(at, message)
    days: dict[str, list[Use]] = {}
    for row in tally.rows():
        days.setdefault(row.day, []).append(row)
    for day, rows in sorted(days.items()):
        write(os.path.join(directory, f"{day}.csv"), rows)
    oldest = (today - keep * _DAY).isoformat()
    old = [day for day in _days(directory) if day < oldest]
    for day in old:
        os.remove(os.path.join(directory, f"{day}.csv"))
    done = [f"{day}: {sum(row.requests for row in rows)} requests" for day, rows in sorted(days.items())]
    return [*done, *(f"{day}: removed" for day in old)]


def month(directory: str, first: datetime.date, today: datetime.date) -> list[Use]:
    """The rows of a month: its files, and the journal for the days behind the last of all files."""
    end = (first + 31 * _DAY).replace(day=1)
    rows = [row for day in _days(directory) if first.isoformat() <= day < end.isoformat() for row in read(directory, day)]
    since, until = max(_first_open_day(directory, today), first), min(end, today + _DAY)
    if since < until:
        tally = Tally()
        for at, message in journal(since, until):
            tally.add(at, message)
        rows += tally.rows()
    return rows


def recent(directory: str, days: int, today: datetime.date) -> list[Use]:
    """The rows of the last days, today among them, of this month and the one before."""
    first, since = today.replace(day=1), (today - days * _DAY).isoformat()
    months = {(first - _DAY).replace(day=1), first}
    return [row for one in sorted(months) for row in month(directory, one, today) if row.day > since]


def _first_open_day(directory: str, today: datetime.date) -> datetime.date:
    """The first day that no file has, and that the journal may still know."""
    last = max(_days(directory), default="")
    begin = datetime.date.fromisoformat(last) + _DAY if last else datetime.date.min
    return max(begin, today - MOST_DAYS * _DAY)


def _days(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PtolemyError(f"{directory}: {error.strerror}; run this as root") from error
    return sorted(name[:-4] for name in names if re.fullmatch(r"\d{4}-\d\d-\d\d\.csv", name))


def _month(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(f"{text}-01")
    except ValueError as error:
        raise PtolemyError(f"--month {text}: a month, as 2026-11") from error


def journal(since: datetime.date, until: datetime.date) -> Iterator[tuple[float, str]]:
    """The lines of HAProxy and of the exporter from the beginning of one day to that of another: Unix time, and text.

    Raises:
        PtolemyError: journalctl fails.
    """
    begin, end = (datetime.datetime(day.year, day.month, day.day).timestamp() for day in (since, until))
    command = ["journalctl", "--quiet", "--output=json", "--output-fields=MESSAGE", f"--since=@{begin:.0f}", f"--until=@{end:.0f}"]
    matches = " + ".join(f"_SYSTEMD_UNIT={unit}" for unit in UNITS).split()
    try:
        process = subprocess.Popen([*command, *matches], stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise PtolemyError(f"journalctl: {error.strerror}") from error
    with process:
        for line in process.stdout or ():
            entry = json.loads(line)
            at, message = int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry.get("MESSAGE")
            if at < end and isinstance(message, str):  # bytes that are no text come as numbers
                yield at, message
    if process.returncode:
        raise PtolemyError(f"journalctl ended with status {process.returncode}; run this as root, or as a member of systemd-journal")


def read(directory: str, day: str) -> Iterator[Use]:
    """The rows of a day's file.

    Raises:
        PtolemyError: it cannot be read, or is not what ``write`` wrote.
    """
    path = os.path.join(directory, f"{day}.csv")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values: dict[str, Any] = {name: row[name] for name in KEY}
                values.update({name: int(row[name]) for name in COUNTS})
                values.update({name: float(row[name]) for name in SHARES})
                yield Use(**values)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PtolemyError(f"{path}: cannot be read ({error}); remove it, and the journal is read again as far as it goes") from error


def write(path: str, rows: Sequence[Use]) -> None:
    """Replace a CSV file in one step; it names people, so others may not read it.

    Raises:
        PtolemyError: it cannot be written.
    """
    lines = [",".join(HEADER), *(",".join(_cells(row)) for row in rows)]
    _write(path, "\n".join(lines) + "\n", 0o640)


def _write(path: str, text: str, mode: int) -> None:
    try:
        put(path, text, mode)
    except OSError as error:
        raise PtolemyError(f"{path}: {error.strerror}") from error


def _cells(row: Use) -> list[str]:
    words = [f'"{word}"' if re.search(r"[,\"\s]", word) else word for word in (text.replace('"', '""') for text in astuple(row)[:4])]
    return [*words, *map(str, astuple(row)[4:8]), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in astuple(row)[8:])]


def table(rows: Sequence[Use], by: str) -> Iterator[str]:
    """Sums for people."""
    if not rows:
        yield "nothing was used"
        return
    sums = summed(rows, by)
    if by == "day":
        sums.sort(key=lambda use: use.day)
    width = max(len(by), *(len(getattr(use, by) or "(nobody)") for use in sums))
    yield f"{by:<{width}} {'requests':>10} {'failed':>8} {'slot hours':>11} {'GPU hours':>10} {'tokens read':>13} {'generated':>12}"
    for use in sums:
        yield (
            f"{getattr(use, by) or '(nobody)':<{width}} {use.requests:>10,} {use.failed:>8,} {use.slot_seconds / 3600:>11.2f}"
            f" {use.gpu_hours:>10.2f} {use.tokens_read:>13,.0f} {use.tokens_generated:>12,.0f}"
        )

"""Who used how much: requests by their lines, GPUs and tokens shared by slot time; days in files, the rest in the journal."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import stat
import xml.dom.minidom

import pytest

from ptolemy import usage_command
from ptolemy.errors import PtolemyError
from ptolemy.trends import Tokens, Trends
from ptolemy.usage import HEADER, SPAN, Spending, Tally, Use, slot_seconds, summed

TODAY = datetime.date(2026, 11, 25)


def at(day, hour=12):
    return datetime.datetime.combine(day, datetime.time(hour)).timestamp()


def request(user="alice", tier="interactive", service="demo", status=200, seconds=10.0, **more):
    line = {"request": "1", "user": user, "tier": tier, "service": service, "status": status, "bytes_in": 100, "bytes_out": 1000}
    times = {"receive_ms": "1", "queue_ms": "2000", "inner_queue_ms": "-", "connect_ms": "1", "first_byte_ms": "50"}
    return json.dumps({**line, **times, "total_ms": str(int(2002 + seconds * 1000)), "flags": "----", **more})


def spent(service="demo", day=TODAY, hours=3.0, read=300, generated=600):
    begin = at(day, 0)
    return json.dumps(
        {"spent": service, "from": begin, "until": begin + SPAN, "gpu_seconds": hours * 3600, "read": read, "generated": generated}
    )


def tally(*lines, day=TODAY):
    found = Tally()
    for line in lines:
        found.add(at(day), line)
    return found.rows()


# ------------------------------------------------------------------------------------------------------------------ adding up
def test_what_a_service_spent_is_shared_by_the_time_that_requests_had_a_slot():
    alice, bob = tally(request("alice", seconds=10), request("alice", seconds=10), request("bob", "batch", seconds=40), spent(hours=3))
    assert (alice.user, alice.requests, alice.slot_seconds) == ("alice", 2, 20.0)
    assert (alice.gpu_hours, alice.tokens_read, alice.tokens_generated) == pytest.approx((1, 100, 200))
    assert (bob.tier, bob.gpu_hours, bob.bytes_out) == ("batch", pytest.approx(2), 1000)


def test_one_service_pays_nothing_for_another_one():
    rows = tally(request("alice", service="demo"), request("bob", service="big"), spent("big", hours=5))
    assert {row.user: row.gpu_hours for row in rows} == {"alice": 0, "bob": 5}


def test_what_nobody_used_is_nobodys():
    (row,) = tally(spent(hours=24, read=0, generated=0))
    assert (row.user, row.tier, row.requests, row.gpu_hours) == ("", "", 0, 24)


def test_a_batch_requests_wait_behind_the_gate_is_no_slot_time():
    line = json.loads(request(seconds=10, inner_queue_ms="4000"))
    assert slot_seconds(line) == pytest.approx(6)


@pytest.mark.parametrize(
    ("more", "failed"),
    [({}, 0), ({"status": 503}, 1), ({"flags": "CD--"}, 1), ({"status": 429, "first_byte_ms": "-1"}, 1), ({"status": 201}, 0)],
)
def test_what_was_refused_or_broken_off_has_failed(more, failed):
    (row,) = tally(request(**more))
    assert (row.requests, row.failed) == (1 - failed, failed)


def test_a_request_that_never_had_a_slot_costs_nothing():
    assert slot_seconds(json.loads(request(queue_ms="-1", connect_ms="-1", first_byte_ms="-1"))) == 0


@pytest.mark.parametrize(
    "line", ["", "Proxy api stopped", "{", '{"request": 1}', "[]", request(user="-"), request(service="-"), '{"spent": "demo"}']
)
def test_other_lines_say_nothing(line):
    assert tally(line) == []


def test_the_largest_come_first_in_a_sum():
    rows = tally(request("alice", seconds=1), request("bob", seconds=9), request("bob", service="big"), spent(hours=10))
    assert [(use.user, round(use.gpu_hours, 6), use.requests) for use in summed(rows, "user")] == [("bob", 9, 2), ("alice", 1, 1)]


# ------------------------------------------------------------------------------------------------------- the exporter's lines
def seen(now, gpus):
    row = {"service": "demo", "arrived": 0, "in_flight": 0, "queued": 0, "tiers": {}, "servers": [], "replicas": [], "gpus": gpus}
    return {"observed_at": now, "stale_reason": "", "services": [row]}


def test_each_span_is_told_once_and_the_rest_at_the_end():
    trends, spending, said = Trends(), Spending(0.0), []
    for second in range(0, 721):
        trends.add(seen(float(second), gpus=2))
        if second == 100:
            trends.of("demo").count(100.0, Tokens(generated=7, read=11))
        said += spending.lines(trends, float(second))
    said += spending.lines(trends, 720.0, last=True)
    told = [json.loads(line) for line in said]
    assert [(one["from"], one["until"]) for one in told] == [(0, 300), (300, 600), (600, 780)]
    assert sum(one["gpu_seconds"] for one in told) == pytest.approx(1440)
    assert [(one["read"], one["generated"]) for one in told] == [(11, 7), (0, 0), (0, 0)]


def test_a_service_that_has_no_gpu_is_not_told_of():
    trends, spending = Trends(), Spending(0.0)
    for second in range(0, 400):
        trends.add(seen(float(second), gpus=0))
    assert list(spending.lines(trends, 400.0)) == []


# ----------------------------------------------------------------------------------------------------------------- the command
@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A gateway with a journal of its own: ``journal.json`` in the form of journalctl, which gives those of the wanted time."""
    program = tmp_path / "journalctl"
    program.write_text(
        f"#!/usr/bin/env python3\nimport json, sys\n"
        f"wanted = [float(word.split('@')[1]) for word in sys.argv if '@' in word]\n"
        f"for line in open({str(tmp_path / 'journal.json')!r}):\n"
        f"    if wanted[0] <= int(json.loads(line)['__REALTIME_TIMESTAMP']) / 1e6 <= wanted[1]: print(line, end='')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    class Machine:
        directory = tmp_path / "usage"

        def __init__(self):
            self.directory.mkdir()
            self.entries = []

        def log(self, day, *lines):
            self.entries += [{"__REALTIME_TIMESTAMP": str(int(at(day) * 1e6)), "MESSAGE": line} for line in lines]
            (tmp_path / "journal.json").write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

        def run(self, *words, today=TODAY):
            parser = argparse.ArgumentParser()
            usage_command.add_arguments(parser)
            return list(usage_command.run(parser.parse_args([*words, "--directory", str(self.directory)]), today))

    return Machine()


def yesterday(days=1):
    return TODAY - datetime.timedelta(days=days)


def test_days_that_are_over_become_files_and_the_present_one_is_read_from_the_journal(machine):
    machine.log(yesterday(2), request("alice"))
    machine.log(yesterday(), request("bob"), request("bob"))
    machine.log(TODAY, request("carol"))
    assert machine.run("--collect") == [f"{yesterday(2)}: 1 requests", f"{yesterday()}: 2 requests"]
    assert sorted(path.name for path in machine.directory.iterdir()) == [f"{yesterday(2)}.csv", f"{yesterday()}.csv"]
    shown = machine.run("--csv", "-")
    assert [(row["day"], row["user"], row["requests"]) for row in csv.DictReader(shown)] == [
        (str(yesterday(2)), "alice", "1"),
        (str(yesterday()), "bob", "2"),
        (str(TODAY), "carol", "1"),
    ]


def test_a_day_is_counted_once_however_often_it_is_collected(machine):
    machine.log(yesterday(), request("bob"))
    machine.run("--collect")
    assert machine.run("--collect") == []
    # Its file stays when the journal has forgotten it.
    machine.entries = []
    machine.log(TODAY, request("carol"))
    assert "bob" in "".join(machine.run("--by", "user"))


def test_old_files_go(machine):
    machine.log(yesterday(2), request("alice"))
    machine.log(yesterday(), request("bob"))
    machine.run("--collect")
    machine.run("--collect", "--keep", "1")
    assert [path.name for path in machine.directory.iterdir()] == [f"{yesterday()}.csv"]


def test_a_month_that_is_over_needs_no_journal(machine):
    machine.log(datetime.date(2026, 10, 31), request("alice"))
    machine.run("--collect", today=datetime.date(2026, 11, 1))
    machine.log(TODAY, request("carol"))
    assert [row["user"] for row in csv.DictReader(machine.run("--month", "2026-10", "--csv", "-"))] == ["alice"]


def test_a_file_of_days_is_for_the_group_alone_and_says_what_it_was_given(machine):
    machine.log(yesterday(), request('odd, "user"', seconds=1.25), spent(day=yesterday()))
    machine.run("--collect")
    (path,) = machine.directory.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (row,) = usage_command.read(str(machine.directory), str(yesterday()))
    assert row == Use(str(yesterday()), "demo", 'odd, "user"', "interactive", 1, 0, 100, 1000, 1.25, 3.0, 300.0, 600.0)
    assert path.read_text().splitlines()[0] == ",".join(HEADER)


def test_a_damaged_file_is_named_with_the_mend(machine):
    (machine.directory / f"{yesterday()}.csv").write_text("day,service\n2026-11-24,demo\n")
    with pytest.raises(PtolemyError, match=rf"{yesterday()}\.csv: cannot be read.*remove it"):
        machine.run()


@pytest.mark.parametrize("month", ["2026", "2026-13", "November", "2026-1"])
def test_a_wrong_month_is_explained(machine, month):
    with pytest.raises(PtolemyError, match="a month, as 2026-11"):
        machine.run("--month", month)


def test_a_journal_that_may_not_be_read_is_no_empty_month(machine, tmp_path):
    (tmp_path / "journalctl").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(PtolemyError, match="status 1; run this as root"):
        machine.run()


def test_nothing_used_is_said(machine):
    machine.log(TODAY)
    assert machine.run() == ["nothing was used"]


def test_the_plot_has_a_bar_for_each_day_and_service_that_spent_something(machine, tmp_path):
    machine.log(TODAY, request(), spent(hours=3), spent("<big>", hours=7))
    machine.log(yesterday(), spent(day=yesterday(), hours=2))
    machine.run("--plot", str(tmp_path / "plot.svg"))
    picture = xml.dom.minidom.parse(str(tmp_path / "plot.svg"))
    heights = sorted(
        float(bar.getAttribute("height")) for bar in picture.getElementsByTagName("rect") if bar.getAttribute("fill") != "white"
    )
    assert heights[-3:] == pytest.approx([2 * 27, 3 * 27, 7 * 27])  # 270 units for 10 hours
    words = [text.firstChild.data for text in picture.getElementsByTagName("text")]
    assert {"<big>", "demo", "30", "GPU hours a day, 2026-11"} <= set(words)

"""What Prometheus is told."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from ptolemy import exporter, status
from ptolemy.config import Config
from ptolemy.gateway import Gate
from ptolemy.memory import Memory
from values import SITE, gateway, job, server, service

CHAT = service("chat")
SAMPLE = re.compile(r'ptolemy_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+]+')


def seen(**fields):
    there = gateway(
        server(1, in_flight=2),
        queued=5,
        arrived=9,
        gates={"svc_chat": Gate(width=6, waiting=3, arrived=9, interactive=0, interactive_arrived=0)},
    )
    memory, config = Memory(), Config(SITE, {"chat": CHAT})
    jobs = [job(1, CHAT)]
    memory.learn(config, jobs, there, 1000.0)
    memory.learn(config, jobs, there, 1004.0)
    given = {
        "time": 1005.0,
        "observed_at": 1004.0,
        "stale_reason": "",
        "last_change": {"sentence": "", "at": 0.0},
        "counters": {"ticks": 7, "skipped": 1, "changes": 2, "failed_changes": 0},
        "troubles": [],
        "services": status.describe(config, jobs, there, memory),
    }
    return {**given, **fields}


def test_depth_and_oldest_wait_are_told_by_service_and_tier():
    lines = list(exporter.metrics(seen()))
    assert 'ptolemy_queue_requests{service="chat",tier="batch"} 3' in lines
    assert 'ptolemy_queue_oldest_wait_seconds{service="chat",tier="batch"} 4.0' in lines
    assert 'ptolemy_queue_requests{service="chat",tier="interactive"} 2' in lines
    assert 'ptolemy_requests_running{service="chat"} 2' in lines
    assert 'ptolemy_service_state{service="chat",state="ready"} 1' in lines


def test_every_line_is_a_sample_after_its_help_and_type():
    lines = list(exporter.metrics(seen(stale_reason="squeue: timeout", troubles=["squeue: timeout"])))
    samples = [line for line in lines if not line.startswith("#")]
    assert [line for line in samples if not SAMPLE.fullmatch(line)] == []
    described = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {re.split(r"[ {]", line)[0] for line in samples} == described
    assert "ptolemy_stale 1" in lines


@pytest.fixture
def exporting(tmp_path):
    """A running exporter: its status file and its address."""
    path = tmp_path / "status.json"
    (tmp_path / "services.json").write_text(json.dumps({"site": {"user": "p", "uid": 1, "status_file": str(path)}, "services": {}}))
    command = [sys.executable, "-m", "ptolemy", "exporter", "--services", str(tmp_path / "services.json"), "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(exporter.__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://[^ ]+", process.stderr.readline())[0]
            yield path, url, process
        finally:
            process.kill()


def test_a_visitor_who_says_nothing_does_not_keep_the_next_one_out(exporting):
    path, url, _ = exporting
    path.write_text(json.dumps(seen()))
    with (
        socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(url).port), timeout=5),
        urllib.request.urlopen(url, timeout=4 * exporter.PATIENCE) as answer,
    ):
        assert answer.status == 200


def test_a_status_that_is_broken_is_an_error_and_no_metrics(exporting):
    path, url, _ = exporting
    for broken in ('{"time": 1', "{}", "[]"):
        path.write_text(broken)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(url, timeout=5)


def test_it_answers_what_was_last_written_and_ends_when_told_to(exporting):
    path, url, process = exporting
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(url, timeout=5)
    path.write_text(json.dumps(seen(time=time.time())))
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert b"ptolemy_ticks_total 7\n" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url.replace("metrics", "status"), timeout=5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0


def test_targets_are_told_while_the_status_is_fresh(exporting):
    path, url, _ = exporting
    targets = url.replace("metrics", "targets/")

    def ask(service):
        with urllib.request.urlopen(targets + service, timeout=5) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return json.load(answer)

    path.write_text(json.dumps(seen(time=time.time())))
    assert [it["labels"]["replica"] for it in ask("chat")] == ["1"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask("chats")
    path.write_text(json.dumps(seen(time=time.time() - 2 * status.DEAD_AFTER)))
    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask("chat")

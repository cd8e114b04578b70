"""``ptolemy top``: a frame fits its terminal, obeys nothing that a log says, and says what the page says."""

from __future__ import annotations

import http.server
import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from ptolemy import top
from ptolemy.errors import PtolemyError
from ptolemy.failures import Failure
from ptolemy.page import document, for_operators
from ptolemy.trends import Trends
from statuses import BOTH, CHAT, NOW, seen
from values import gateway, server

# Ctrl-C goes to the programs whose terminal it is, and is heard although whoever started the tests (nohup) may not listen to it.
OWN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def shown(**fields):
    return document(seen(*BOTH, **fields), Trends(), NOW)


def test_a_frame_begins_with_the_headline_and_has_each_service_and_replica():
    lines = list(top.frame(shown(), 100))
    assert lines[0] == "● chat answers."
    assert "chat: ready" in lines
    assert any(line.startswith("  job 1 ready on n1 gpu 0, 0 of 8 slots busy, ") for line in lines)
    assert any("0 of 16 busy" in line for line in lines)


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    failures = [Failure(1, CHAT.revision, "n1", NOW, "words " * 50)]
    raw = seen(*BOTH, failures=failures)
    private = for_operators(document(raw, Trends(), NOW), raw, [{"user": "a" * 70, "requests": 1, "per_minute": 2}])
    assert max(len(line) for line in top.frame(private, width)) <= width


def test_control_characters_of_a_log_do_not_reach_the_terminal():
    raw = seen(*BOTH, failures=[Failure(1, CHAT.revision, "n1", NOW, "\x1b[2Jgone\r\x07")])
    private = for_operators(document(raw, Trends(), NOW), raw, [])
    text = "\n".join(top.frame(private, 200))
    assert "?[2Jgone??" in text
    assert not {"\x1b", "\r", "\x07"} & set(text)


def test_colours_do_not_count_as_width():
    painted = list(top.frame(shown(), 12, lambda text, colour: f"<{colour}>{text}</>"))
    assert painted[0] == "<1;32>● chat answ…</>"


@pytest.mark.parametrize(("seconds", "words"), [(0.0004, "0 ms"), (0.25, "250 ms"), (1.5, "1.5 s"), (75, "75 s"), (600, "10 min")])
def test_the_time_to_the_first_token_is_short_to_read(seconds, words):
    document = shown()
    document["services"][0]["lately"]["first_token_s"] = seconds
    (line,) = (line for line in top.frame(document, 40) if "first token" in line)
    assert line.split("first token")[1].strip().startswith(words)


@pytest.mark.parametrize(
    ("values", "room", "bars"),
    [([0, 1, 2, None, 8], 10, "▁▁▂ █"), ([1, 2, 3], 2, "▅█"), ([0, 0], 5, "▁▁"), ([None], 5, " "), ([1], 0, ""), ([], 5, "")],
)
def test_a_sparkline_shows_the_newest_and_leaves_a_blank_for_what_nobody_knows(values, room, bars):
    assert top.sparkline(values, room) == bars


@pytest.fixture
def answering():
    """An exporter that answers what it is told."""
    answer = {"code": 200, "body": json.dumps(shown())}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["code"])
            self.end_headers()
            self.wfile.write(answer["body"].encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/status.json", answer
        server.shutdown()
        thread.join(5)


@pytest.fixture
def command(answering, tmp_path):
    """The command line and environment of `ptolemy top`."""
    site = {"user": "p", "uid": 1, "status_file": str(tmp_path / "status.json")}
    (tmp_path / "services.json").write_text(json.dumps({"site": site, "services": {}}))
    argv = [sys.executable, "-m", "ptolemy", "top", "--url", answering[0], "--services", str(tmp_path / "services.json")]
    return argv, {**os.environ, "PYTHONPATH": str(Path(top.__file__).parents[1]), "TERM": "xterm"}


def read_until(terminal, words, seconds=20):
    """What a program wrote to its terminal, until it wrote certain words."""
    text, deadline = b"", time.monotonic() + seconds
    while words not in text:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{words} not in {text}"
        text += os.read(terminal, 65536)
    return text


@pytest.mark.parametrize("end", [b"q", b"\x03"])
def test_in_a_terminal_it_goes_on_until_q_or_ctrl_c_and_puts_the_terminal_back(command, answering, end):
    argv, environment = command
    argv = [sys.executable, "-c", OWN_TERMINAL, *argv]
    ours, its = pty.openpty()
    try:
        before = termios.tcgetattr(its)
        with subprocess.Popen(argv, env=environment, stdin=its, stdout=its, stderr=its) as process:
            try:
                assert read_until(ours, b"chat answers.").startswith(b"\x1b[?1049h")
                answering[1]["code"] = 503
                read_until(ours, b"The status is not known since ")
                os.write(ours, end)
                read_until(ours, b"\x1b[?25h\x1b[?1049l")
                assert process.wait(10) == 0
            finally:
                process.kill()
        assert termios.tcgetattr(its) == before
    finally:
        os.close(ours)
        os.close(its)


def test_without_a_terminal_one_frame_is_printed(command):
    argv, environment = command
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("● chat answers.\n")
    assert "\x1b" not in done.stdout


def test_an_answer_that_is_none_is_an_error_that_names_the_address(answering):
    url, answer = answering
    answer["code"] = 503
    with pytest.raises(PtolemyError, match="answers 503"):
        top.fetch(url)
    for body in ("<html>", "[]", '{"version": 99}'):
        answer.update(code=200, body=body)
        with pytest.raises(PtolemyError, match=r"status\.json"):
            top.fetch(url)
    with pytest.raises(PtolemyError, match="ptolemy-exporter"):
        top.fetch("http://127.0.0.1:9/status.json")


def test_a_drained_server_is_shown():
    raw = seen(BOTH[0], gateway(server(1, admin="drain"), server(2)))
    text = "\n".join(top.frame(document(raw, Trends(), NOW), 100))
    assert "job 1 draining on n1" in text

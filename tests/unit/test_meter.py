"""What llama-servers are asked: never more at once than their bound, never waited for, and restarts are no bursts."""

from __future__ import annotations

import http.server
import threading
import time

import pytest

from ptolemy import meter
from ptolemy.keys import backend_key
from ptolemy.meter import Meter, Target, fetch, parse
from ptolemy.trends import Tokens, Trends

TEXT = (
    "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens\n"
    "llamacpp:prompt_tokens_total 2.5e+06\n"
    "llamacpp:prompt_tokens_cached_total 7\n"
    "llamacpp:prompt_seconds_total 12.5\n"
    "llamacpp:tokens_predicted_total 900\n"
    "llamacpp:tokens_predicted_seconds_total 33\n"
)


def seen(*names, up=True):
    servers = [{"name": name, "address": "127.0.0.1:1", "up": up} for name in names]
    return {"services": [{"service": "chat", "servers": servers}]}


def until_answered(asking):
    deadline = time.monotonic() + 5
    while not all(answer.done() for answer in asking._asked.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_counts_of_llama_server_are_read():
    assert parse(TEXT) == Tokens(generated=900, read=2.5e6, read_seconds=12.5)
    with pytest.raises(ValueError, match="lack a count"):
        parse("llamacpp:tokens_predicted_total 900\n")


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "exporter.key").write_text("secret\n")
    return str(tmp_path / "exporter.key")


def test_what_was_done_since_the_last_answer_counts_also_after_a_restart(key_file):
    counts, trends = iter([Tokens(100, 10, 1), Tokens(160, 10, 2), Tokens(30, 4, 0.5)]), Trends()
    asking = Meter(key_file, lambda target, key: next(counts))
    try:
        for turn in range(4):
            asking.turn(seen("j1r0p20000"), trends, 1000.0 + turn * meter.EVERY)
            until_answered(asking)
    finally:
        asking.close()
    assert trends.of("chat").lately(1030.0).tokens == Tokens(60 + 30, 0 + 4, 1 + 0.5)


def test_servers_that_do_not_answer_hold_up_nothing_and_are_not_asked_again_meanwhile(key_file):
    let_go, asked, trends = threading.Event(), [], Trends()

    def ask(target, key):
        asked.append(target)
        let_go.wait(10)

    asking = Meter(key_file, ask)
    try:
        began = time.monotonic()
        for turn in range(20):
            asking.turn(seen(*(f"j{number}r0p1" for number in range(30))), trends, 1000.0 + turn * meter.EVERY)
        assert time.monotonic() - began < 1
        assert len(asked) <= meter.AT_ONCE
    finally:
        let_go.set()
        asking.close()


def test_without_a_key_or_where_it_is_down_no_server_is_asked(key_file, tmp_path):
    asked = []
    (tmp_path / "empty").write_text("\n")
    for path, up in (("", True), (str(tmp_path / "empty"), True), (key_file, False)):
        asking = Meter(path, lambda target, key: asked.append(target))
        asking.turn(seen("j1r0p1", up=up), Trends(), 1000.0)
        asking.close()
    assert not asked


def test_a_changed_key_is_used_from_the_next_round_on(key_file, tmp_path):
    used, trends = [], Trends()
    asking = Meter(key_file, lambda target, key: used.append(key))
    try:
        for turn, secret in enumerate(("old", "new")):
            (tmp_path / "exporter.key").write_text(f"{secret}\n")
            asking.turn(seen("j1r0p1"), trends, 1000.0 + turn * meter.EVERY)
            until_answered(asking)
    finally:
        asking.close()
    assert used == [backend_key("chat", "old"), backend_key("chat", "new")]


@pytest.fixture
def llama_server():
    """Answers /metrics to the key of `chat` only."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            right = self.headers["Authorization"] == f"Bearer {backend_key('chat', 'site')}" and self.path == "/metrics"
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(TEXT.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)


def test_a_server_is_asked_with_its_services_key(llama_server):
    target = Target("chat", "j1r0p1", llama_server)
    assert fetch(target, backend_key("chat", "site")) == Tokens(900, 2.5e6, 12.5)
    assert fetch(target, backend_key("other", "site")) is None
    assert fetch(Target("chat", "j1r0p1", "127.0.0.1:9"), "key") is None

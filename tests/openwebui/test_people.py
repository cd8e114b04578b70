"""What people and administrators do: sign in, see the models, chat, upload, search the web."""

from __future__ import annotations

import contextlib
import json
import subprocess
import uuid
from collections.abc import Iterator

import httpx2
import pytest

from openwebui_lab import ADMIN, CATEGORY, QUESTION, prompts_on_the_wire

# A search engine that answers as SearXNG does, and the one page that it knows. It ends with its standard input.
SEARCH = """
import http.server, json, os, sys, threading, urllib.parse
marker = sys.argv[1]
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = urllib.parse.urlsplit(self.path)
        found = {"url": "http://head:8888/page", "title": "Lockers", "content": "Codes of lockers", "score": 1.0}
        kind, text = "text/html", f"<html><body><p>The code of the parcel locker is {marker}.</p></body></html>"
        if path.path == "/search":
            asked = urllib.parse.parse_qs(path.query)
            assert asked["format"] == ["json"], asked
            kind, text = "application/json", json.dumps({"query": asked["q"][0], "results": [found]})
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *what):
        pass
server = http.server.ThreadingHTTPServer(("", 8888), Engine)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def search_engine(cluster, marker: str) -> Iterator[None]:
    command = ["podman", "exec", "-i", f"{cluster.prefix}-head", "python3", "-c", SEARCH, marker]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdin and engine.stdout and engine.stdout.readline() == "ready\n"
        yield
        engine.stdin.close()


def requests_of(cluster, person: str) -> list[dict]:
    """What the gateway has logged of a person's chats."""
    lines = cluster.run("head", "journalctl", "-t", "haproxy", "-o", "cat", "-n", "400").splitlines()
    found = [json.loads(line[line.index("{") :]) for line in lines if '"user"' in line]
    return [line for line in found if line["user"] == f"webui/{person}" and line["path"] == "/v1/chat/completions"]


def marker() -> str:
    return f"ZEBRA-{uuid.uuid4().hex[:8]}"


def test_a_wrong_password_is_refused(url):
    assert httpx2.post(f"{url}/api/v1/auths/signin", json={"email": ADMIN, "password": "not this one"}, timeout=30).status_code == 400


def test_nobody_signs_up_by_themselves(url):
    account = {"name": "x", "email": "x@example.org", "password": "a password of eight"}
    assert httpx2.post(f"{url}/api/v1/auths/signup", json=account, timeout=30).status_code == 403


def test_an_ordinary_user_sees_the_models_that_people_can_chat_with(person):
    assert person.models() == {"demo", "demo-b", "nap"}


def test_a_chat_is_answered_in_pieces_by_a_replica_and_counts_as_the_users_own(cluster, person):
    body = {"model": "demo", "stream": True, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}
    pieces = []
    with person.client.stream("POST", "/api/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                pieces += [choice["delta"].get("content") or "" for choice in chunk.get("choices", [])]
    assert "".join(pieces) == CATEGORY and len([piece for piece in pieces if piece]) > 1
    cluster.until(lambda: requests_of(cluster, person.id), "the gateway has logged it")
    (chat,) = requests_of(cluster, person.id)
    assert (chat["service"], chat["tier"], chat["status"]) == ("demo", "interactive", 200)
    assert chat["server"].startswith("svc_demo/j")


def test_a_title_waits_behind_people(cluster, person):
    person.client.post("/api/v1/tasks/title/completions", json={"model": "demo", "messages": [{"role": "user", "content": QUESTION}]})
    cluster.until(lambda: requests_of(cluster, person.id), "the gateway has logged it")
    assert [line["tier"] for line in requests_of(cluster, person.id)] == ["batch"]


def test_what_a_document_says_reaches_the_prompt(cluster, person):
    code = marker()
    file = person.upload(cluster, "lockers.txt", f"The code of the parcel locker is {code}.")
    collection = person.knowledge("Lockers", file)
    with prompts_on_the_wire(cluster) as prompts:
        person.chat("What is the code of the parcel locker?", files=[{"type": "collection", "id": collection}])
        prompts.until(cluster, code)


@pytest.mark.parametrize("files", [[], [{"type": "file", "id": "of somebody else"}]])
def test_what_nobody_gave_does_not(cluster, admin, person, files):
    code = marker()
    file = admin.upload(cluster, "secret.txt", f"The code of the parcel locker is {code}.")
    with prompts_on_the_wire(cluster) as prompts:
        person.chat("What is the code of the parcel locker?", files=[{**given, "id": file} for given in files])
        prompts.until(cluster, "What is the code of the parcel locker?")
        assert not prompts.have(code)


def test_what_the_web_says_reaches_the_prompt(cluster, person):
    code = marker()
    with search_engine(cluster, code):
        found = person.post("/api/v1/retrieval/process/web/search", json={"queries": ["parcel locker"]})
        assert found["filenames"] == ["http://head:8888/page"]
        with prompts_on_the_wire(cluster) as prompts:
            person.chat("What is the code of the parcel locker?", features={"web_search": True})
            prompts.until(cluster, code)

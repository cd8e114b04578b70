#!/usr/bin/env python3
"""A stand-in for llama-server: /health, /v1/models, /metrics, /tokenize and /completion on its port; dies when told to by files beside it.

An answer takes ANSWER_TIME, and there are as many at once as slots.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
ARGUMENTS = dict(zip(sys.argv[1:], sys.argv[2:]))
if "--list-devices" in sys.argv:
    print("Available devices:\n" + ("" if (HERE / "no-gpu").exists() else "  CUDA0: a fake"))
    sys.exit(0)
PORT = int(ARGUMENTS["--port"])
ANSWER_TIME = 0.02
SLOTS = threading.Semaphore(int(ARGUMENTS.get("--parallel", "1")))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if (HERE / "die").exists():
            (HERE / "die").unlink()
            os._exit(3)
        if self.path == "/metrics" and (HERE / "stuck").exists():
            time.sleep(60)
        busy = (HERE / "busy").exists()
        body = {
            "/health": b'{"status":"ok"}',
            "/v1/models": json.dumps({"data": [{"id": ARGUMENTS["--alias"]}]}).encode(),
            "/metrics": f"llamacpp:requests_processing {int(busy)}\nllamacpp:requests_deferred 0\n".encode(),
        }[self.path]
        given = self.headers.get("Authorization", "").partition(" ")[2]
        self.send_response(200 if self.path == "/health" or given == os.environ["LLAMA_API_KEY"] else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization", "").partition(" ")[2] != os.environ["LLAMA_API_KEY"]:
            self.send_error(401)
            return
        if self.path == "/tokenize":
            self.say(json.dumps({"tokens": list(range(len(asked["content"].split())))}).encode())
            return
        generated = asked["n_predict"] - ((HERE / "short").exists() and asked["n_predict"] > 1)
        last = {"stop": True, "tokens_evaluated": len(asked["prompt"]), "tokens_predicted": generated}
        with SLOTS:
            if not asked["stream"]:
                time.sleep(ANSWER_TIME)
                self.say(json.dumps(last).encode())
                return
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in ({"content": "a"}, last):
                time.sleep(ANSWER_TIME / 2)
                data = f"data: {json.dumps(event)}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    def say(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if (HERE / "no-unified").exists() and "--kv-unified" in sys.argv:
    sys.exit("unknown cache")
if (HERE / "broken").exists() or ((HERE / "mps-breaks").exists() and "CUDA_MPS_PIPE_DIRECTORY" in os.environ):
    sys.exit(1)
with (HERE / "mps").open("a") as file:
    file.write(f"{PORT} {os.environ.get('CUDA_MPS_PIPE_DIRECTORY', 'none')}\n")
(HERE / "own-key").write_text(os.environ["LLAMA_API_KEY"])
with (HERE / "started").open("a") as file:
    file.write(f"{PORT} {os.environ.get('CUDA_VISIBLE_DEVICES')} {' '.join(sys.argv[1:])}\n")
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()

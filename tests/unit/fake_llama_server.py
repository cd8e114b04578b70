#!/usr/bin/env python3
"""A stand-in for llama-server: /health, /v1/models and /metrics on its port; dies when told to by files beside it."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
ARGUMENTS = dict(zip(sys.argv[1:], sys.argv[2:]))
if "--list-devices" in sys.argv:
    print("Available devices:\n" + ("" if (HERE / "no-gpu").exists() else "  CUDA0: a fake"))
    sys.exit(0)
PORT = int(ARGUMENTS["--port"])


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

    def log_message(self, *_):
        pass


if (HERE / "broken").exists() or ((HERE / "mps-breaks").exists() and "CUDA_MPS_PIPE_DIRECTORY" in os.environ):
    sys.exit(1)
with (HERE / "mps").open("a") as file:
    file.write(f"{PORT} {os.environ.get('CUDA_MPS_PIPE_DIRECTORY', 'none')}\n")
(HERE / "own-key").write_text(os.environ["LLAMA_API_KEY"])
with (HERE / "started").open("a") as file:
    file.write(f"{PORT} {os.environ.get('CUDA_VISIBLE_DEVICES')} {' '.join(sys.argv[1:])}\n")
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()

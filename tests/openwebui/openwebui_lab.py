"""The real Open WebUI of a lab that has one, as people reach it: through HAProxy; and what the tests see on its network."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator

import httpx2

from cluster_host import Cluster, in_network_of

ADMIN = "admin@example.org"
QUESTION, CATEGORY = "Categorise: DELTA AIR 0062341 BOSTON", "air travel"  # what the demo model knows
# What the loss of everything leaves.
EMPTY = """
set -e
systemctl stop openwebui
runuser -u postgres -- dropdb openwebui
runuser -u postgres -- createdb --owner=openwebui openwebui
rm -rf /var/lib/openwebui/data
"""
# Prints each TCP segment that goes to an endpoint's port: its flow, and its bytes in hexadecimal.
SNIFFER = """
import socket, struct
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
print("ready", flush=True)
while True:
    packet = tap.recv(262144)
    if packet[0] >> 4 != 4 or packet[9] != 6:
        continue
    head, length = (packet[0] & 15) * 4, struct.unpack("!H", packet[2:4])[0]
    source, target = struct.unpack("!HH", packet[head : head + 4])
    data = packet[head + (packet[head + 12] >> 4) * 4 : length or None]
    if 20000 <= target < 30000 and data:
        print(f"{source}-{target}", data.hex(), flush=True)
"""


class OpenWebUI:
    """A person's session."""

    def __init__(self, base_url: str, email: str, password: str) -> None:
        self.email, self.password = email, password
        self.client = httpx2.Client(base_url=base_url, timeout=120)
        answer = self.client.post("/api/v1/auths/signin", json={"email": email, "password": password})
        if answer.status_code != 200:
            self.client.close()
            raise AssertionError(answer.text)
        self.id = answer.json()["id"]
        self.client.headers["Authorization"] = f"Bearer {answer.json()['token']}"

    def __enter__(self) -> OpenWebUI:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, path: str):
        answer = self.client.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def post(self, path: str, **options):
        answer = self.client.post(path, **options)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def chat(self, text: str, **more) -> str:
        body = {"model": "demo", "stream": False, "temperature": 0, "messages": [{"role": "user", "content": text}], **more}
        return self.post("/api/chat/completions", json=body)["choices"][0]["message"]["content"]

    def models(self) -> set[str]:
        return {model["id"] for model in self.get("/api/models")["data"]}

    def upload(self, cluster: Cluster, name: str, text: str) -> str:
        """Upload a file and wait until its vectors are there; returns its id."""
        file = self.post("/api/v1/files/", files={"file": (name, text.encode(), "text/plain")})["id"]
        state = {}

        def processed() -> bool:
            state.update(self.get(f"/api/v1/files/{file}/process/status"))
            return state["status"] in ("completed", "failed")

        cluster.until(processed, "the upload has been processed")
        assert state["status"] == "completed", state
        return file

    def knowledge(self, name: str, *files: str) -> str:
        """Make a collection of files; returns its id."""
        made = self.post("/api/v1/knowledge/create", json={"name": name, "description": name})["id"]
        for file in files:
            self.post(f"/api/v1/knowledge/{made}/file/add", json={"file_id": file})
        return made


class Prompts:
    """What reaches the replicas of chat services, read from the wire between the gateway and the nodes."""

    def __init__(self) -> None:
        self.flows: dict[str, bytes] = defaultdict(bytes)

    def read(self, lines) -> None:
        for line in lines:
            flow, data = line.split()
            self.flows[flow] += bytes.fromhex(data)

    def have(self, text: str) -> bool:
        return any(sent.startswith(b"POST /v1/chat/completions ") and text.encode() in sent for sent in list(self.flows.values()))

    def until(self, cluster: Cluster, text: str) -> None:
        """Wait for a text: what the wire had is read a moment later."""
        cluster.until(lambda: self.have(text), f"{text!r} in a prompt")


@contextlib.contextmanager
def prompts_on_the_wire(cluster: Cluster) -> Iterator[Prompts]:
    seen = Prompts()
    with subprocess.Popen(in_network_of(cluster, "head", "/usr/bin/python3", "-c", SNIFFER), stdout=subprocess.PIPE, text=True) as tap:
        try:
            assert tap.stdout and tap.stdout.readline() == "ready\n"
            reader = threading.Thread(target=seen.read, args=(tap.stdout,))
            reader.start()
            yield seen
        finally:
            tap.kill()
            reader.join(10)


def counted(cluster: Cluster, rules: str = "OUTPUT") -> int:
    """How many packets the rules of a chain have met."""
    shown = subprocess.run(
        in_network_of(cluster, "web", "iptables", "-nvxL", rules), check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return sum(int(number) for number in re.findall(r"^\s*(\d+)\s+\d+\s+REJECT", shown, re.MULTILINE))


def ready(url: str) -> bool:
    """Whether people reach it: HAProxy looks twice a second whether it is back."""
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(f"{url}/ready", timeout=5).status_code == 200
    return False

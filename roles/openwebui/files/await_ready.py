"""Wait until Open WebUI answers that it is ready; exit 1 with the reason when its time is up, or when it has ended three times meanwhile."""

import subprocess
import sys
import time
import urllib.error
import urllib.request


def restarts() -> int:
    show = ["systemctl", "show", "--property=NRestarts", "--value", "openwebui.service"]
    return int(subprocess.run(show, check=True, capture_output=True, text=True, timeout=30).stdout)


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


url, timeout = sys.argv[1], float(sys.argv[2])
before, deadline = restarts(), time.monotonic() + timeout
while not ready(url):
    if restarts() >= before + 3:
        sys.exit("it ends as often as it is started")
    if time.monotonic() > deadline:
        sys.exit(f"it was not ready within {timeout:.0f} s")
    time.sleep(1)

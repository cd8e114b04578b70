"""Wait until Open WebUI answers that it is ready; exit with the reason when its time is up, or when it has ended three times."""

import http.client
import subprocess
import sys
import time


def restarts() -> int:
    show = ["systemctl", "show", "--property=NRestarts", "--value", "openwebui.service"]
    return int(subprocess.run(show, check=True, capture_output=True, text=True, timeout=30).stdout)


def ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


address, timeout = sys.argv[1], float(sys.argv[2])
before, deadline = restarts(), time.monotonic() + timeout
while not ready(address):
    if restarts() >= before + 3:
        sys.exit("it ends as often as it is started")
    if time.monotonic() > deadline:
        sys.exit(f"it was not ready within {timeout:.0f} s")
    time.sleep(1)

"""What Prometheus needs to ask llama-servers itself: where those of a service are, and a file with the service's key.

The addresses come from the daemon's status, by HTTP service discovery (https://prometheus.io/docs/prometheus/latest/http_sd/): replicas
come and go by the minute, and nobody must write a file for it. The keys change with the backend key only.
"""

from __future__ import annotations

import contextlib
import grp
import os
import tempfile
from typing import Any, Iterator, Mapping

from .config import COMFYUI, Service
from .errors import ConfigError
from .gateway import host_port
from .keys import backend_key
from .replica import gpu_of

SUFFIX = ".key"


def targets(seen: Mapping[str, Any], name: str, port_first: int) -> list[dict[str, Any]] | None:
    """The llama-servers of one service, as Prometheus wants them; None where there is no such service.

    Args:
        seen: the daemon's status.
        name: the service.
        port_first: the first port of endpoints, from which a port tells its GPU, see ``replica.gpu_of``.
    """
    row = next((row for row in seen["services"] if row["service"] == name), None)
    if row is None:
        return None
    places = {host_port(replica["address"], port): (replica, port) for replica in row["replicas"] for port in replica["ports"]}
    found = []
    # HAProxy's servers, not the records: what fails its checks stays a target, and is then seen to be down.
    for address in sorted({server["address"] for server in row["servers"]} & places.keys()):
        replica, port = places[address]
        labels = {"service": name, "replica": str(replica["job"]), "node": replica["host"], "gpu": str(gpu_of(port, port_first))}
        found.append({"targets": [address], "labels": labels})
    return found


def write_keys(services: Mapping[str, Service], key_file: str, into: str, group: str) -> Iterator[str]:
    """Write each service's key to ``into/SERVICE.key``, for root and a group only, and remove those of services that are gone.

    Args:
        services: by name; one of the kind ``comfyui`` has no metrics, so nobody asks it and its key is not written.
        key_file: holds the site's backend key.
        into: a directory that is there.
        group: whose members may read the keys.

    Yields:
        A line for each file that was changed or removed. Never a key.

    Raises:
        ConfigError: a file cannot be read or written, or there is no such group; the message names it.
    """
    try:
        with open(key_file, encoding="utf-8") as file:
            secret = file.read().strip()
        owner = grp.getgrnam(group).gr_gid
        if not secret:
            raise ConfigError(f"{key_file}: is empty; set ptolemy_backend_key and run playbooks/gateway.yml")
        names = [name for name, service in services.items() if service.kind != COMFYUI]
        for name in names:
            path = os.path.join(into, name + SUFFIX)
            if _write(path, backend_key(name, secret), owner):
                yield f"{path}: written"
        for name in sorted(set(os.listdir(into)) - {name + SUFFIX for name in names}):
            if name.endswith(SUFFIX):
                os.unlink(os.path.join(into, name))
                yield f"{os.path.join(into, name)}: removed"
    except KeyError as error:
        raise ConfigError(f"--group {group}: there is no such group; install Prometheus, or name the group that it runs as") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or into}: {error.strerror}; run this as root on the gateway") from error


def _write(path: str, key: str, group: int) -> bool:
    """Replace a file in one step. Returns False where nothing was to do."""
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        with open(path, encoding="ascii", errors="replace") as file:
            if (found.st_mode & 0o7777, found.st_uid, found.st_gid, file.read()) == (0o640, os.geteuid(), group, key):
                return False
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".key-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), 0o640)
            file.write(key)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return True

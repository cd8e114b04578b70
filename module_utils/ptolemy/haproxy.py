"""The HAProxy adapter: what servers the gateway has, and the changes to them, all by its runtime API.

The command sequence was measured on HAProxy 2.6 and 3.0: a dynamic server starts in maintenance without health checks,
is deleted only from maintenance and without connections, and is lost at every reload, which the next tick mends.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import socket
from operator import itemgetter
from typing import Mapping, Sequence

from .errors import ChangeError, ObservationError
from .gateway import BACKEND_PREFIX, Endpoint, Gate, Gateway, Server, User

GATE_PREFIX = "batch_"
GATE = "gate"  # the only server of a gate's backend
HOLD = "hold"  # the server that keeps requests while there is no other, see roles/haproxy
_SERVER_NAME = re.compile(r"j(\d+)r(\d+)p(\d+)")
_FORCED_MAINT, _FORCED_DRAIN = 0x01, 0x08  # srv_admin_state, management.txt, "show servers state"
_OP_RUNNING = 2  # srv_op_state

# `observe` and `on-error` take a killed server out at its first refused connection: it refuses instantly, and leastconn
# would love it. Its health is checked every second; one good check brings it back. Not `on-marked-down shutdown-sessions`:
# it would cut the server's other requests instead of sending them elsewhere (48 clients: 4 to 16 errors a kill instead of none).
_CHECK = "check inter 1s fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down"
_COMMANDS = 50  # in one message: HAProxy reads at most a buffer's worth


class HAProxy:
    """HAProxy's runtime API on its admin socket.

    Args:
        path: the socket, opened anew for each call.
        awake_map: the map that tells the configuration which backends have a server, and which servers there are.
        states_map: the map from which /v1/models tells the states of the services.
        timeout: seconds that one command may take.
    """

    def __init__(self, path: str, awake_map: str = "", states_map: str = "", timeout: float = 5.0) -> None:
        self._path = path
        self._awake_map, self._states_map = awake_map, states_map
        self._timeout = timeout

    def observe(self) -> Gateway:
        """What HAProxy has now.

        Raises:
            ObservationError: the socket fails, or its answer cannot be read.
        """
        try:
            commands = (
                "show info",
                "show stat -1 6 -1",
                "show servers state",
                f"show map {self._awake_map}",
                f"show map {self._states_map}",
            )
            answers = [self._ask(command) for command in commands]
        except OSError as error:
            raise ObservationError(f"HAProxy's socket {self._path}: {error}") from error
        try:
            return parse(*answers)
        except (KeyError, IndexError, ValueError) as error:
            raise ObservationError(f"HAProxy's socket {self._path} answered what cannot be read ({error!r})") from error

    def add(self, endpoint: Endpoint, number: int) -> None:
        """Add a server, check its health, and send it requests.

        Raises:
            ChangeError: HAProxy refused it or gave no answer.
        """
        name = f"{endpoint.backend}/{endpoint.name}"
        add = f"add server {name} {endpoint.where} id {number} {_CHECK} maxconn {endpoint.slots} weight {endpoint.weight}"
        # It is added in maintenance, so that nothing is lost where this is all that HAProxy hears.
        self._change(f"{add}; {self._made_ready(name)}", "New server registered.")

    def ready(self, backend: str, name: str) -> None:
        """Check a server's health and send it requests. Raises ChangeError as ``add``."""
        self._change(self._made_ready(f"{backend}/{name}"))

    def drain(self, backend: str, name: str) -> None:
        """Send a server no new request; running ones go on. Raises ChangeError as ``add``.

        HAProxy would still send it conversations that were there before; the gateway's affinity.lua does not where the weight is 0.
        """
        self._change(f"set server {backend}/{name} weight 0; set server {backend}/{name} state drain")

    def weigh(self, backend: str, name: str, weight: int) -> None:
        """Set a server's part of the requests, against the weights of the others. Raises ChangeError as ``add``."""
        self._change(f"set server {backend}/{name} weight {weight}")

    def sever(self, backend: str, name: str) -> None:
        """Cut the requests that a dead server holds. Raises ChangeError as ``add``."""
        self._change(f"shutdown sessions server {backend}/{name}")

    def wake(self, backend: str, awake: bool) -> None:
        """Tell `hold` whether a backend has a server. Raises ChangeError as ``add``."""
        self._change(f"set map {self._awake_map} {backend} {int(awake)}")

    def widen(self, service: str, width: int) -> None:
        """Set how many batch requests of a service may run at once. Raises ChangeError as ``add``."""
        self._change(f"set maxconn server {GATE_PREFIX}{service}/{GATE} {width}")

    def tell(self, key: str, value: str) -> None:
        """Set what /v1/models says of a service: see ``Gateway.states`` for the keys. Raises ChangeError as ``add``."""
        self._change(f"set map {self._states_map} {key} {value}")

    def keep_map(self, path: str, wanted: Mapping[str, str]) -> int:
        """Make a map of the running process equal to ``wanted``: what is not wanted goes first. Returns how many entries changed.

        Raises:
            ObservationError: the socket fails.
            ChangeError: as ``add``.
        """
        try:
            found = map_entries(self._ask(f"show map {path}"))
        except OSError as error:
            raise ObservationError(f"HAProxy's socket {self._path}: {error}") from error
        commands = [f"del map {path} {key}" for key in found if key not in wanted]
        for key, value in wanted.items():
            if found.get(key) != value:
                commands.append(f"{'set' if key in found else 'add'} map {path} {key} {value}")
        for first in range(0, len(commands), _COMMANDS):
            self._change("; ".join(commands[first : first + _COMMANDS]))
        return len(commands)

    def users(self) -> Sequence[User]:
        """Who has requests now, those with the most first.

        Raises:
            ObservationError: the socket fails.
        """
        try:
            return parse_users(self._ask("show table users data.conn_cur gt 0"))
        except OSError as error:
            raise ObservationError(f"HAProxy's socket {self._path}: {error}") from error

    def remove(self, backend: str, name: str) -> None:
        """Remove an idle server. Raises ChangeError as ``add``, also where it is not idle after all."""
        self._change(f"set server {backend}/{name} state maint")
        self._change(f"del server {backend}/{name}", "Server deleted.")
        self._change(f"del map {self._awake_map} {backend}/{name}")

    def _made_ready(self, name: str) -> str:
        # It is listed before it may answer. Listed twice is no error, and `del map` takes both.
        return f"add map {self._awake_map} {name} 1; enable health {name}; set server {name} state ready"

    def _change(self, command: str, expected: str = "") -> None:
        try:
            answer = self._ask(command).strip()
        except OSError as error:
            raise ChangeError(f"HAProxy's socket {self._path}: {error}") from error
        if answer != expected:
            raise ChangeError(f"HAProxy answered {answer!r} to {command!r}")

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            connection.connect(self._path)
            connection.sendall(command.encode() + b"\n")
            pieces = iter(lambda: connection.recv(65536), b"")
            return b"".join(pieces).decode(errors="replace")


def parse(info: str, stat: str, state: str, awake: str, states: str = "") -> Gateway:
    """Read the answers to ``show info``, ``show stat`` (backends and servers), ``show servers state`` and ``show map`` of both maps.

    Raises:
        KeyError, IndexError, ValueError: an answer lacks what it must have.
    """
    facts = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
    titles, *rows = csv.reader(io.StringIO(stat.lstrip("# ")))
    pick = itemgetter(*(titles.index(title) for title in ("pxname", "svname", "type", "qcur", "scur", "slim", "stot")))
    fate = itemgetter(*(titles.index(title) for title in ("econ", "eresp", "hrsp_5xx", "rtime")))
    ours: dict[str, tuple[int, int, int]] = {}
    counters: dict[tuple[str, str], tuple[int, int, int]] = {}
    fates: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in filter(None, rows):
        proxy, name, kind, waiting, busy, slots, total = pick(row)
        if not proxy.startswith((BACKEND_PREFIX, GATE_PREFIX)):
            continue
        if kind == "1":
            ours[proxy] = (int(waiting or 0), int(total or 0), int(busy or 0))
        elif kind == "2":
            counters[proxy, name] = (int(busy or 0), int(slots or 0), int(total or 0))
            fates[proxy, name] = fate(row)
    queued, arrived, gates = {}, {}, {}
    for proxy, (waiting, total, present) in ours.items():
        if not proxy.startswith(BACKEND_PREFIX):
            continue
        # What the configuration's own server `hold` has at the moment waits, too.
        queued[proxy] = waiting + counters.get((proxy, HOLD), (0, 0, 0))[0]
        arrived[proxy] = total
        before = GATE_PREFIX + proxy[len(BACKEND_PREFIX) :]
        if (before, GATE) not in counters:
            continue
        # A batch request is counted by both backends once it is through.
        passing, width, passed = counters[before, GATE]
        gates[proxy] = Gate(width, *ours[before][:2], max(present - passing, 0), total - passed)
        queued[proxy] += ours[before][0]
        arrived[proxy] += ours[before][1] - passed

    lines = state.strip().splitlines()
    if not lines or lines[0].strip() != "1":
        raise ValueError("unknown version of 'show servers state'")
    columns = lines[1].lstrip("# ").split()
    listed = map_entries(awake)
    servers = []
    for line in lines[2:]:
        server = dict(zip(columns, line.split()))
        backend, name = server["be_name"], server["srv_name"]
        if backend not in queued or not _SERVER_NAME.fullmatch(name):
            continue  # not one of ours: the configuration's own
        busy_now, slots_now, total_now = counters[backend, name]
        *errors, response_ms = (int(value or 0) for value in fates[backend, name])
        admin = int(server["srv_admin_state"])
        servers.append(
            Server(
                backend=backend,
                name=name,
                id=int(server["srv_id"]),
                address=server["srv_addr"],
                port=int(server["srv_port"]),
                admin="maint" if admin & _FORCED_MAINT else "drain" if admin & _FORCED_DRAIN else "ready",
                up=int(server["srv_op_state"]) >= _OP_RUNNING and not admin & _FORCED_MAINT,
                in_flight=busy_now,
                slots=slots_now,
                unchanged=float(server["srv_time_since_last_change"]),
                weight=int(server["srv_uweight"]),
                requests=total_now,
                errors=sum(errors),
                response_ms=response_ms,
                listed=f"{backend}/{name}" in listed,
            )
        )
    servers.sort(key=lambda server: (server.backend, server.name))
    told = {backend: {"0": False, "1": True}.get(value) for backend, value in listed.items() if backend in queued}
    return Gateway(int(facts["Pid"]), queued, arrived, tuple(servers), told, gates, map_entries(states))


def parse_users(text: str) -> Sequence[User]:
    """Read the answer to ``show table users``. A line that is none of a user, as an error message, is passed over."""
    found = []
    for line in text.splitlines():
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        with contextlib.suppress(KeyError, ValueError):
            rate = next((value for key, value in fields.items() if key.startswith("gpc0_rate(")), "0")
            found.append(User(fields["key"], int(fields["conn_cur"]), int(rate)))
    return sorted(found, key=lambda user: (-user.requests, user.name))


def map_entries(text: str) -> dict[str, str]:
    """Read the answer to ``show map``: each line is a pointer, a key and its value. An unknown map is an error message, and has none."""
    lines = (line.split(" ", 2) for line in text.splitlines() if line.startswith("0x"))
    return {key: value for _, key, value in lines}

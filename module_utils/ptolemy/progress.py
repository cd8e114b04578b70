"""How far a change has come, in lines for people: services on their way to their size, a node on its way to being empty.

Looks at what the daemon last wrote and at Slurm's jobs; one look, no waiting. The module ``ptolemy_wait`` repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Collection, Iterator, Mapping, Sequence

from .config import Config
from .errors import ObservationError
from .process import one_line, run
from .record import DRAINING, READY
from .slurm import RUNNING, job_name
from .status import DEAD_AFTER

Row = Mapping[str, Any]  # a service, a replica or a server of ``status.describe``


@dataclass(frozen=True)
class Look:
    """How far it is.

    Attributes:
        done: what was waited for is so.
        lines: the state of affairs; the same lines as long as nothing changes.
        next_step: what a person may do where it takes too long.
    """

    done: bool
    lines: Sequence[str]
    next_step: str


@dataclass(frozen=True)
class Guest:
    """A job on a node, whoever it belongs to.

    Attributes:
        id: Slurm's job id.
        uid: the numeric id of its owner.
        user: the owner's name.
        name: the job's name.
    """

    id: int
    uid: int
    user: str
    name: str


def services(config: Config, status: Row, now: float, names: Collection[str] = (), settled: bool = False) -> Look:
    """Look whether services have their replicas.

    Args:
        config: the services file as it is now; the daemon may not have taken it up yet.
        status: what the daemon last wrote.
        now: Unix time.
        names: the services in question; empty for all.
        settled: replicas that are too many, or that leave, must be gone, too.
    """
    views = [_Service(config, name, row_of(status, name)) for name in config.services if not names or name in names]
    stale = list(doubts(status, now))
    lines = [*stale, *(view.line() for view in views), *_notes(status)]
    done = not stale and all(view.settled() if settled else view.ready() for view in views)
    waiting = sorted({reason for view in views for reason in view.waiting()})
    if stale:
        step = "systemctl status ptolemyd, journalctl -u ptolemyd -n 50 on the gateway"
    elif waiting:
        step = f"replicas wait for Slurm ({', '.join(waiting)}): squeue --start on the gateway, or lower min and max with scale.yml"
    else:
        step = "ptolemy status on the gateway, and the jobs' logs on their nodes; the same playbook goes on waiting"
    return Look(done, lines, step)


def node(name: str, closed: bool, guests: Sequence[Guest], config: Config, status: Row, now: float, all_jobs: bool = False) -> Look:
    """Look whether a node is empty.

    Args:
        name: the node's name.
        closed: Slurm starts nothing new on it.
        guests: the jobs that are on it.
        config: the services file.
        status: what the daemon last wrote; it explains, the jobs decide.
        now: Unix time.
        all_jobs: other people's jobs must be gone, too.
    """
    ours = sorted((it for it in guests if it.uid == config.site.uid and it.name.startswith(job_name(""))), key=lambda it: it.id)
    others = [guest for guest in guests if guest not in ours]
    views = [_Service(config, service, row_of(status, service)) for service in config.services]
    told = {job: words for view in views for job, words in view.states()}
    lines = [f"{name}: {_count(len(ours), 'replica')} left"]
    lines += [f"{name}: job {guest.id} ({guest.name}) {told.get(guest.id, 'is ending')}" for guest in ours]
    if others:
        users = ", ".join(sorted({guest.user for guest in others}))
        lines.append(f"{name}: {_count(len(others), 'other job')} left ({users})")
    if not closed:
        lines.append(f"{name}: Slurm may start jobs on it, for it does not drain")
    if ours:
        here = {guest.name for guest in ours}
        involved = [view for view in views if job_name(view.name) in here or not view.ready()]
        lines += [*doubts(status, now), *(view.line() for view in involved), *_notes(status)]
    waiting = sorted({f"{view.name} ({reason})" for view in views for reason in view.waiting()})
    again = f"{name} stays closed, and the same playbook goes on waiting"
    end = f"scancel {' '.join(str(guest.id) for guest in ours)} on the gateway (running answers get stop_grace seconds)"
    if not closed:
        step = "playbooks/drain_node.yml, which drains it first"
    elif ours and waiting:
        blocked = f"successors wait for Slurm, of {', '.join(waiting)}"
        step = f"{blocked}: lower min and max with scale.yml, or end the replicas now: {end}; {again}"
    elif ours:
        step = f"wait longer (drain_node_timeout), or end the replicas now: {end}; {again}"
    else:
        step = f"squeue --nodelist={name} on the gateway shows whose jobs they are; {again}"
    return Look(closed and not ours and not (all_jobs and others), lines, step)


def guests(name: str, timeout: float) -> list[Guest]:
    """The jobs on a node, also those that are ending.

    Raises:
        ObservationError: Slurm gave no answer, or none that can be read.
    """
    return parse_guests(run(("squeue", "--noheader", f"--nodelist={name}", "--format=%A|%T|%U|%u|%j"), timeout, error=ObservationError))


def parse_guests(text: str) -> list[Guest]:
    """Parse the output of ``squeue --format=%A|%T|%U|%u|%j``.

    Raises:
        ObservationError: a line is not of that form.
    """
    found = []
    for line in text.splitlines():
        columns = line.strip().split("|", 4)
        if len(columns) != 5 or not (columns[0].isdigit() and columns[2].isdigit()):
            raise ObservationError(f"squeue printed a line that is no job: {one_line(line)}")
        if columns[1] != "PENDING":  # it asks for the node, and is not there yet
            found.append(Guest(int(columns[0]), int(columns[2]), columns[3], columns[4]))
    return found


class _Service:
    """One service: what the services file says, and what the daemon says."""

    def __init__(self, config: Config, name: str, row: Row | None) -> None:
        self.name = name
        self._service = service = config.services[name]
        canary = config.canaries[name].service.revision if name in config.canaries else ""
        self._row: Row = row or {"replicas": [], "servers": []}
        told = ("min", "max", "opportunistic", "revision")
        self._taken_up = (
            row is not None
            and all(row.get(key, getattr(service, key)) == getattr(service, key) for key in told)
            and (row.get("canary") or {"revision": ""})["revision"] == canary
        )
        # A canary is beside what the service should have; rollout.yml looks after it.
        self._replicas: list[Row] = [replica for replica in self._row["replicas"] if not canary or replica["revision"] != canary]

    def ready(self) -> bool:
        """The ordinary replicas that it should have now serve. Extra ones may wait for idle GPUs for ever."""
        return self._taken_up and sum(not replica["opportunistic"] for replica in self._ready()) >= self._ordinary

    def settled(self) -> bool:
        """Moreover, no replica is too many, or on its way out."""
        replicas = self._replicas
        extra = sum(replica["opportunistic"] for replica in replicas)
        return (
            self.ready()
            and len(replicas) - extra <= self._ordinary
            and extra <= self._row["replicas_wanted"] - self._ordinary
            and not any(self._leaves(replica) for replica in replicas)
        )

    @property
    def _ordinary(self) -> int:
        return int(min(self._row["replicas_wanted"], self._service.guaranteed))

    def waiting(self) -> list[str]:
        """Slurm's reasons for which ordinary replicas wait."""
        pending = [replica for replica in self._replicas if replica["slurm"] == "PENDING" and not replica["opportunistic"]]
        return [replica["reason"] for replica in pending]

    def line(self) -> str:
        """How far it is."""
        if not self._taken_up:
            return f"{self.name}: ptolemyd has not taken the services file up yet (min {self._service.min}, max {self._service.max})"
        wanted, ready = self._row["replicas_wanted"], len(self._ready())
        if wanted or ready:
            head = f"{ready} of {wanted} replicas ready"
        else:
            head = "asleep, until somebody asks" if self._service.max else "stopped"
        rest: dict[str, int] = {}
        for replica in self._replicas:
            if replica not in self._ready():
                words = self._state(replica) + (f" on {replica['host']}" if replica["host"] else "")
                rest[words] = rest.get(words, 0) + 1
        return f"{self.name}: " + ", ".join([head, *(f"{count} {words}" for words, count in sorted(rest.items()))])

    def states(self) -> Iterator[tuple[int, str]]:
        """What each replica does, by job id."""
        return ((replica["job"], self._state(replica)) for replica in self._replicas)

    def _state(self, replica: Row) -> str:
        if replica["slurm"] == "PENDING":
            return f"{'extra one ' if replica['opportunistic'] else ''}waiting ({replica['reason']})"
        if replica["slurm"] != RUNNING:
            return str(replica["slurm"].lower())
        if self._drains(replica):
            busy = any(server["in_flight"] for server in self._servers(replica))
            return "draining, still answering" if busy else "draining"
        if self._leaves(replica) and replica["state"] == READY:
            return "of another revision, until successors serve"
        if replica["state"] != READY:
            return str(replica["state"])
        return "ready" if self._serves(replica) else "not reached by HAProxy"

    def _ready(self) -> list[Row]:
        return [
            replica
            for replica in self._replicas
            if replica["slurm"] == RUNNING
            and replica["state"] == READY
            and replica["revision"] == self._service.revision
            and self._serves(replica)
        ]

    def _leaves(self, replica: Row) -> bool:
        return self._drains(replica) or replica["revision"] != self._service.revision

    def _drains(self, replica: Row) -> bool:
        return replica["state"] == DRAINING or any(server["admin"] == "drain" for server in self._servers(replica))

    def _serves(self, replica: Row) -> bool:
        return any(server["up"] and server["admin"] == "ready" for server in self._servers(replica))

    def _servers(self, replica: Row) -> list[Row]:
        return servers_of(replica, self._row["servers"])


def servers_of(replica: Row, servers: Sequence[Row]) -> list[Row]:
    """A replica's servers among those of its service; ``haproxy.server_name`` names them."""
    return [server for server in servers if server["name"].startswith(f"j{replica['job']}r")]


def row_of(status: Row, name: str) -> Row | None:
    """What the daemon says of a service."""
    return next((row for row in status.get("services", ()) if row["service"] == name), None)


def doubts(status: Row, now: float) -> Iterator[str]:
    """Why what the daemon says may not be so."""
    if not status:
        yield "STALE: ptolemyd has written no status; systemctl status ptolemyd"
    elif now - status["time"] > DEAD_AFTER:
        yield "STALE: ptolemyd has said nothing for more than a minute; HAProxy goes on serving"
    elif status["stale_reason"]:
        yield f"STALE: {status['stale_reason']}"


def _notes(status: Row) -> list[str]:
    return [f"note: {trouble}" for trouble in status.get("troubles", ()) if trouble != status["stale_reason"]]


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"

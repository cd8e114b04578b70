"""The Slurm adapter: what jobs the service account has, submit one, end one. All through Slurm's own commands.

Text output with ``squeue --user`` is used instead of ``--json``: the text is the same from Slurm 22.05 to 24.11, costs
10 to 30 ms, and fails with a non-zero exit status when the controller is gone. On 22.05 ``--json`` ignores every filter
and answers an empty list with exit status 0 in that case.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import AbstractSet, Callable, Mapping, Sequence

from .errors import ChangeError, ObservationError
from .process import one_line, run
from .record import DRAINING, FAILED, READY, Record, decode

# What `squeue --states=all` shows. Ended jobs stay listed for Slurm's MinJobAge (300 s by default).
RUNNING = "RUNNING"
ENDED_STATES = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
FAILED_STATES = frozenset("BOOT_FAIL FAILED OUT_OF_MEMORY".split())

_FIELDS = (
    *("JobID", "State", "UserID", "RestartCnt", "BatchHost", "SubmitTime", "StartTime", "EndTime", "PreemptTime"),
    *("Reason", "Name", "Comment"),
)
# `type:size+suffix`: padded to the size and cut there. The comment comes last because its writer controls it.
_WIDTHS = {"Comment": 1100, "Name": 128, "Reason": 64, "BatchHost": 256}
_FORMAT = ",".join(f"{field}:{_WIDTHS.get(field, 40)}|" for field in _FIELDS)
# Of a node's states (sinfo's %T): "draining", "drained*", "failing", "inval", "mixed@" (to be rebooted). Not "maint": Slurm lets no job
# run into a maintenance, and a reservation of that kind may be ours.
_CLOSED = re.compile(r"^(drain|down|fail|inval|reboot)|@$")
_LINE_START = re.compile(r"^\d+ *\|", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One job of the service account.

    Attributes:
        id: Slurm's job id.
        state: Slurm's word for its state, as ``RUNNING``.
        user_id: the numeric id of its owner.
        restart: how often it was requeued.
        host: the node that runs its script; empty while it has none.
        submit, start, end: Unix times, 0 where Slurm names none; the end of a running job is its time limit.
        reason: Slurm's word for why it waits or ended.
        name: the job's name.
        record: what its comment holds, None where that is not a record.
        address: the IP address of ``host``; empty where it is not known.
        preempted: Slurm has begun to take its GPUs away.
    """

    id: int
    state: str
    user_id: int
    restart: int
    host: str
    submit: float
    start: float
    end: float
    reason: str
    name: str
    record: Record | None
    address: str = ""
    preempted: bool = False

    @property
    def ended(self) -> bool:
        """Slurm says that it ended or is ending; its endpoints get no new request."""
        return self.state in ENDED_STATES

    @property
    def failed(self) -> bool:
        """It ended by a fault of its own, or says that it does, so the next one may end the same way."""
        word = self.record.state if self.record is not None and self.fresh else ""
        quick = self.state == "COMPLETED" and self.end - self.start < 60 and word != DRAINING
        # It says so seconds before its job ends, on a busy node.
        return self.state in FAILED_STATES or quick or word == FAILED

    @property
    def fresh(self) -> bool:
        """The record is of this run: a comment survives a requeue."""
        return self.record is not None and self.record.restart == self.restart

    @property
    def ready(self) -> bool:
        """It runs, says that its endpoints may be used, and Slurm is not about to end it."""
        return self.state == RUNNING and not self.preempted and self.fresh and self.record is not None and self.record.state == READY


@dataclass(frozen=True)
class Node:
    """One compute node.

    Attributes:
        name: Slurm's name for it.
        host: its NodeAddr: an IP address or a name that resolves to one.
        partitions: the partitions that it belongs to.
        closed: Slurm starts nothing new on it, because it is down or fails, or somebody drains or reboots it.
    """

    name: str
    host: str
    partitions: frozenset[str]
    closed: bool


def job_name(service: str) -> str:
    """The name that jobs of a service carry in squeue."""
    return f"ptolemy-{service}"


def parse_jobs(text: str, user_id: int) -> list[Job]:
    """Parse squeue's output in ``_FORMAT``; jobs of other users are dropped unread.

    Raises:
        ObservationError: a line is not of that form.
    """
    starts = [match.start() for match in _LINE_START.finditer(text)]
    if not starts and text.strip():
        raise ObservationError(f"squeue printed what is no job: {one_line(text)}")
    if starts and text[: starts[0]].strip():
        raise ObservationError(f"squeue printed what is no job: {one_line(text[: starts[0]])}")
    jobs = []
    for first, last in zip(starts, [*starts[1:], len(text)]):
        columns = [column.strip() for column in text[first:last].split("|", len(_FIELDS) - 1)]
        if len(columns) != len(_FIELDS):
            raise ObservationError(f"squeue printed a line that is no job: {one_line(text[first:last])}")
        number, state, uid, restart, host, submit, start, end, preempt, reason, name, comment = columns
        try:
            if int(uid) != user_id:
                continue
            jobs.append(
                Job(
                    id=int(number),
                    state=state,
                    user_id=int(uid),
                    restart=int(restart or 0),
                    host="" if host in ("n/a", "(null)") else host,
                    submit=_unix(submit),
                    start=_unix(start),
                    end=_unix(end),
                    reason=reason,
                    name=name,
                    record=decode(comment.rstrip("|").strip()),
                    preempted=state == RUNNING and _unix(preempt) > 0,
                )
            )
        except ValueError as error:
            raise ObservationError(f"squeue printed a line that cannot be read ({error}): {one_line(text[first:last])}") from error
    return sorted(jobs, key=lambda job: job.id)


def _unix(text: str) -> float:
    return 0.0 if text in ("N/A", "", "NONE", "Unknown") else datetime.fromisoformat(text).timestamp()


class Slurm:
    """Slurm as seen from the gateway.

    Args:
        uid: the service account's numeric id; squeue filters by it, and each job is checked against it.
        timeout: seconds that one command may take.
        clock: seconds, monotonic.
    """

    NODES_AGE = 5.0  # seconds until the nodes are asked for again
    ADDRESS_AGE = 60.0  # seconds until a node's name is resolved again
    MOST_CROSS_CHECKS = 4  # jobs that scontrol is asked about where squeue misses some

    def __init__(self, uid: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._uid = uid
        self._timeout = timeout
        self._clock = clock
        self._nodes: Mapping[str, Node] = {}
        self._nodes_at = float("-inf")
        self._addresses: dict[str, tuple[str, float]] = {}

    def jobs(self, expected: AbstractSet[int] = frozenset()) -> list[Job]:
        """All jobs of the service account, the recently ended ones too, with the addresses of their hosts.

        Args:
            expected: ids of jobs that were alive when last seen. One that squeue does not list is looked for with scontrol: an
                empty or cut answer with exit status 0 must not pass for the end of everything.

        Raises:
            ObservationError: Slurm gave no answer, or none that can be read, or two that contradict each other.
        """
        text = self._ask("squeue", "--noheader", "--states=all", f"--user={self._uid}", f"--Format={_FORMAT}")
        jobs = parse_jobs(text, self._uid)
        for missing in sorted(expected - {job.id for job in jobs})[: self.MOST_CROSS_CHECKS]:
            self._check_gone(missing)
        hosts = {job.host for job in jobs if job.ready}
        nodes = self.nodes(hosts) if hosts else {}
        return [replace(job, address=self._address(nodes[job.host])) if job.ready and job.host in nodes else job for job in jobs]

    def _address(self, node: Node) -> str:
        address, resolved_at = self._addresses.get(node.host, ("", float("-inf")))
        if self._clock() - resolved_at > self.ADDRESS_AGE:
            # A name service that fails for a moment must not take a node's endpoints away.
            address = _resolve(node.host) or address
            self._addresses[node.host] = (address, self._clock())
        return address

    def _check_gone(self, job_id: int) -> None:
        try:
            text = self._ask("scontrol", "--oneliner", "show", "job", str(job_id))
        except ObservationError as error:
            if "Invalid job id" in str(error):
                return
            raise
        state = re.search(r"\bJobState=([A-Z_]+)", text)
        if state is None or state[1] not in ENDED_STATES:
            raise ObservationError(f"squeue does not list job {job_id}, but scontrol shows it as {state[1] if state else 'something'}")

    def nodes(self, needed: AbstractSet[str] = frozenset()) -> Mapping[str, Node]:
        """All nodes by name, at most ``NODES_AGE`` seconds old and with those ``needed``, if Slurm knows them.

        Raises:
            ObservationError: as ``jobs``.
        """
        age = self._clock() - self._nodes_at
        if age > self.NODES_AGE or (not needed <= self._nodes.keys() and age > 1):
            text = self._ask("sinfo", "--noheader", "--Node", "--all", "--format=%N|%o|%R|%T")
            self._nodes = parse_nodes(text)
            self._nodes_at = self._clock()
        return self._nodes

    def submit(self, script: str) -> int:
        """Submit a batch script and return the job's id.

        Raises:
            ChangeError: sbatch refused it or gave no answer.
        """
        text = self._change("sbatch", "--parsable", stdin=script)
        try:
            return int(text.strip().partition(";")[0])
        except ValueError as error:
            raise ChangeError(f"sbatch printed no job id: {one_line(text)}") from error

    def leave(self, job_ids: Sequence[int]) -> None:
        """Ask drained replicas to end once they are idle. Raises ChangeError as ``submit``."""
        self._change("scancel", "--batch", "--signal=USR2", *map(str, job_ids))

    def cancel(self, job_ids: Sequence[int]) -> None:
        """End jobs: Slurm sends TERM, and KILL after its KillWait. Raises ChangeError as ``submit``."""
        self._change("scancel", *map(str, job_ids))

    def release(self, job_id: int) -> None:
        """Let a requeued job start now: Slurm would hold it for about two minutes. Raises ChangeError as ``submit``."""
        self._change("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    def _ask(self, *argv: str) -> str:
        return run(argv, self._timeout, error=ObservationError)

    def _change(self, *argv: str, stdin: str = "") -> str:
        return run(argv, self._timeout, stdin=stdin, error=ChangeError)


def parse_nodes(text: str) -> dict[str, Node]:
    """Parse the output of ``sinfo --Node --format=%N|%o|%R|%T``, which has a line for each node in each partition.

    Raises:
        ObservationError: a line is not of that form.
    """
    nodes: dict[str, Node] = {}
    for line in text.splitlines():
        columns = line.strip().split("|")
        if len(columns) != 4:
            raise ObservationError(f"sinfo printed a line that is no node: {one_line(line)}")
        name, host, partition, state = columns
        if name in nodes:
            nodes[name] = replace(nodes[name], partitions=nodes[name].partitions | {partition})
        else:
            nodes[name] = Node(name, host, frozenset([partition]), closed=bool(_CLOSED.search(state)))
    return nodes


def _resolve(address: str) -> str:
    """The first IP address of a node; empty where the name is unknown. HAProxy's runtime API takes no names."""
    try:
        found = socket.getaddrinfo(address.strip(), None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(found[0][4][0])

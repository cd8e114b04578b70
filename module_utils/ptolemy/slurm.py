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
from typing import Callable, Mapping, Sequence

from .errors import ChangeError, ObservationError
from .process import one_line, run
from .record import READY, Record, decode

# What `squeue --states=all` shows. Ended jobs stay listed for Slurm's MinJobAge (300 s by default).
RUNNING = "RUNNING"
ENDED_STATES = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
FAILED_STATES = frozenset("BOOT_FAIL FAILED OUT_OF_MEMORY".split())

_FIELDS = ("JobID", "State", "UserID", "RestartCnt", "BatchHost", "StartTime", "EndTime", "Reason", "Name", "Comment")
# `type:size+suffix`: padded to the size and cut there. The comment comes last because its writer controls it.
_WIDTHS = {"Comment": 1100, "Name": 128, "Reason": 64, "BatchHost": 256}
_FORMAT = ",".join(f"{field}:{_WIDTHS.get(field, 40)}|" for field in _FIELDS)
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
        start, end: Unix times, 0 where Slurm names none; the end of a running job is its time limit.
        reason: Slurm's word for why it waits or ended.
        name: the job's name.
        record: what its comment holds, None where that is not a record.
        address: the IP address of ``host``; empty where it is not known.
    """

    id: int
    state: str
    user_id: int
    restart: int
    host: str
    start: float
    end: float
    reason: str
    name: str
    record: Record | None
    address: str = ""

    @property
    def ended(self) -> bool:
        """Slurm says that it ended or is ending; its endpoints get no new request."""
        return self.state in ENDED_STATES

    @property
    def failed(self) -> bool:
        """It ended by a fault of its own, so the next one may end the same way."""
        quick = self.state == "COMPLETED" and self.end - self.start < 60
        return self.state in FAILED_STATES or quick

    @property
    def fresh(self) -> bool:
        """The record is of this run: a comment survives a requeue."""
        return self.record is not None and self.record.restart == self.restart

    @property
    def ready(self) -> bool:
        """It runs and says that its endpoints may be used."""
        return self.state == RUNNING and self.fresh and self.record is not None and self.record.state == READY


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
        number, state, uid, restart, host, start, end, reason, name, comment = columns
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
                    start=_unix(start),
                    end=_unix(end),
                    reason=reason,
                    name=name,
                    record=decode(comment.rstrip("|").strip()),
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

    ADDRESS_AGE = 60.0  # seconds until the nodes' addresses are asked for again

    def __init__(self, uid: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._uid = uid
        self._timeout = timeout
        self._clock = clock
        self._addresses: Mapping[str, str] = {}
        self._addresses_at = float("-inf")

    def jobs(self) -> list[Job]:
        """All jobs of the service account, the recently ended ones too, with the addresses of their hosts.

        Raises:
            ObservationError: Slurm gave no answer, or none that can be read.
        """
        text = run(
            ["squeue", "--noheader", "--states=all", f"--user={self._uid}", f"--Format={_FORMAT}"],
            self._timeout,
            error=ObservationError,
        )
        jobs = parse_jobs(text, self._uid)
        addresses = self._node_addresses({job.host for job in jobs if job.ready})
        return [replace(job, address=addresses.get(job.host, "")) for job in jobs]

    def _node_addresses(self, hosts: set[str]) -> Mapping[str, str]:
        known = hosts <= self._addresses.keys()
        if hosts and (not known or self._clock() - self._addresses_at > self.ADDRESS_AGE):
            text = run(["sinfo", "--noheader", "--Node", "--format=%N|%o"], self._timeout, error=ObservationError)
            pairs = {line.strip().partition("|")[::2] for line in text.splitlines() if "|" in line}
            self._addresses = {node: ip for node, address in pairs if node in hosts for ip in [_resolve(address)] if ip}
            self._addresses_at = self._clock()
        return self._addresses

    def submit(self, script: str) -> int:
        """Submit a batch script and return the job's id.

        Raises:
            ChangeError: sbatch refused it or gave no answer.
        """
        text = run(["sbatch", "--parsable"], self._timeout, stdin=script, error=ChangeError)
        try:
            return int(text.strip().partition(";")[0])
        except ValueError as error:
            raise ChangeError(f"sbatch printed no job id: {one_line(text)}") from error

    def cancel(self, job_ids: Sequence[int]) -> None:
        """End jobs: Slurm sends TERM, and KILL after its KillWait.

        Raises:
            ChangeError: scancel failed or gave no answer.
        """
        run(["scancel", *map(str, job_ids)], self._timeout, error=ChangeError)


def _resolve(address: str) -> str:
    """The first IP address of a node; empty where the name is unknown. HAProxy's runtime API takes no names."""
    try:
        found = socket.getaddrinfo(address.strip(), None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(found[0][4][0])

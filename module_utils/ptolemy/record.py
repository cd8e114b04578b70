"""The record that a replica publishes as its own Slurm comment.

A Slurm comment holds at most 1024 bytes and survives a requeue, so the notation is short and carries the restart count
of the run that wrote it. The host is left out on purpose: it is taken from Slurm, which a job cannot forge.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain
from typing import Iterable

VERSION = 1
MAX_BYTES = 1024  # Slurm refuses a longer comment and keeps the old one

STARTING = "starting"
READY = "ready"
DRAINING = "draining"
FAILED = "failed"
STATES = (STARTING, READY, DRAINING, FAILED)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,40}")  # of a service or a model
_REVISION = re.compile(r"[0-9a-f]{12}")
_PORTS = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_MOST_PORTS = 256


@dataclass(frozen=True)
class Record:
    """What one replica says of itself.

    Attributes:
        service: the service's name.
        revision: twelve hexadecimal digits, see ``config.Service.revision``.
        restart: Slurm's restart count of the run that wrote the record.
        state: one of ``STATES``.
        ports: the TCP ports of its endpoints, sorted.
        slots: how many sequences each endpoint decodes in parallel.
        reason: why it failed, one line; empty otherwise.
        opportunistic: it is one of the extra replicas, on GPUs that somebody else may want back.
        took: seconds from the job's start until it was ready, rounded up; 0 before.
        avoids: while it waits, the nodes that it was told to avoid because replicas failed there.
    """

    service: str
    revision: str
    restart: int
    state: str
    ports: tuple[int, ...] = ()
    slots: int = 0
    reason: str = ""
    opportunistic: bool = False
    took: int = 0
    avoids: tuple[str, ...] = ()


def encode(record: Record) -> str:
    """Return the record as a Slurm comment of at most ``MAX_BYTES`` bytes.

    The reason is cut to fit; nothing else ever is.

    Raises:
        ValueError: the record is too long without its reason.
    """
    fields: dict[str, object] = {
        "v": VERSION,
        "s": record.service,
        "r": record.revision,
        "n": record.restart,
        "st": record.state,
        "p": _fold(record.ports),
        "k": record.slots,
    }
    if record.opportunistic:
        fields["o"] = 1
    if record.took:
        fields["t"] = record.took
    if record.avoids:
        fields["a"] = ",".join(record.avoids)
    text = _dump(fields)
    room = MAX_BYTES - len(text)
    if room < 0:
        raise ValueError(f"the record of {record.service} takes {len(text)} bytes, and a Slurm comment holds {MAX_BYTES}")
    if record.reason and room > 40:
        # '|' and line ends would confuse people who read squeue; non-ASCII would make the length hard to foresee.
        reason = re.sub(r"[^ -{}~]+", " ", record.reason).replace('"', "'").replace("\\", "/")
        text = _dump({**fields, "why": reason[: room - 10]})
    return text


def decode(comment: str) -> Record | None:
    """Return the record in a Slurm comment, or None where it holds none that is whole and plausible."""
    try:
        fields = json.loads(comment)
    except ValueError:
        return None
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        return None
    service, revision, restart, state = (fields.get(key) for key in ("s", "r", "n", "st"))
    ports, slots, reason = fields.get("p", ""), fields.get("k", 0), fields.get("why", "")
    if not (isinstance(service, str) and NAME.fullmatch(service)):
        return None
    if not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        return None
    if type(restart) is not int or restart < 0 or type(slots) is not int or not 0 <= slots <= 4096:
        return None
    if state not in STATES or not isinstance(reason, str):
        return None
    opportunistic, took, avoids = fields.get("o", 0), fields.get("t", 0), fields.get("a", "")
    if opportunistic not in (0, 1) or type(took) is not int or took < 0 or not isinstance(avoids, str):
        return None
    unfolded = _unfold(ports) if isinstance(ports, str) else None
    if unfolded is None:
        return None
    return Record(
        service, revision, restart, state, unfolded, slots, reason, bool(opportunistic), took, tuple(filter(None, avoids.split(",")))
    )


def _dump(fields: dict[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _fold(ports: Iterable[int]) -> str:
    """(20000, 20001, 20002, 20016) -> "20000-20002,20016"."""
    runs: list[list[int]] = []
    for port in sorted(set(ports)):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _unfold(text: str) -> tuple[int, ...] | None:
    if not text:
        return ()
    if not _PORTS.fullmatch(text):
        return None
    bounds = [tuple(int(port) for port in run.split("-")) for run in text.split(",")]
    if sum(max(run[-1] - run[0] + 1, 0) for run in bounds) > _MOST_PORTS:
        return None
    ports = tuple(sorted(chain.from_iterable(range(run[0], run[-1] + 1) for run in bounds)))
    if any(run[-1] < run[0] for run in bounds) or not all(1 <= port <= 65535 for port in ports):
        return None
    return ports if len(set(ports)) == len(ports) else None

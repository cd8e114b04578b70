"""Slurm's partitions and their GPUs, read from ``sinfo`` or from the variables of a Slurm that Ptolemy builds itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence


@dataclass(frozen=True)
class Partition:
    """What matters of a partition.

    Attributes:
        gpus_per_node: the most GPUs on one of its nodes; None where only the nodes themselves can tell.
        gpus: the GPUs of all its nodes; None likewise.
        most_seconds: the longest time of a job; None where there is no limit.
    """

    gpus_per_node: Optional[int] = 0
    gpus: Optional[int] = 0
    most_seconds: Optional[int] = None


def from_sinfo(output: str) -> dict[str, Partition]:
    """Return the partitions in the output of ``sinfo --noheader --all --format='%P %G %D %l'``.

    It has a line for each kind of node in a partition, in every version of Slurm; JSON differs from one to the next.

    Raises:
        ValueError: a line cannot be read, or there is none; then nothing is known, rather than that there are no partitions.
    """
    nodes: dict[str, list[int]] = {}
    limits: dict[str, str] = {}
    for line in output.splitlines():
        fields = line.split()
        if len(fields) != 4 or not fields[2].isdigit():
            raise ValueError(f"sinfo printed a line that cannot be read: {line!r}")
        name = fields[0].rstrip("*")  # marks the default partition
        nodes.setdefault(name, []).extend([gpus_of(fields[1])] * int(fields[2]))
        limits[name] = fields[3]
    if not nodes:
        raise ValueError("sinfo printed no partition")
    return {name: _partition(gpus, limits[name]) for name, gpus in nodes.items()}


def from_variables(partitions: Any, nodes: Mapping[str, Optional[int]]) -> dict[str, Partition]:
    """Return the partitions of ``slurm_partitions``.

    Args:
        partitions: the variable's value.
        nodes: GPUs by node; None where only the node itself can tell.

    Raises:
        ValueError: the variable has not the shape that the role slurm asks for.
    """
    if not isinstance(partitions, list) or not all(isinstance(it, Mapping) and it.get("name") for it in partitions):
        raise ValueError("must be a list of partitions, each with a name")
    found = {}
    for partition in partitions:
        given = partition.get("nodes") or "ALL"
        wanted = list(hosts(",".join(given) if isinstance(given, list) else str(given)))
        members = nodes if wanted == ["ALL"] else {name: nodes.get(name) for name in wanted}
        # An administrator may write the option's name as slurm.conf does, in any case of letters.
        options = {str(key).lower(): str(value) for key, value in (partition.get("options") or {}).items()}
        found[str(partition["name"])] = _partition(list(members.values()), options.get("maxtime", ""))
    return found


def _partition(gpus: Sequence[Optional[int]], limit: str) -> Partition:
    known = [count for count in gpus if count is not None]
    if len(known) < len(gpus):
        return Partition(None, None, seconds(limit) or None)
    return Partition(max(known, default=0), sum(known), seconds(limit) or None)


def gpus_of(gres: str) -> int:
    """Return the GPUs in Slurm's notation of a node's resources: ``gpu:a100:8(S:0-1),shard:64`` has 8."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)(?=,|$)", plain))


def seconds(limit: str) -> int:
    """Return the seconds of a time limit in Slurm's notation; 0 where it is none (or no limit at all)."""
    shape = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?)|(?:(\d+):(\d+):(\d+))|(?:(\d+)(?::(\d+))?)", limit)
    if not shape:
        return 0
    days, *clock = (int(part or 0) for part in shape.groups())
    hours, minutes, rest = clock[0] + clock[3], clock[1] + clock[4] + clock[6], clock[2] + clock[5] + clock[7]
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def hosts(pattern: str) -> Iterator[str]:
    """Return the names in Slurm's notation of several: ``n[1-2,07],gw`` are n1, n2, n07 and gw."""
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\][^,\[\]]*)*", pattern):
        yield from _expanded(part)


def _expanded(part: str) -> Iterable[str]:
    shape = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if not shape:
        return [part]
    head, numbers, tail = shape.groups()
    names = []
    for run in numbers.split(","):
        low, _, high = run.partition("-")
        last = high or low
        if not (low.isdigit() and last.isdigit()) or int(last) - int(low) > 10_000:
            raise ValueError(f"{part!r} is no list of nodes in Slurm's notation")
        names += [f"{head}{number:0{len(low)}d}" for number in range(int(low), int(last) + 1)]
    return [name + rest for name in names for rest in _expanded(tail)]

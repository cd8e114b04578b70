"""Tuning as the gateway sees it: what the job is asked, out of the operator's wishes and the service's past, and how far it is."""

from __future__ import annotations

import math
import re
from typing import Any, Iterable, Mapping

from . import tune, tuned
from .config import CHAT, Service
from .errors import ConfigError, ObservationError, PtolemyError
from .keys import INTERACTIVE
from .process import run
from .progress import Look
from .slurm import ENDED_STATES, RUNNING
from .usage import Use

DAYS = 14  # of the service's past
UNASKED = 60.0  # seconds after which a job that nobody waits for ends
# For people who read along: seconds that p99 of the first token, and of the time between tokens, may reach.
FIRST_TOKEN, BETWEEN_TOKENS = 2.0, 0.2
PROFILE = ("prompt_tokens", "shared_tokens", "answer_tokens", "streamed")
WISHES = (*PROFILE, "first_token_seconds", "between_tokens_seconds", "minutes", "servers", "slots")


def wish(service: Service, present: Mapping[str, Any], wishes: Mapping[str, Any], rows: Iterable[Use], gpu_memory: int) -> dict[str, Any]:
    """What a job is asked beside what the service says itself, by the keys of ``tune.DEFAULTS``.

    Args:
        service: that is to be tuned.
        present: its ``servers_per_gpu``, ``slots`` and ``flags``.
        wishes: the operator's; what is not among them comes from the past, or is a default.
        rows: who used how much in the last days.
        gpu_memory: bytes, 0 where the node shall tell.

    Raises:
        ConfigError: something cannot be, or is not known.
    """
    if service.kind != CHAT:
        raise ConfigError(f"{service.name}: tune.yml is for services of the kind {CHAT}, and this is of the kind {service.kind}")
    unknown = sorted(set(wishes) - set(WISHES))
    if unknown:
        raise ConfigError(f"tune_{unknown[0]}: unknown; known are tune_{', tune_'.join(WISHES)}")
    profile = {**past(rows, service.name), **{key: value for key, value in wishes.items() if key in PROFILE}}
    if not {"prompt_tokens", "answer_tokens"} <= profile.keys():
        raise ConfigError(
            f"{service.name}: nobody has used it in the last {DAYS} days, so say what requests are like: -e tune_prompt_tokens=N"
            " -e tune_answer_tokens=N, and tune_shared_tokens=N for those that all prompts begin with"
        )
    length = profile["prompt_tokens"] + profile["answer_tokens"]
    if length > service.context:
        raise ConfigError(
            f"tune_prompt_tokens, tune_answer_tokens: a request of {length} tokens does not fit into {service.name}'s context,"
            f" {service.context}"
        )
    streamed = profile.setdefault("streamed", True)
    bounds = {"first_token_seconds": FIRST_TOKEN, "between_tokens_seconds": BETWEEN_TOKENS} if streamed else {}
    rest = {key: value for key, value in wishes.items() if key not in PROFILE}
    return {
        "minutes": tune.DEFAULTS["minutes"],
        **bounds,
        **profile,
        **rest,
        "present": {key: list(present[key]) if key == "flags" else present[key] for key in tuned.KEYS},
        "gpu_memory": gpu_memory,
        "unasked_seconds": UNASKED,
    }


def past(rows: Iterable[Use], service: str) -> dict[str, Any]:
    """The mean request of a service; nothing where there was none.

    The tokens of a prompt are those that were computed: what a cache had cost nothing, and nobody counted it.
    """
    used = [row for row in rows if row.service == service]
    requests = sum(row.requests for row in used)
    read, generated = sum(row.tokens_read for row in used), sum(row.tokens_generated for row in used)
    if not requests or not read or not generated:
        return {}
    people = sum(row.requests for row in used if row.tier == INTERACTIVE)
    return {
        "prompt_tokens": max(math.ceil(read / requests), 1),
        "answer_tokens": max(math.ceil(generated / requests), 1),
        "streamed": people * 2 >= requests,
    }


def look(job: int, timeout: float) -> Look:
    """How far a job is; it is told at the same time that somebody waits for it.

    Raises:
        ConfigError: Slurm does not know it, so waiting does not help.
    """
    try:
        text = run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%N|%r|%k"], timeout, error=ObservationError)
    except ObservationError as error:
        if "Invalid job id" in str(error):
            raise ConfigError(f"job {job}: Slurm does not know it any more") from error
        return Look(False, [f"Slurm gives no answer: {error}"], "squeue on the gateway")
    columns = text.strip().split("|", 3)
    if len(columns) != 4:
        raise ConfigError(f"job {job}: Slurm does not know it any more")
    state, node, reason, comment = columns
    told = [line.strip() for line in comment.splitlines() if line.strip() not in ("", "(null)")]
    if state in ENDED_STATES and state != "COMPLETING":
        return Look(True, [*told, f"job {job} has ended on {node or 'no node'}: {state}"], "")
    step = f"squeue --start -j {job} on the gateway; the job's log on its node"
    if state != RUNNING:
        return Look(False, [*told, f"job {job} waits: {state} ({reason})"], step)
    if told:  # before, the signal would end the script that has not begun to listen
        try:
            run(["scancel", "--batch", "--signal=USR1", str(job)], timeout)
        except PtolemyError as error:
            return Look(False, [*told, f"it cannot be told that somebody waits: {error}"], step)
    return Look(False, told or [f"job {job} runs on {node}"], step)


def place(job: int, timeout: float) -> tuple[str, str]:
    """The node of a job, and the path of its log there. Raises ObservationError: Slurm does not tell."""
    text = run(["scontrol", "--oneliner", "show", "job", str(job)], timeout, error=ObservationError)
    found = [re.search(rf"\b{name}=(\S+)", text) for name in ("BatchHost", "StdOut")]
    if not all(found):
        raise ObservationError(f"job {job} has not run; squeue -j {job} on the gateway tells why")
    node, log = (match[1] for match in found if match)
    return node, log

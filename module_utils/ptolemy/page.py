"""What the status page and ``ptolemy top`` show: one document, made from the daemon's status and the trends of the last hour. Pure.

Everybody sees it, without a key: so it has no users, no keys, no addresses and no words of jobs' logs. ``for_operators`` adds those.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from .progress import servers_of
from .record import DRAINING, READY
from .slurm import RUNNING
from .trends import KEPT, MINUTE, Trends, expected_wait, look

Row = Mapping[str, Any]

VERSION = 1  # of the document
# States of a service. While it is rolled out, it answers.
ANSWERING, ROLLING, STARTING, FAILING, ASLEEP, OFF = ("ready", "rolling out", "starting", "failing", "asleep", "off")
FAILURES = 2  # of a service that does not answer, after which it is not just starting
BUSY = 10.0  # seconds of expected wait that are worth a word in the headline


def document(seen: Row, trends: Trends, now: float) -> dict[str, Any]:
    """The document for everybody.

    Args:
        seen: the daemon's status, as ``status.read`` gives it.
        trends: which have learnt it.
        now: Unix time.
    """
    services = [_service(row, trends, seen["observed_at"] or now, now) for row in seen["services"]]
    stale = {"since": seen["observed_at"]} if seen["stale_reason"] else None
    return {
        "version": VERSION,
        "view": "everybody",
        "now": round(now, 1),
        "seen_at": round(seen["observed_at"], 1),
        "stale": stale,
        "headline": headline(services, bool(stale)),
        "services": services,
    }


def for_operators(shown: Row, seen: Row, users: Sequence[Row] | None) -> dict[str, Any]:
    """The document with what only operators see.

    Args:
        shown: as ``document`` returns it.
        seen: the status that it was made from, or the next one.
        users: who asks how much, as the daemon wrote it; None where that is not known.
    """
    services = []
    rows = {row["service"]: row for row in seen["services"]}
    for service in shown["services"]:
        row = rows.get(service["service"], {"replicas": (), "failures": (), "canary": None})
        raw = {replica["job"]: replica for replica in row["replicas"]}
        replicas = [{**replica, **_hidden(raw.get(replica["job"]))} for replica in service["replicas"]]
        failures = [*row["failures"], *(row["canary"] or {"failures": ()})["failures"]]
        services.append({**service, "replicas": replicas, "failures": failures})
    stale = {**shown["stale"], "reason": seen["stale_reason"]} if shown["stale"] else None
    return {
        **shown,
        "view": "operators",
        "stale": stale,
        "services": services,
        "troubles": list(seen["troubles"]),
        "last_change": seen["last_change"],
        "users": users,
    }


def headline(services: Sequence[Row], stale: bool) -> dict[str, str]:
    """One sentence on how things are, and its level: ``good``, ``busy``, ``bad`` or ``unknown``."""
    if stale:
        return {"level": "unknown", "text": "This is not up to date: Slurm or the gateway's HAProxy gives ptolemyd no answer."}
    awake = [row for row in services if row["state"] not in (OFF, ASLEEP)]
    asleep = sum(row["state"] == ASLEEP for row in services)
    if not awake:
        return {"level": "good", "text": "All services sleep until somebody asks." if asleep else "No service is switched on."}
    missing = [row for row in awake if row["state"] in (STARTING, FAILING)]
    if missing:
        count = len(awake) - len(missing)
        first = f"{missing[0]['service']}: {missing[0]['sentence']}"
        level = "bad" if any(row["state"] == FAILING for row in missing) else "busy"
        return {"level": level, "text": first if len(awake) == 1 else f"{count} of {len(awake)} services answer. {first}"}
    text = f"{awake[0]['service']} answers" if len(awake) == 1 else f"{'' if asleep else 'All '}{len(awake)} services answer"
    if asleep:
        text += f", {asleep} {'sleeps' if asleep == 1 else 'sleep'} until somebody asks"
    waits = [(row["tiers"]["interactive"]["expected_wait"] or 0.0, row["service"]) for row in awake if "interactive" in row["tiers"]]
    longest, name = max(waits, default=(0.0, ""))
    if longest >= BUSY:
        return {"level": "busy", "text": f"{text}; {name} is busy, a new request waits about {span(longest)}."}
    rolled = [row["service"] for row in awake if row["state"] == ROLLING]
    return {"level": "good", "text": f"{text}; {', '.join(rolled)}: a rollout is going on." if rolled else f"{text}."}


def span(seconds: float) -> str:
    """A length of time in words, as long as people say it."""
    whole = max(round(seconds), 0)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 48 else f"{round(seconds / 86400)} d"


def _service(row: Row, trends: Trends, at: float, now: float) -> dict[str, Any]:
    trend = trends.of(row["service"])
    present = look(at, row)
    waits = dict(zip(("interactive", "batch"), expected_wait(present, row["batch_at_once"], trend.seconds_an_answer(now))))
    first = _first_answer_in(row, trends.took.get(row["service"], 0), now)
    rollout = _rollout(row)
    state = _state(row, rollout)
    lately = trend.lately(now)
    return {
        "service": row["service"],
        "model": row["model"],
        "revision": row["revision"],
        "state": state,
        "sentence": _sentence(row, state, first, trends.took.get(row["service"], 0)),
        "replicas_ready": row["replicas_ready"],
        "replicas_wanted": row["replicas_wanted"],
        "slots": {"busy": min(present.running, present.slots), "all": present.slots},
        "running": present.running,
        "tiers": {
            tier: {
                "queued": queue["queued"],
                "oldest_wait": round(queue["oldest_wait"], 1),
                "expected_wait": _rounded(waits.get(tier)),
            }
            for tier, queue in row["tiers"].items()
        },
        "first_answer_in": _rounded(first),
        "rollout": rollout,
        "replicas": [_replica(replica, row, now) for replica in row["replicas"]],
        "lately": {
            "requests_per_s": _rounded(lately.requests_per_s),
            "tokens_per_s": _rounded(lately.tokens_per_s),
            "first_token_s": _rounded(lately.first_token_s),
        },
        "hour": _hour(trends, row["service"], now),
    }


def _hour(trends: Trends, service: str, now: float) -> dict[str, Any]:
    """The charts' values, a minute each, the oldest first; None where nothing is known."""
    minutes = list(trends.of(service).hour(now))
    return {
        "until": int(now // MINUTE * MINUTE),
        "minutes": KEPT,
        "requests_per_s": [_rounded(minute.requests_per_s) if minute else None for minute in minutes],
        "tokens_per_s": [_rounded(minute.tokens_per_s) if minute else None for minute in minutes],
        "first_token_s": [_rounded(minute.first_token_s) if minute else None for minute in minutes],
        "busy_share": [_rounded(minute.busy_share) if minute else None for minute in minutes],
    }


def _rollout(row: Row) -> dict[str, Any] | None:
    """What a rollout is doing: a canary first, then all replicas of the old revision are replaced."""
    canary = row["canary"]
    running = [replica for replica in row["replicas"] if replica["slurm"] == RUNNING]
    if canary:
        tried = [replica for replica in running if replica["revision"] == canary["revision"]]
        if not any(replica["state"] == READY for replica in tried):
            step = "the canary starts" if tried else "the canary waits for a GPU"
        elif not canary["share"]:
            step = "the canary is asked questions with known answers"
        else:
            step = f"the canary answers {canary['share']:.0%} of the requests and is watched"
        return {
            "revision": canary["revision"],
            "model": canary["model"],
            "share": canary["share"],
            "since": canary["asked_at"],
            "step": step,
        }
    old = [replica for replica in running if replica["revision"] != row["revision"]]
    if not old:
        return None
    step = f"replacing replicas: {row['replicas_ready']} of {row['replicas_wanted']} have the new revision"
    return {"revision": row["revision"], "model": row["model"], "share": None, "since": None, "step": step}


def _state(row: Row, rollout: Row | None) -> str:
    if row["state"] == STARTING and len(row["failures"]) >= FAILURES:
        return FAILING
    return ROLLING if rollout and row["state"] == ANSWERING else str(row["state"])


def _sentence(row: Row, state: str, first: float | None, took: int) -> str:
    ready, wanted = row["replicas_ready"], row["replicas_wanted"]
    if state == OFF:
        return "switched off."
    if state == ASLEEP:
        return f"asleep; the first request wakes it{f' in about {span(took)}' if took else ''}."
    if state == FAILING:
        return f"its replicas fail ({len(row['failures'])} in the last hour), and are tried again."
    count = f"{ready} of {wanted} replicas"
    if state == STARTING:
        waiting = [replica["reason"] for replica in row["replicas"] if replica["slurm"] == "PENDING"]
        if first is not None:
            return f"starting, {count}; the first answer {f'in about {span(first)}' if first >= 1 else 'any moment now'}."
        if waiting and len(waiting) == len(row["replicas"]):
            return f"starting, {count}; it waits for Slurm to give it a GPU ({waiting[0]})."
        return f"starting, {count}."
    return f"{count} ready." if ready < wanted else "all replicas ready." if wanted > 1 else "ready."


def _first_answer_in(row: Row, took: int, now: float) -> float | None:
    """Seconds until the first of the starting replicas serves, if it takes as long as the last one did; None where nobody knows."""
    started: list[float] = [
        replica["started"] for replica in row["replicas"] if replica["slurm"] == RUNNING and replica["state"] == STARTING
    ]
    if row["state"] != STARTING or not started or not took:
        return None
    return max(min(started) + took - now, 0.0)


def _replica(replica: Row, row: Row, now: float) -> dict[str, Any]:
    servers = servers_of(replica, row["servers"])
    return {
        "job": replica["job"],
        "state": _replica_state(replica, servers),
        "node": replica["host"],
        "gpus": list(replica["gpus"]),
        "left": round(replica["ends"] - now) if replica["slurm"] == RUNNING and replica["ends"] > now else None,
        "opportunistic": replica["opportunistic"],
        "old": bool(replica["revision"]) and replica["revision"] != row["revision"] and not _is_canary(replica, row),
        "canary": _is_canary(replica, row),
        "slots": {"busy": sum(server["in_flight"] for server in servers), "all": sum(server["slots"] for server in servers)},
    }


def _is_canary(replica: Row, row: Row) -> bool:
    return bool(row["canary"]) and replica["revision"] == row["canary"]["revision"]


def _replica_state(replica: Row, servers: Sequence[Row]) -> str:
    if replica["slurm"] == "PENDING":
        return "waiting for a GPU"
    if replica["slurm"] != RUNNING:
        return str(replica["slurm"].lower())
    if replica["state"] == DRAINING or any(server["admin"] == "drain" for server in servers):
        return "draining"
    if replica["state"] == READY and not any(server["up"] for server in servers):
        return "not reached"
    return str(replica["state"])


def _hidden(replica: Row | None) -> dict[str, Any]:
    """What only operators see of a replica."""
    if replica is None:
        return {"address": "", "ports": [], "why": ""}
    waits = f"Slurm: {replica['reason']}" if replica["slurm"] == "PENDING" else ""
    return {"address": replica["address"], "ports": list(replica["ports"]), "why": replica["why"] or waits}


def _rounded(value: float | None) -> float | None:
    """Three digits, which is more than anybody sees."""
    return None if value is None else float(f"{value:.3g}")

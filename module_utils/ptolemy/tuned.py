"""What ``playbooks/tune.yml`` found: the variable ``ptolemy_tuned``, how it changes the services, and when it may not any more.

An entry says what it was measured with. Where services.yml says something else since, nothing is applied: who edits that file would
otherwise wonder why nothing changes.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, Iterator, Mapping, Sequence

from .errors import ConfigError
from .rules import OWN_FLAGS, Rule, options, text, whole

VARIABLE = "ptolemy_tuned"
KEYS: Mapping[str, Rule] = {
    "servers_per_gpu": whole(1, 16),
    "slots": whole(1),
    "flags": options(OWN_FLAGS, "the job script"),
}
# What decides how fast a setting is, with what holds where an inventory leaves it out.
MEASURED_WITH: Mapping[str, Any] = {"model": "", "context": 0, "servers_per_gpu": 1, "slots": 0, "flags": []}
OTHER_KEYS: Mapping[str, Rule] = {
    "instead_of": lambda value: (
        "" if isinstance(value, Mapping) and value.keys() == MEASURED_WITH.keys() else "must have " + ", ".join(MEASURED_WITH)
    ),
    "evidence": text(r"(?s).*", "a text"),
}
HEADER = """---
# Written by playbooks/tune.yml, and applied by site.yml and rollout.yml: these values take the place of those in services.yml. Remove an
# entry to return to services.yml. An entry whose instead_of is not what services.yml says any more stops both: tune again, or remove it.
"""
Entry = Mapping[str, Any]


def applied(services: Mapping[str, Any], tuned: Any) -> dict[str, Any]:
    """The services with what was tuned. Raises ConfigError where an entry is wrong, or was measured with something else."""
    wrong = [f"{path}: {message}; {mend}" for path, message, mend in problems(tuned, services)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return {
        name: {**service, **{key: tuned[name][key] for key in KEYS}} if name in tuned else service for name, service in services.items()
    }


def problems(tuned: Any, services: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is wrong: the path of a variable, what, and the mend.

    Args:
        tuned: the value of ``ptolemy_tuned``.
        services: the value of ``ptolemy_services``.
    """
    if not isinstance(tuned, Mapping):
        yield VARIABLE, "must be a dictionary of services", "run playbooks/tune.yml, which writes it, or remove it"
        return
    for name, entry in tuned.items():
        path = f"{VARIABLE}.{name}"
        service = services.get(name)
        if not isinstance(service, Mapping):
            yield path, f"no such service in ptolemy_services{_meant(name, services)}", "remove it"
        elif not isinstance(entry, Mapping):
            yield path, f"must be a dictionary with {', '.join(KEYS)}", "remove it"
        else:
            wrong = list(_entry(path, entry))
            yield from wrong or _stale(path, name, entry, service)


def _entry(path: str, entry: Entry) -> Iterator[tuple[str, str, str]]:
    rules = {**KEYS, **OTHER_KEYS}
    for key in entry:
        if key not in rules:
            yield f"{path}.{key}", f"unknown key{_meant(key, rules)}", "rename or remove it"
    for key, rule in rules.items():
        wrong = rule(entry[key]) if key in entry else "is not set"
        if wrong:
            yield f"{path}.{key}", wrong, "set it"


def _stale(path: str, name: str, entry: Entry, service: Entry) -> Iterator[tuple[str, str, str]]:
    now = measured_with(service)
    for key, value in entry["instead_of"].items():
        if now[key] != value:
            was = f"it was measured where ptolemy_services.{name}.{key} was {_flow(value)}, which is {_flow(now[key])} now"
            yield f"{path}.instead_of.{key}", was, f"run playbooks/tune.yml -e service={name} again, or remove {path}"


def measured_with(service: Entry) -> dict[str, Any]:
    """What services.yml says of a service, as far as it decides how fast a setting is."""
    return {key: service.get(key, default) for key, default in MEASURED_WITH.items()}


def entry_of(result: Mapping[str, Any], service: Entry) -> dict[str, Any]:
    """The entry for what ``tune`` printed.

    Args:
        result: that.
        service: the entry of ``ptolemy_services``.
    """
    return {**{key: result["chosen"][key] for key in KEYS}, "instead_of": measured_with(service), "evidence": "\n".join(evidence(result))}


def evidence(result: Mapping[str, Any]) -> Iterator[str]:
    """The measurements, for who reviews them."""
    words = {"first": "first token", "between": "between tokens"}
    bounds = [f"{words[key]} {seconds:g} s" for key, seconds in result["bounds"].items() if seconds]
    yield f"{result['at']}, {result['host']}, {result['gpu']}; {result['seconds']} s in all, windows of {result['window']:g} s"
    yield f"load: {result['profile']}; every slot always busy" + (f"; bounds (p99): {', '.join(bounds)}" if bounds else "")
    yield f"chosen: {named(result, 'chosen')}: {result['reason']}"
    if result["stopped"]:
        yield f"cut short: {result['stopped']}"
    names = [
        trial["name"] + {"final": ", again"}.get(trial["phase"], "") + (" (present)" if _is(trial, result["present"]) else "")
        for trial in result["trials"]
    ]
    wide = max(map(len, names))
    yield f"{'setting':<{wide}} {'requests/s':>11} {'tokens/s':>9} {'first token, s':>15} {'between, ms':>14} errors of present"
    mine = [trial for trial in result["trials"] if _is(trial, result["present"]) and trial["result"]]
    present = {trial["phase"]: trial["result"]["requests"] for trial in mine}
    for name, trial in zip(names, result["trials"]):
        seen, base = trial["result"], present.get(trial["phase"])
        if seen is None:
            yield f"{name:<{wide}}  failed: {trial['failure']}"
            continue
        first, between = ("{:.2f} / {:.2f}".format(*seen["first"]), [1000 * value for value in seen["between"]])
        times = "{:.1f} / {:.1f}".format(*between) if any(between) else ""
        ratio = f"{seen['requests'] / base:.2f}" if base else ""
        yield f"{name:<{wide}} {seen['requests']:>11.2f} {seen['tokens']:>9.0f} {first:>15} {times:>14} {seen['errors']:>6} {ratio:>10}"


def _is(trial: Mapping[str, Any], values: Entry) -> bool:
    return bool(trial["setting"] == values)


def named(result: Mapping[str, Any], which: str) -> str:
    """The name of the chosen setting, or of the present one."""
    return next((str(trial["name"]) for trial in result["trials"] if _is(trial, result[which])), _flow(result[which]))


def dump(entries: Mapping[str, Entry]) -> str:
    """The file of variables that has these entries."""
    lines = [f"{VARIABLE}:" if entries else f"{VARIABLE}: {{}}"]
    for name, entry in sorted(entries.items()):
        lines.append(f"  {name}:")
        for key, value in entry.items():
            if key == "evidence":
                lines += ["    evidence: |", *(f"      {line}".rstrip() for line in str(value).splitlines())]
            else:
                lines.append(f"    {key}: {_flow(value)}")
    return HEADER + "\n".join(lines) + "\n"


def changes(entry: Entry) -> list[str]:
    """What an entry changes, in lines for people."""
    before = entry["instead_of"]
    return [f"{key}: {_flow(before[key])} -> {_flow(entry[key])}" for key in KEYS if before[key] != entry[key]]


def result_in(log: str) -> dict[str, Any]:
    """What ``tune`` printed last into a job's log. Raises ConfigError with the log's end where it printed nothing."""
    for line in reversed(log.splitlines()):
        if line.startswith('{"service":'):
            found: dict[str, Any] = json.loads(line)
            return found
    last = " | ".join(line.strip() for line in log.splitlines()[-4:]) or "its log is empty"
    raise ConfigError(f"the job found nothing: {last}")


def _flow(value: Any) -> str:
    """A value as YAML on one line; JSON is that."""
    return json.dumps(value)


def _meant(word: Any, known: Sequence[Any] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

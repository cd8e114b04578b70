"""Checks of the site's variables, before anything changes: values in, problems out, nothing is read or run here.

``playbooks/validate.yml`` feeds these functions through the module ``ptolemy_site_check``. A value that may be a secret
is never put into a message.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence

from . import catalogue, tuned
from .config import AFFINITIES, CHAT, COMFYUI, KINDS, Service
from .partitions import Partition, seconds
from .record import NAME
from .replica import GPUS_A_NODE, SERVERS_A_GPU
from .rules import OWN_FLAGS, OWN_SBATCH, SIZE, Rule, boolean, node_list, options, share, text, time_limit, whole

PLACEHOLDER = "CHANGE-ME"  # what the example inventory holds wherever only the administrator knows the value
KEYS = ("ptolemy_api_key", "ptolemy_backend_key")
KEY_MIN = 20
EPHEMERAL_FIRST = 32768  # Linux's default ip_local_port_range: above it any outgoing connection may hold a port


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        variable: dotted path, its first part the inventory variable: ``ptolemy_services.demo.model``.
        message: what is wrong.
        mend: what to do, so that "in FILE" may follow.
    """

    variable: str
    message: str
    mend: str = "set it"

    def line(self, file: str) -> str:
        """Return the one line that the administrator reads."""
        return " ".join(f"{self.variable}: {self.message} — {self.mend} in {file}".split())


_some_text = text(r"(?s).*\S.*", "a text")
_partition = text(r"[A-Za-z0-9_.-]+", "a Slurm partition's name")
_memory = text(r"[1-9]\d*[KMGT]?", "an amount of memory in Slurm's notation, as 32G")


def _names(value: Any) -> str:
    fits = isinstance(value, list) and all(isinstance(name, str) and NAME.fullmatch(name) for name in value)
    return "" if fits else f"must be a list of models' names, not {value!r}"


_SERVICE: Mapping[str, Rule] = {
    "model": text(NAME.pattern, "a model's name"),
    "models": _names,
    "kind": text("|".join(KINDS), f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"),
    "affinity": text("|".join(AFFINITIES), " or ".join(AFFINITIES)),
    **SIZE,
    "batch_share": share,
    "partition": _partition,
    "reservation": _some_text,
    "nodes": node_list,
    "exclusive": boolean,
    "opportunistic_partition": _partition,
    "opportunistic_options": options(OWN_SBATCH, "Ptolemy"),
    "opportunistic_time_min": time_limit,
    "gpus": whole(1),
    "servers_per_gpu": whole(1, SERVERS_A_GPU),
    "slots": whole(1),
    "context": whole(256),
    "time_limit": time_limit,
    "cpus_per_gpu": whole(1),
    "memory_per_gpu": _memory,
    "flags": options(OWN_FLAGS, "the job script"),
    "sbatch_options": options(OWN_SBATCH, "Ptolemy"),
    "start_timeout": whole(1),
    "stop_grace": whole(0),
    "drain_before_end": whole(0, 65535),  # the most that sbatch's --signal takes
}
_SERVICE_OPTIONAL = frozenset(
    "models kind affinity max guaranteed opportunistic target_load batch_share scale_in_delay reservation nodes exclusive"
    " opportunistic_partition opportunistic_options opportunistic_time_min flags sbatch_options start_timeout stop_grace"
    " drain_before_end".split()
)
# What an inventory may say of a service, and whether it must.
SERVICE_KEYS: Mapping[str, bool] = {key: key not in _SERVICE_OPTIONAL for key in _SERVICE}
# A ComfyUI has several models or none, and no context.
_COMFYUI_OPTIONAL = _SERVICE_OPTIONAL | {"model", "context", "servers_per_gpu"}
_SITE: Mapping[str, Rule] = {
    "slurm_managed": boolean,
    "ptolemy_user": text(r"(?!root$)[a-z_][a-z0-9_-]{0,31}", "the name of an unprivileged account"),
    "ptolemy_uid": whole(1, 2**32 - 2),
}
_PORTS: Mapping[str, Rule] = {
    "haproxy_port": whole(1, 65535),
    "haproxy_stats_bind": text(r"\S*:\d{1,5}", "an address and a port, as 127.0.0.1:8404"),
    "ptolemyd_port_first": whole(1024, 65535),
    "ptolemyd_port_last": whole(1024, 65535),
}
_MENDS = {"sha256": "set it to the model file's sha256sum,"}


# ------------------------------------------------------------------------------------------------------- the whole site


def check(
    variables: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    partitions: Optional[Mapping[str, Partition]] = None,
    defined: Iterable[str] = (),
) -> list[Problem]:
    """Return everything that is wrong with a site, in the order in which an administrator would read the inventory.

    Args:
        variables: the site's variables; one that is not set is left out.
        groups: the inventory's hosts by group.
        partitions: Slurm's partitions by name, or None where they are not known.
        defined: the names of all variables that the inventory sets, to recognise a misspelt one.
    """
    return [
        *_groups(variables, groups),
        *(problem for name, rule in _SITE.items() for problem in _top(variables, name, rule, defined)),
        *(_managed(variables, defined) if variables.get("slurm_managed") is True else ()),
        *_keys(variables, defined),
        *_catalogue(variables, "ptolemy_models", catalogue.MODEL, catalogue.MODEL_OPTIONAL, defined),
        *_models(variables),
        *_catalogue(variables, "ptolemy_services", _SERVICE, _SERVICE_OPTIONAL, defined),
        *_sizes(variables),
        *_services(variables, partitions),
        *_tuned(variables),
        *_gpu_memory(variables, partitions),
        *_ports(variables),
    ]


def _groups(variables: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    wanted = ["gateway", "compute"] + ["slurm_controller"] * (variables.get("slurm_managed") is True)
    for group in wanted:
        if not groups.get(group):
            hint = _meant(group, [name for name in groups if name not in ("all", "ungrouped", *wanted)])
            yield Problem(f"group {group}", f"the inventory has no host in it{hint}", "name at least one host")
    if len(groups.get("gateway", ())) > 1:
        # Each would run a ptolemyd, and both would submit and cancel the same service's jobs.
        yield Problem("group gateway", "more than one host; one ptolemyd owns the replicas", "leave one host")


def _top(variables: Mapping[str, Any], name: str, rule: Rule, defined: Iterable[str] = ()) -> Iterator[Problem]:
    if variables.get(name) is None:
        yield _unset(name, variables, defined)
    else:
        yield from _value(name, variables[name], rule)


def _unset(name: str, variables: Mapping[str, Any], defined: Iterable[str], mend: str = "set it") -> Problem:
    """Say that a variable is missing; a name that is set but means nothing here may be a misspelling of it."""
    return Problem(name, f"is not set{_meant(name, set(defined) - set(variables), 0.8)}", mend)


def _value(path: str, value: Any, rule: Rule) -> Iterator[Problem]:
    mend = _MENDS.get(path.rsplit(".", 1)[-1], "set it")
    if PLACEHOLDER in str(value):
        yield Problem(path, "still holds the example's placeholder", mend)
        return
    wrong = rule(value)
    if wrong:
        yield Problem(path, wrong, mend)


def _managed(variables: Mapping[str, Any], defined: Iterable[str]) -> Iterator[Problem]:
    for name in ("slurm_cluster_name", "slurm_partitions"):
        yield from _top(variables, name, lambda value: "" if value else "is not set", defined)


def _keys(variables: Mapping[str, Any], defined: Iterable[str]) -> Iterator[Problem]:
    mend = "make one with `openssl rand -hex 32` and set it"
    for name in KEYS:
        key = variables.get(name)
        if key is None or key == "":
            yield _unset(name, variables, defined, mend)
        elif not isinstance(key, str):
            yield Problem(name, "must be a string: put it in quotes", mend)
        elif PLACEHOLDER in key:
            yield Problem(name, "still holds the example's placeholder", mend)
        elif len(key) < KEY_MIN:
            yield Problem(name, f"has {len(key)} characters; {KEY_MIN} are the least", mend)
        elif not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", key):
            yield Problem(name, "may hold letters, digits and . _ ~ + / = - only (it travels in a header)", mend)
    api, backend = (variables.get(name) for name in KEYS)
    if api and api == backend and PLACEHOLDER not in str(api):
        yield Problem(KEYS[1], f"is the same as {KEYS[0]}, so every client could reach the endpoints directly", mend)


def _catalogue(
    variables: Mapping[str, Any], name: str, rules: Mapping[str, Rule], optional: frozenset[str], defined: Iterable[str]
) -> Iterator[Problem]:
    """Check a dictionary of named entries: the names, each entry's keys, each key's value."""
    entries = variables.get(name)
    if not isinstance(entries, Mapping) or not entries:
        wrong = "must hold at least one entry (name: {...})"
        yield from _top(variables, name, lambda value: wrong, defined)
        return
    for entry, given in entries.items():
        path = f"{name}.{entry}"
        if not isinstance(entry, str) or not NAME.fullmatch(entry):
            yield Problem(path, f"a name must match {NAME.pattern}", "rename it")
        if not isinstance(given, Mapping):
            yield Problem(path, f"must be a dictionary with {', '.join(rules)}")
            continue
        yield from _entry(path, given, rules, _COMFYUI_OPTIONAL if rules is _SERVICE and given.get("kind") == COMFYUI else optional)


def _entry(path: str, given: Mapping[str, Any], rules: Mapping[str, Rule], optional: frozenset[str] = frozenset()) -> Iterator[Problem]:
    for key in given:
        if key not in rules:
            yield Problem(f"{path}.{key}", f"unknown key{_meant(str(key), rules)}", "rename or remove it")
    for key in rules:
        if key not in given and key not in optional:
            yield Problem(f"{path}.{key}", "is not set", _MENDS.get(key, "set it"))
    for key, rule in rules.items():
        if key in given:
            yield from _value(f"{path}.{key}", given[key], rule)


def _models(variables: Mapping[str, Any]) -> Iterator[Problem]:
    """What goes beyond one value of a model: its shards, its mmproj, and that all files lie in one directory."""
    seen: dict[str, tuple[str, str]] = {}
    for name, model in _entries(variables, "ptolemy_models"):
        path, projector = f"ptolemy_models.{name}", model.get("mmproj")
        if isinstance(projector, Mapping):
            yield from _entry(f"{path}.mmproj", projector, catalogue.PART)
        if any(catalogue.values(model)):
            continue  # told already
        wrong = [Problem(f"{path}.{key}", why, mend) for key, why, mend in catalogue.conflicts(model)]
        yield from wrong
        for number, file in enumerate(() if wrong else catalogue.files(model)):
            shared = projector is not None and file.file == projector["file"]  # quantisations of a model share their mmproj
            other, digest = seen.setdefault(file.file, (name, file.sha256))
            if other != name and not (shared and digest == file.sha256):
                why = f"{file.file!r} is also {'a' if number else 'the'} file of model {other!r}"
                yield Problem(f"{path}.{'mmproj.' * shared}file", why, "name another file")


def _sizes(variables: Mapping[str, Any]) -> Iterator[Problem]:
    """``max`` is given, or follows from ``guaranteed`` and ``opportunistic``; ``min`` and ``opportunistic`` are not above it."""
    for name, service in _entries(variables, "ptolemy_services"):
        path = f"ptolemy_services.{name}"
        if "max" not in service and "guaranteed" not in service:
            yield Problem(f"{path}.max", "is not set", "set it, or guaranteed,")
            continue
        low, extra, guaranteed = service.get("min"), service.get("opportunistic", 0), service.get("guaranteed")
        most = service.get("max", guaranteed)
        if not all(type(value) is int for value in (low, extra, most)):
            continue  # told already
        if type(guaranteed) is int:
            if service.get("max", guaranteed + extra) != guaranteed + extra:
                yield Problem(f"{path}.max", f"must be guaranteed + opportunistic, {guaranteed + extra}", "leave it out")
            most = guaranteed + extra
        for key, value in (("min", low), ("opportunistic", extra)):
            if value > most:
                yield Problem(f"{path}.{key}", f"{value} is more than max, {most}", "lower it")


def _services(variables: Mapping[str, Any], partitions: Optional[Mapping[str, Partition]]) -> Iterator[Problem]:
    models = [name for name, _ in _entries(variables, "ptolemy_models")]
    asked: dict[str, int] = defaultdict(int)
    for name, service in _entries(variables, "ptolemy_services"):
        path = f"ptolemy_services.{name}"
        model, limit = service.get("model"), service.get("time_limit")
        if isinstance(model, str) and NAME.fullmatch(model) and model not in models:
            yield Problem(f"{path}.model", f"no model {model!r} in ptolemy_models{_meant(model, models)}")
        if service.get("kind", CHAT) != CHAT and service.get("affinity", AFFINITIES[0]) != AFFINITIES[0]:
            yield Problem(f"{path}.affinity", f"is for services of the kind {CHAT}", "remove it")
        yield from _pictures(path, service, dict(_entries(variables, "ptolemy_models")))
        longest = seconds(limit) if isinstance(limit, str) else 0
        drain = service.get("drain_before_end", Service.drain_before_end)
        if longest and type(drain) is int and longest <= drain:
            yield Problem(f"{path}.time_limit", f"a replica starts to drain {drain} s before its end", "set a longer one")
        partition = service.get("partition")
        if partitions is not None and isinstance(partition, str) and PLACEHOLDER not in partition:
            yield from _placing(path, service, longest, partitions, asked)


def _pictures(path: str, service: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Check that a ComfyUI has models with a folder, and others one without."""
    if service.get("kind") != COMFYUI:
        if "models" in service:
            yield Problem(f"{path}.models", f"is for services of the kind {COMFYUI}", "remove it, or set kind,")
        elif isinstance(service.get("model"), str) and "folder" in models.get(service["model"], {}):
            yield Problem(f"{path}.model", f"{service['model']!r} is a model of ComfyUI: it has a folder", "name another, or set kind,")
        return
    if "model" in service:
        yield Problem(f"{path}.model", "a ComfyUI has models", "use models: [...]")
    if service.get("servers_per_gpu", 1) != 1:
        yield Problem(f"{path}.servers_per_gpu", "a ComfyUI has its GPU for itself", "leave it out")
    for name in service["models"] if not _names(service.get("models", "")) else ():
        if name not in models:
            yield Problem(f"{path}.models", f"no model {name!r} in ptolemy_models{_meant(name, models)}")
        elif "folder" not in models[name]:
            yield Problem(f"ptolemy_models.{name}.folder", f"is not set, and {path} is a ComfyUI", "set it, as checkpoints,")


def _placing(
    path: str, service: Mapping[str, Any], longest: int, partitions: Mapping[str, Partition], asked: dict[str, int]
) -> Iterator[Problem]:
    """Check that a service's replicas can run in its partition; ``asked`` sums up the GPUs by partition."""
    name, gpus, least = service["partition"], service.get("gpus"), service.get("min")
    partition = partitions.get(name)
    if partition is None:
        hint = _meant(name, partitions) or f" (there are: {', '.join(sorted(partitions)) or 'none'})"
        yield Problem(f"{path}.partition", f"Slurm has no partition {name!r}{hint}")
        return
    if partition.gpus_per_node == 0:
        having = ", ".join(sorted(other for other, it in partitions.items() if it.gpus_per_node != 0)) or "none"
        yield Problem(f"{path}.partition", f"no node of partition {name!r} has a GPU (partitions with GPUs: {having})")
        return
    if partition.most_seconds is not None and longest > partition.most_seconds:
        yield Problem(f"{path}.time_limit", f"{service['time_limit']} is longer than partition {name!r} allows", "set a shorter one")
    if partition.gpus_per_node is None or partition.gpus is None or type(gpus) is not int or type(least) is not int:
        return
    if gpus > partition.gpus_per_node:
        yield Problem(f"{path}.gpus", f"{gpus} GPUs; a node of partition {name!r} has {partition.gpus_per_node} at most")
    before = asked[name]
    asked[name] += gpus * least
    if before <= partition.gpus < asked[name]:
        why = f"up to here the services of partition {name!r} ask for {asked[name]} GPUs at least, and it has {partition.gpus}"
        yield Problem(f"{path}.min", why, "lower it")


def _tuned(variables: Mapping[str, Any]) -> Iterator[Problem]:
    """What tune.yml found must belong to what services.yml says."""
    if variables.get(tuned.VARIABLE) is not None:
        yield from (Problem(*one) for one in tuned.problems(variables[tuned.VARIABLE], dict(_entries(variables, "ptolemy_services"))))


def _gpu_memory(variables: Mapping[str, Any], partitions: Optional[Mapping[str, Partition]]) -> Iterator[Problem]:
    """It may be left out; the fit check then asks a node, or does without."""
    given = variables.get("ptolemy_gpu_memory")
    if given is None:
        return
    if not isinstance(given, Mapping):
        yield Problem("ptolemy_gpu_memory", "must be a dictionary of partitions, as {gpu: 80G}")
        return
    for name, memory in given.items():
        path = f"ptolemy_gpu_memory.{name}"
        yield from _value(path, memory, _memory)
        if partitions is not None and name not in partitions:
            yield Problem(path, f"Slurm has no partition {name!r}{_meant(str(name), partitions)}", "rename or remove it")


def _ports(variables: Mapping[str, Any]) -> Iterator[Problem]:
    wrong = [problem for name, rule in _PORTS.items() for problem in _top(variables, name, rule)]
    yield from wrong
    if wrong:
        return
    first, last = variables["ptolemyd_port_first"], variables["ptolemyd_port_last"]
    listeners = {"haproxy_port": variables["haproxy_port"], "haproxy_stats_bind": int(variables["haproxy_stats_bind"].rsplit(":", 1)[1])}
    another = "set another port"
    if len(set(listeners.values())) < len(listeners):
        yield Problem("haproxy_stats_bind", f"port {listeners['haproxy_port']} is also haproxy_port", another)
    for name, port in listeners.items():
        if first <= port <= last:
            why = f"port {port} is among the endpoints' ports, {first} to {last} (ptolemyd_port_first, ptolemyd_port_last)"
            yield Problem(name, why, another)
    # replica.ports_for deals the ports out by GPU.
    least = GPUS_A_NODE * SERVERS_A_GPU
    if last - first + 1 < least:
        yield Problem("ptolemyd_port_last", f"{first} to {last} are {max(last - first + 1, 0)} ports; {least} are the least")
    if last >= EPHEMERAL_FIRST:
        why = f"{last} is in the range of outgoing connections, which begins at {EPHEMERAL_FIRST}"
        yield Problem("ptolemyd_port_last", why, "set a lower one")


def _entries(variables: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = variables.get(name)
    if isinstance(entries, Mapping):
        yield from ((str(key), value) for key, value in entries.items() if isinstance(value, Mapping))


def _meant(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=likeness)
    return f" (did you mean {close[0]!r}?)" if close else ""


def where(variable: str, files: Mapping[str, str]) -> Optional[str]:
    """Return which inventory file sets a variable, the strongest one first, or None.

    Args:
        variable: as in ``Problem``.
        files: the inventory's files: text by path.
    """
    name = re.compile(rf"^{re.escape(variable.split('.', maxsplit=1)[0])}\s*[:=]", re.MULTILINE)
    hits = [path for path, content in files.items() if name.search(content)]
    # host_vars override group_vars, a group overrides all, and an example is not in use at all.
    hits.sort(key=lambda path: (not path.endswith(".example"), "host_vars" in path, "group_vars/all" not in path, path))
    return hits[-1] if hits else None

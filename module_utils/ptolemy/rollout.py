"""The steps of a rollout, as changes to the services file: values in, values out, nothing is read or written here.

    begin     a canary of the new revision is asked for, which no client reaches
    share     it gets a share of the requests
    promote   the service is what the canary was; the replicas planner replaces the others one by one
    undo      the new revision goes, and the old one serves on
    revert    the service is again what it was before the last rollout

Each is one change of one file, so a rollout that is interrupted is, for the daemon, nothing but a file that stays as it is.
"""

from __future__ import annotations

from typing import Any, Mapping

from .config import parse
from .errors import ConfigError
from .resize import SIZE_KEYS

Raw = Mapping[str, Any]  # the parsed JSON of a services file, or of one of its services


def begin(raw: Raw, path: str, name: str, wanted: Raw, now: float) -> dict[str, Any]:
    """Ask for a canary of what the inventory wants a service to be. One of that revision that is there already stays as it is.

    Args:
        raw: the services file as it is.
        path: its path, for the messages.
        name: the service.
        wanted: the services file as site.yml would write it.
        now: Unix time.

    Raises:
        ConfigError: what is asked is no rollout of this one service.
    """
    present, asked = parse(raw, path), parse(wanted, "the inventory")
    if name not in asked.services:
        raise ConfigError(f"{name}: no such service in ptolemy_services; there are: {', '.join(asked.services) or 'none'}")
    if name not in present.services:
        raise ConfigError(f"{name}: the gateway does not have this service yet, so nothing can be disturbed; site.yml brings it up")
    others = _other_changes(raw, wanted, name)
    if others:
        changed = ", ".join(others)
        raise ConfigError(f"the inventory has changed {changed}, too: run site.yml for that before, so that this changes {name} alone")
    old, new = present.services[name], asked.services[name]
    if new.revision == old.revision:
        return _without_canary(raw, name)
    if not old.max:
        raise ConfigError(f"{name}: is stopped, so no one could be disturbed; site.yml changes it")
    if new.kind != old.kind:
        raise ConfigError(f"{name}.kind: {old.kind} cannot become {new.kind} under the same name; give the new one a name of its own")
    entry = _sized_as(raw["services"][name], wanted["services"][name])
    before = present.canaries.get(name)
    if before and before.service.revision == new.revision:
        canary = {**raw["canaries"][name], "service": entry}
    else:
        canary = {"service": entry, "asked_at": round(now)}
    return _checked({**raw, "canaries": {**raw.get("canaries", {}), name: canary}}, path)


def share(raw: Raw, path: str, name: str, part: float, now: float) -> dict[str, Any]:
    """Give a service's canary a share of the requests, above 0 and below 1. Raises ConfigError: there is none, or no such share."""
    if not 0 < part < 1:
        raise ConfigError(f"rollout_share: must be above 0 and below 1, not {part:g}")
    canary = {**_canary(raw, path, name), "share": part, "shared_at": round(now)}
    return _checked({**raw, "canaries": {**raw["canaries"], name: canary}}, path)


def promote(raw: Raw, path: str, name: str) -> dict[str, Any]:
    """Make the service what its canary is. Raises ConfigError: there is none."""
    entry = _sized_as(raw["services"][name], _canary(raw, path, name)["service"])
    return _checked(_without_canary({**raw, "services": {**raw["services"], name: entry}}, name), path)


def undo(raw: Raw, path: str, name: str, revision: str, previous: Raw | None) -> dict[str, Any]:
    """End the rollout of a revision, however far it has come: its canary goes, or the service is again what it was before.

    Args:
        raw: the services file as it is.
        path: its path, for the messages.
        name: the service.
        revision: the one to get rid of.
        previous: what the service was before it was promoted, None where it was not.
    """
    if parse(raw, path).services[name].revision == revision and previous is not None:
        return revert(raw, path, name, previous)
    return _without_canary(raw, name)


def revert(raw: Raw, path: str, name: str, previous: Raw) -> dict[str, Any]:
    """Make the service what it was before, in its present size. Raises ConfigError: that is not right any more."""
    changed = {**raw, "services": {**raw["services"], name: _sized_as(raw["services"][name], previous)}}
    return _checked(_without_canary(changed, name), path)


def _sized_as(present: Raw, entry: Raw) -> dict[str, Any]:
    """Another revision in the present size: that is no part of a revision, and scale.yml may have set another one than the inventory's."""
    return {**_without_size(entry), **{key: present[key] for key in SIZE_KEYS if key in present}}


def _without_size(entry: Raw) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in SIZE_KEYS}


def _other_changes(raw: Raw, wanted: Raw, name: str) -> list[str]:
    """What else site.yml would change, but for sizes, which scale.yml may have set."""
    services: set[str] = raw["services"].keys() | wanted["services"].keys()
    changed = [
        f"ptolemy_services.{other}"
        for other in sorted(services - {name})
        if _without_size(raw["services"].get(other, {})) != _without_size(wanted["services"].get(other, {}))
    ]
    return changed + [f"{key} (of all services)" for key in sorted(wanted["site"]) if raw["site"].get(key) != wanted["site"][key]]


def _canary(raw: Raw, path: str, name: str) -> Raw:
    if name not in parse(raw, path).canaries:
        raise ConfigError(f"{name}: no rollout is going on; rollout.yml begins one")
    found: Raw = raw["canaries"][name]
    return found


def _without_canary(raw: Raw, name: str) -> dict[str, Any]:
    """The file without a service's canary; without canaries at all it is the one that site.yml writes."""
    rest = {other: canary for other, canary in raw.get("canaries", {}).items() if other != name}
    return {**{key: value for key, value in raw.items() if key != "canaries"}, **({"canaries": rest} if rest else {})}


def _checked(raw: dict[str, Any], path: str) -> dict[str, Any]:
    parse(raw, path)
    return raw

"""New sizes for services that the services file already has: values in, values out, nothing is read or written here."""

from __future__ import annotations

import difflib
import json
from typing import Any, Iterable, Mapping

from .config import Service, parse
from .errors import ConfigError
from .rules import SIZE

SIZE_KEYS = tuple(SIZE)
STOPPED: Mapping[str, Any] = {"replicas": 0}

# What is asked of one service: a number of replicas, or keys of SIZE_KEYS, or `replicas`. None takes a key away: its default holds.
Wanted = Mapping[str, Any]


def resize(raw: Any, path: str, wanted: Wanted) -> dict[str, Any]:
    """Return a services file in which some services have another size, and nothing else is different.

    Args:
        raw: the parsed JSON of a services file that is right as it is.
        path: its path, for the messages.
        wanted: what is asked, by service name; keys that are not named stay as they are.

    Raises:
        ConfigError: what is asked is wrong; the message names the service, the key and the mend.
    """
    services = dict(raw["services"])
    for name, size in wanted.items():
        if name not in services:
            raise ConfigError(_unknown(name, services, path))
        services[name] = _merged(services[name], _expanded(name, size))
    changed = {**raw, "services": services}
    try:
        parse(changed, path)
    except ConfigError as error:
        told = str(error).replace(f"{path}: services.", "")
        raise ConfigError(f"{told}; give keys that fit together, as min and max") from error
    return changed


def declared(services: Any, overrides: Any) -> dict[str, Any]:
    """Return what to ask of ``resize`` so that all services have the size that the inventory says, but for some overrides.

    Args:
        services: the inventory's ``ptolemy_services``; only the sizes in it count.
        overrides: other sizes by service name, as in ``resize``.

    Raises:
        ConfigError: as ``resize``.
    """
    for name, given in services.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"ptolemy_services.{name}: must be a dictionary; see inventory/ptolemy/group_vars/all/services.yml")
    wanted = {name: {key: given.get(key) for key in SIZE_KEYS} for name, given in services.items()}
    for name, size in overrides.items():
        if name not in wanted:
            raise ConfigError(_unknown(name, wanted, "ptolemy_services"))
        wanted[name] = _merged(wanted[name], _expanded(name, size), remove=False)
    return wanted


def sizes(raw: Any, path: str) -> dict[str, dict[str, Any]]:
    """Return the size of each service of a services file, defaults included.

    Raises:
        ConfigError: the file is wrong.
    """
    return {name: _size(service) for name, service in parse(raw, path).services.items()}


def _size(service: Service) -> dict[str, Any]:
    return {key: getattr(service, key) for key in ("min", "max", "opportunistic", "target_load", "scale_in_delay")}


def dump(raw: Any) -> str:
    """Return the text of a services file, exactly as site.yml writes it."""
    return json.dumps(raw, indent=4, sort_keys=True) + "\n"


def _expanded(name: str, size: Any) -> dict[str, Any]:
    """Write ``replicas`` out, and check each value by itself."""
    if type(size) is int:
        size = {"replicas": size}
    if not isinstance(size, Mapping):
        raise ConfigError(f"{name}: must be a number of replicas, or keys of {', '.join(SIZE_KEYS)}, not {size!r}")
    for key in size:
        if key != "replicas" and key not in SIZE:
            hint = _meant(str(key), (*SIZE_KEYS, "replicas"))
            raise ConfigError(f"{name}.{key}: is no size{hint}; known are replicas, {', '.join(SIZE_KEYS)}; for others run site.yml")
    for key, value in size.items():
        wrong = "" if value is None else SIZE.get(key, SIZE["min"])(value)
        if wrong:
            raise ConfigError(f"{name}.{key}: {wrong}")
    if "replicas" not in size:
        given = dict(size)
        # Each of the two says what the other would.
        for key, other in (("max", "guaranteed"), ("guaranteed", "max")):
            if key in given:
                given.setdefault(other, None)
        return given
    both = [key for key in ("min", "max", "guaranteed") if key in size]
    if both:
        raise ConfigError(f"{name}.{both[0]}: replicas says it already; give replicas, or min and max")
    fixed = {"min": size["replicas"], "max": size["replicas"], "guaranteed": None, "opportunistic": None}
    return {**fixed, **{key: value for key, value in size.items() if key != "replicas"}}


def _merged(service: Mapping[str, Any], change: Mapping[str, Any], remove: bool = True) -> dict[str, Any]:
    return {key: value for key, value in {**service, **change}.items() if value is not None or not remove}


def _unknown(name: str, known: Iterable[str], place: str) -> str:
    names = sorted(known)
    return (
        f"{name}: no such service in {place}{_meant(name, names)}; there are: {', '.join(names) or 'none'}."
        " A new one is written to services.yml of the inventory, and site.yml brings it up"
    )


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

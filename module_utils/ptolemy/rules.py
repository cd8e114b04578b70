"""Rules for one value of a site's variables: each returns what is wrong with it, or an empty string."""

from __future__ import annotations

import re
from typing import Any, Callable, Mapping, Optional

from .partitions import hosts, seconds

# What the job script gives to llama-server and sbatch itself; a second one would silently win or lose.
OWN_FLAGS = frozenset(
    "-m --model -hf --hf-repo --host --port -c --ctx-size -np --parallel --api-key --api-key-file -a --alias"
    " --metrics --slots --no-slots"
    " --listen --base-directory --output-directory --input-directory --temp-directory --user-directory --database-url"
    " --disable-all-custom-nodes --whitelist-custom-nodes".split()
)
OWN_SBATCH = frozenset(
    "-J --job-name -p --partition -t --time -G --gpus --gres -o --output -e --error -D --chdir"
    " -a --array --comment --signal -N --nodes -n --ntasks -c --cpus-per-task --mem --wrap --exclusive --reservation -w --nodelist"
    " -x --exclude --time-min".split()
)

Rule = Callable[[Any], str]  # returns what is wrong with the value, or ""


def whole(low: int, high: Optional[int] = None) -> Rule:
    """Accept whole numbers from ``low`` to ``high``."""
    span = f"from {low} to {high}" if high is not None else f"of {low} or more"

    def rule(value: Any) -> str:
        fits = type(value) is int and value >= low and (high is None or value <= high)
        return "" if fits else f"must be a whole number {span}, not {value!r}"

    return rule


def text(pattern: str, wanted: str, secret: bool = False) -> Rule:
    """Accept strings that match ``pattern`` as a whole; ``wanted`` is the pattern in words."""
    compiled = re.compile(pattern)

    def rule(value: Any) -> str:
        fits = isinstance(value, str) and compiled.fullmatch(value)
        return "" if fits else f"must be {wanted}" + ("" if secret else f", not {value!r}")

    return rule


def options(own: frozenset[str], owner: str) -> Rule:
    """Accept a list of strings, none of which is an option that Ptolemy passes itself."""

    def rule(value: Any) -> str:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return "must be a list of strings (quote numbers)"
        taken = sorted({item.split("=", 1)[0] for item in value} & own)
        return f"{', '.join(taken)}: {owner} sets this itself" if taken else ""

    return rule


def share(value: Any) -> str:
    """Accept a number above 0, at most 1."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
    return "" if fits else f"must be a number above 0, at most 1, not {value!r}"


def node_list(value: Any) -> str:
    """Accept Slurm's notation of nodes."""
    try:
        fits = isinstance(value, str) and bool(list(hosts(value)))
    except ValueError:
        fits = False
    return "" if fits else f"must be nodes in Slurm's notation, as node[1-4], not {value!r}"


def boolean(value: Any) -> str:
    return "" if isinstance(value, bool) else f"must be true or false, not {value!r}"


def time_limit(value: Any) -> str:
    if isinstance(value, int):
        return f"must be in quotes: YAML made the number {value} of it"
    if not isinstance(value, str) or not seconds(value):
        return f"must be a time in Slurm's notation, as 1-00:00:00 (days-hours:minutes:seconds), not {value!r}"
    return ""


# What decides how many replicas a service has, and when there are more or fewer of them.
SIZE: Mapping[str, Rule] = {
    "min": whole(0),
    "max": whole(0),
    "guaranteed": whole(0),
    "opportunistic": whole(0),
    "target_load": share,
    "scale_in_delay": whole(0),
}

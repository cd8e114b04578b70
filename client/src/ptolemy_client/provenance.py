"""The sidecar of an output: what made it, exactly."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Optional

from . import __version__
from .ledger import Counts
from .writing import replaced

if TYPE_CHECKING:
    from .runner import Progress
    from .session import Plan

_PACKAGES = ("aiohttp", "jinja2", "pyarrow", "orjson", "openpyxl", "jsonschema")


def file_sha256(path: Path) -> str:
    """The sha256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def page(
    plan: Plan, counts: Counts, total: int, labels: Counter[str], progress: Progress, times: Mapping[str, Any], url: str,
    before: Mapping[str, Any], after: Mapping[str, Any], input_sha256: str,
) -> dict[str, Any]:  # fmt: skip
    """The sidecar's content."""
    return {
        "ptolemy_batch": __version__,
        "command": plan.task.kind,
        "input": {"file": plan.source.path.name, "sha256": input_sha256, "rows": total, "read_as": plan.source.described},
        "output": {"file": plan.out.name, "sha256": file_sha256(plan.out), "rows": counts.rows},
        "gateway": url,
        # As the gateway reported it when this run began and ended.
        "model": {"name": plan.task.facts["model"], "at_start": before, "at_end": after, "changed": before != after},
        "request": {**plain(plan.task.facts), **plain(plan.source.facts)},
        "sample": {"limit": plan.limit, "sample": plan.sample, "seed": plan.seed if plan.sample is not None else None},
        "rows": {
            "answered": counts.rows_answered, "failed": counts.rows_failed, "empty": counts.empty,
            "distinct_requests": counts.distinct, "asked_in_this_run": progress.requests,
        },
        "labels": dict(labels.most_common()),
        "tokens": {"prompt": counts.tokens_in, "completion": counts.tokens_out},
        "times": {name: _time(value) if name != "asking_seconds" else value for name, value in times.items()},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
    }  # fmt: skip


def save(out: Path, content: Mapping[str, Any]) -> Path:
    """Write the sidecar beside an output; returns its path."""
    path = out.with_name(f"{out.stem}.provenance.json")
    with replaced(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _time(seconds: Optional[float]) -> Optional[str]:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")

#!/usr/bin/env python3
"""Makes a release's section of CHANGELOG.md out of the fragments, and deletes them: changelogs/release.py 1.0.0."""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "docs" / "hooks"))

import reference  # noqa: E402 - its path is known only now


def release(version: str, page: Path, fragments: Path, day: str) -> int:
    """Move what the fragments say into the page. Returns the exit status: 0 done, 2 wrong version or nothing to tell."""
    found = sorted(fragments.glob("*.yml"))
    text = page.read_text(encoding="utf-8")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or f"\n## {version} " in text:
        print(f"release: {version!r} must be a new version, as 1.2.3", file=sys.stderr)
        return 2
    if not found:
        print(f"release: {fragments} has no fragments", file=sys.stderr)
        return 2
    # The words before the first release's section are about there being none.
    head = text if "\n## " in text else "# Changelog\n"
    page.write_text(reference.changelog(head, found, f"{version} ({day})"), encoding="utf-8")
    for path in found:
        path.unlink()
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(
        release(
            sys.argv[1],
            HERE.parent / "CHANGELOG.md",
            HERE / "fragments",
            datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        )
    )

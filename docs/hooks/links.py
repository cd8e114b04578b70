"""Where the tree's files are in the site. A link that is right in the checkout is made right there."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# Files outside docs/ that are pages, too.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "CHANGELOG.md": "changelog.md",
    "bench/README.md": "bench.md",
    **{f"roles/{role.name}/README.md": f"reference/{role.name}.md" for role in sorted((CHECKOUT / "roles").iterdir()) if role.is_dir()},
}
SOURCES = {page: source for source, page in PAGES.items()}

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?P<target>[^()\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|/")
# What a browser fetches by itself.
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"' >]*"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//[^\"' >]*"
    r"|(?:@import\s*[\"']|url\([\"']?)(?:https?:)?//[^\"')]*"
)
_FENCE = re.compile(r" *(```|~~~)")


def prose(markdown: str) -> Iterator[tuple[str, bool]]:
    """The page in pieces, each with whether it is prose, not a block of code. A link's words may go on in the next line."""
    for is_prose, lines in itertools.groupby(_lines(markdown), key=lambda pair: pair[1]):
        yield "".join(line for line, _ in lines), is_prose


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    fenced = blank = indented = False
    for line in markdown.splitlines(keepends=True):
        if _FENCE.match(line):
            fenced = not fenced
            yield line, False
            continue
        # An indented block begins after a blank line.
        indented = line.startswith("    ") and (blank or indented)
        blank = not line.strip()
        yield line, not fenced and not indented


def targets(markdown: str) -> Iterator[str]:
    """The targets of all links and pictures of a page that lead into the tree."""
    for text, is_prose in prose(markdown):
        for match in _LINK.finditer(text) if is_prose else ():
            if not _ELSEWHERE.match(match["target"]):
                yield match["target"]


def source_of(page: str) -> str:
    """The file of the checkout that a page of the site is made from."""
    return SOURCES.get(page, f"docs/{page}")


def moved(markdown: str, page: str, exists: Callable[[str], bool] = lambda path: (CHECKOUT / path).exists()) -> str:
    """A page's Markdown with its links as they must be in the site.

    Args:
        markdown: the text, with links as in the checkout.
        page: the page's path in the site, as ``reference/haproxy.md``.
        exists: whether the checkout has a path.
    """
    here = posixpath.dirname(source_of(page))

    def replaced(match: re.Match[str]) -> str:
        target, hash_mark, anchor = match["target"].partition("#")
        if _ELSEWHERE.match(match["target"]):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, target))
        if path in PAGES or path.startswith("docs/"):
            there = PAGES.get(path) or path.removeprefix("docs/")
            return f"{match['image']}[{match['text']}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_mark}{anchor})"
        # A file of the checkout that is no page: its name stays. What is nowhere stays a link, so that MkDocs complains.
        return match["text"] if exists(path) else match[0]

    return "".join(_LINK.sub(replaced, text) if is_prose else text for text, is_prose in prose(markdown))


def fetched(text: str) -> str:
    """The first thing of a page or style sheet that a browser would fetch from another host by itself; empty if there is none."""
    found = _FETCHED.search(text)
    return found[0] if found else ""

"""Links lead somewhere, in the checkout and in the site; the reference says what the tree says."""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import re
import subprocess
from pathlib import Path

import pytest

import links
import ptolemy.__main__
import reference
import release

ROOT = links.CHECKOUT
LISTED = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
LIBRARY = sorted((ROOT / "library").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = sorted(subprocess.run(LISTED, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    pieces = (text for text, is_prose in links.prose(path.read_text(encoding="utf-8")) if is_prose)
    lines = (line for text in pieces for line in text.splitlines())
    return {slug(line.lstrip("#")) for line in lines if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_tree_leads_to_a_file_and_to_a_heading_in_it(page: str) -> None:
    broken = []
    for target in links.targets((ROOT / page).read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def known_variables() -> set[str]:
    """The roles' variables, and the modules, whose names look alike."""
    files = [*(ROOT / "roles").glob("*/defaults/main.yml"), *(ROOT / "roles").glob("*/meta/argument_specs.yml")]
    return {name for path in files for name in re.findall(r"^ *(\w+):", path.read_text(), re.MULTILINE)} | {path.stem for path in LIBRARY}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    """Playbooks, targets of make, commands of ptolemy, and variables of roles."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {
        "playbook": (set(re.findall(r"playbooks/(\w+)\.yml", text)), {path.stem for path in (ROOT / "playbooks").iterdir()}),
        "make": (
            set(re.findall(r"(?:^ *|`)make ([a-z][a-z-]+)", text, re.MULTILINE)),
            {name for line in re.findall(r"^([a-z][a-z -]*):", MAKEFILE, re.MULTILINE) for name in line.split()},
        ),
        "ptolemy": (set(re.findall(r"(?:^ *|`)ptolemy ([a-z]+(?:-[a-z]+)*)", text, re.MULTILINE)), commands_of(ptolemy.__main__.parser())),
        "variable": (
            {name for name in re.findall(rf"`((?:{'|'.join(ROLES)})_[a-z_]+)\b[^`/]*`", text) if not name.endswith("_")},
            known_variables() | {"slurm_managed", "slurm_controller", "client_id"},  # the site's own; a group; a field of ComfyUI's
        ),
    }
    assert {kind: sorted(given - there) for kind, (given, there) in named.items() if given - there} == {}


def commands_of(parser: argparse.ArgumentParser) -> set[str]:
    return {section.split()[2] for section in reference.commands(parser) if section.startswith("### ")}


def test_a_link_to_a_page_from_elsewhere_in_the_tree_is_turned_to_its_place_in_the_site() -> None:
    text = "See [it](../roles/haproxy/README.md#keys) and [this](operations.md)."
    assert links.moved(text, "clients.md") == "See [it](reference/haproxy.md#keys) and [this](operations.md)."


def test_links_of_a_readme_are_those_of_its_page() -> None:
    text = "[a](../../docs/operations.md#keys) ![b](../../docs/chat.png) [c](../slurm/README.md) [d](https://example.org)"
    wanted = "[a](../operations.md#keys) ![b](../chat.png) [c](slurm.md) [d](https://example.org)"
    assert links.moved(text, "reference/haproxy.md") == wanted


def test_of_a_link_to_a_file_that_is_no_page_the_words_stay() -> None:
    assert links.moved("[the `Makefile`](../Makefile)", "clients.md") == "the `Makefile`"


def test_a_link_to_nothing_stays_so_that_mkdocs_complains() -> None:
    assert links.moved("[x](../roles/nowhere/README.md)", "clients.md") == "[x](../roles/nowhere/README.md)"


def test_a_link_s_words_may_go_on_in_the_next_line() -> None:
    assert links.moved("[the\nwords](../SECURITY.md)", "clients.md") == "[the\nwords](reporting.md)"


def test_code_is_left_as_it_is() -> None:
    text = "```md\n[x](../Makefile)\n```\n\n    [x](../Makefile)\n"
    assert links.moved(text, "clients.md") == text


def test_options_tell_type_default_and_the_keys_of_a_dictionary() -> None:
    given = {
        "source": {
            "type": "dict",
            "description": "The pin.",
            "options": {"url": {"type": "str", "required": True, "description": "Where."}},
        },
        "kind": {"type": "str", "choices": ["cuda", "cpu"], "description": "What C(it) computes on."},
        "names": {"type": "list", "elements": "str", "default": [], "no_log": True, "description": ["One.", "Two."]},
    }
    assert list(reference.options(given, {"kind": "cuda"})) == [
        ("`source`", "dict", "", "The pin."),
        ("`source.url`", "str", "**required**", "Where."),
        ("`kind`", "str", "`cuda`", "What `it` computes on. One of `cuda`, `cpu`."),
        ("`names`", "list of str", "`[]`", "One. Two. Secret."),
    ]


def test_a_table_s_cell_has_no_bar_and_no_line_break() -> None:
    assert reference.table(("a", "b"), [("x | y", "1\n2")]) == "| a | b |\n| --- | --- |\n| x \\| y | 1 2 |\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, "`true`"), ("", '`""`'), (None, "`null`"), ({"a": [1, "x"]}, "`{a: [1, x]}`"), (30.0, "`30.0`"), ("a`b", "`` a`b ``")],
)
def test_a_default_is_shown_as_an_inventory_has_it(value: object, shown: str) -> None:
    assert reference.code(value) == shown


@pytest.mark.parametrize("name", ROLES)
def test_a_role_s_page_has_each_of_its_variables(name: str) -> None:
    role = ROOT / "roles" / name
    variables = re.findall(r"^(\w+):", (role / "defaults" / "main.yml").read_text(), re.MULTILINE)
    page = reference.role_page(role)
    assert [name for name in variables if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("module", LIBRARY, ids=lambda path: path.stem)
def test_a_module_s_section_has_each_of_its_options_and_what_it_returns(module: Path) -> None:
    docs, section = reference.module_docs(module), reference.module_section(module)
    assert f"## {module.stem}\n" in section and docs["examples"] in section
    for name in (*docs["documentation"].get("options", {}), *docs["returned"]):
        assert f"| `{name}` |" in section


def test_a_command_s_section_has_its_usage_arguments_and_defaults() -> None:
    parser = argparse.ArgumentParser(prog="tool")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="make a key")
    add.add_argument("name", help="of the key")
    add.add_argument("--tier", choices=("a", "b"), default="a", help="its tier")
    add.add_argument("--at-once", type=int, default=8, metavar="N", help="how many (8)")
    add.add_argument("--json", action="store_true", help="as JSON")
    text = "\n".join(reference.commands(parser))
    assert "### tool add\n\nMake a key.\n" in text
    assert "tool add [-h] [--tier {a,b}] [--at-once N] [--json] name" in text
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `name` | of the key |",
        "| `--tier a\\|b` | its tier (default: a) |",
        "| `--at-once N` | how many (8) |",
        "| `--json` | as JSON |",
    ]


@dataclasses.dataclass
class Example:
    """What it is.

    Attributes:
        name: its name, which is
            long.
        low, high: the ``bounds``.
    """

    name: str
    low: int = 0
    high: int = 9
    flags: tuple[str, ...] = ()


def test_keys_of_a_dataclass_have_the_words_of_its_docstring() -> None:
    assert list(reference.keys(Example)) == [
        ("`name`", "str", "**required**", "its name, which is long."),
        ("`low`", "int", "`0`", "the `bounds`."),
        ("`high`", "int", "`9`", "the `bounds`."),
        ("`flags`", "list of str", "`[]`", ""),
    ]


def test_the_services_page_tells_what_an_inventory_must_and_may_say() -> None:
    page = reference.services_page(Example, Example, Example, {"low": True, "high": False}).partition("## site")[0]
    assert "| `low` | int | `0` | required |" in page and "| `high` | int | `9` | optional |" in page
    assert "| `flags` | list of str | `[]` |  |" in page


def test_metrics_are_told_with_type_and_labels() -> None:
    lines = [
        "# HELP x_up Whether.",
        "# TYPE x_up gauge",
        'x_up{service="a",tier="b"} 1',
        "# HELP x_n How many.",
        "# TYPE x_n counter",
        "x_n 3",
    ]
    assert list(reference.metrics(lines)) == [("`x_up`", "gauge", "`service`, `tier`", "Whether."), ("`x_n`", "counter", "", "How many.")]


def test_the_changelog_has_the_fragments_before_the_releases(tmp_path: Path) -> None:
    (tmp_path / "1-a.yml").write_text("bugfixes: [C(x) was cut.]\nmajor_changes: [All of it.]\n")
    text = reference.changelog("# Changelog\n\nWords.\n\n## 1.0\n\n- old\n", [tmp_path / "1-a.yml"])
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == ["# Changelog", "## Unreleased", "### Major changes", "### Bug fixes", "## 1.0"]
    assert "- `x` was cut.\n" in text


def test_a_release_moves_the_fragments_into_the_changelog(tmp_path: Path) -> None:
    page, fragments = tmp_path / "CHANGELOG.md", tmp_path / "fragments"
    fragments.mkdir()
    page.write_text("# Changelog\n\nNothing has been released yet.\n")
    for version, words in (("0.1.0", "One."), ("0.2.0", "Two.")):
        (fragments / "1-a.yml").write_text(f"minor_changes: [{words}]\n")
        assert release.release(version, page, fragments, "2027-01-31") == 0
    assert list(fragments.iterdir()) == []
    one, two = (f"## 0.{number}.0 (2027-01-31)\n\n### Minor changes\n\n- {words}\n" for number, words in ((1, "One."), (2, "Two.")))
    assert page.read_text() == f"# Changelog\n\n{two}\n{one}"


@pytest.mark.parametrize("version", ["1.0", "0.1.0"])
def test_a_release_wants_a_new_version(tmp_path: Path, version: str) -> None:
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 (2026-12-01)\n")
    (tmp_path / "1-a.yml").write_text("minor_changes: [One.]\n")
    assert release.release(version, tmp_path / "CHANGELOG.md", tmp_path, "2027-01-31") == 2
    assert (tmp_path / "1-a.yml").exists()


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        "<img src=//example.org/x.png>",
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        "a{background:url(https://example.org/x.png)}",
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_found(text: str) -> None:
    assert links.fetched(text)


@pytest.mark.parametrize(
    "text", ['<a href="https://example.org">x</a>', '<script src="../x.js"></script>', '<link rel="canonical" href="https://example.org/">']
)
def test_a_link_that_people_follow_is_no_fetch(text: str) -> None:
    assert not links.fetched(text)

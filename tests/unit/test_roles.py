"""The roles' contracts: documented variables are the real ones, and each role and changelog fragment has its shape."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
ROLES = sorted(path for path in (CHECKOUT / "roles").iterdir() if (path / "tasks").is_dir())
FRAGMENTS = sorted((CHECKOUT / "changelogs" / "fragments").glob("*.yml"))
SECTIONS = {"major_changes", "minor_changes", "breaking_changes", "security_fixes", "bugfixes", "known_issues"}
CODE = sorted(
    path
    for folder in ("module_utils", "library", "plugins", "lab", "tests", "client")
    for path in (CHECKOUT / folder).rglob("*.py")
    if path.is_file()
)

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict[str, Any]:
    given: dict[str, Any] = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    return given


def defaults(role: Path) -> dict[str, Any]:
    return load(role / "defaults" / "main.yml") or {}


def test_there_are_roles() -> None:
    assert ROLES


@each_role
def test_the_argument_specs_name_every_default_and_nothing_else(role: Path) -> None:
    assert sorted(options(role)) == sorted(defaults(role))


@each_role
def test_every_variable_has_a_type_and_a_description(role: Path) -> None:
    bare = [name for name, option in options(role).items() if not option.get("type") or not option.get("description")]
    assert bare == []


@each_role
def test_a_documented_default_is_the_real_one(role: Path) -> None:
    # One that is computed may be told in its result.
    real = {name: value for name, value in defaults(role).items() if "{{" not in str(value)}
    wrong = [name for name, option in options(role).items() if name in real and option.get("default", real[name]) != real[name]]
    assert wrong == []


@each_role
def test_variables_carry_the_roles_name(role: Path) -> None:
    assert [name for name in defaults(role) if not name.startswith(f"{role.name}_")] == []


@each_role
def test_a_role_has_a_readme_and_metadata(role: Path) -> None:
    for name in ("README.md", "meta/main.yml", "tasks/main.yml"):
        assert (role / name).is_file(), f"{role.name} has no {name}"


@each_role
def test_task_files_stay_readable(role: Path) -> None:
    long = {path.name: lines for path in (role / "tasks").glob("*.yml") if (lines := _lines(path)) > 150}
    assert long == {}


def test_python_files_stay_readable() -> None:
    long = {str(path.relative_to(CHECKOUT)): lines for path in CODE if (lines := _lines(path)) > 400}
    assert long == {}


@pytest.mark.parametrize("inventory", ["lab", "ptolemy"])
def test_inventories_set_no_variable_that_no_role_knows(inventory: str) -> None:
    known = {name for role in ROLES for name in defaults(role)}
    prefixes = tuple(f"{role.name}_" for role in ROLES)
    files = (CHECKOUT / "inventory" / inventory / "group_vars").rglob("*.yml")
    set_here = {name for path in files for name in load(path) or {}}
    # slurm_managed is the site's own, not the role's.
    assert {name for name in set_here if name.startswith(prefixes)} - known - {"slurm_managed"} == set()


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.name)
def test_a_changelog_fragment_has_known_sections_with_sentences(fragment: Path) -> None:
    assert re.fullmatch(r"\d+-[a-z0-9-]+\.yml", fragment.name)
    given = load(fragment)
    assert set(given) <= SECTIONS
    assert all(isinstance(sentence, str) and sentence.strip() for sentences in given.values() for sentence in sentences)


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())

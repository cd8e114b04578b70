"""The reference pages, as Markdown, from what the tree itself says: no page of them is written by hand.

Needs PyYAML and the standard library only, so that the unit tests can read it without MkDocs.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# Ansible's own marks in descriptions.
_MARKS = (
    (re.compile(r"\b[CVOEP]\(([^()]*(?:\([^()]*\)[^()]*)*)\)"), r"`\1`"),
    (re.compile(r"\bI\(([^)]*)\)"), r"*\1*"),
    (re.compile(r"\bB\(([^)]*)\)"), r"**\1**"),
    (re.compile(r"\bM\(([^)]*)\)"), r"[`\1`](modules.md#\1)"),
    (re.compile(r"\bU\(([^)]*)\)"), r"<\1>"),
    (re.compile(r"\bL\(([^,)]*), *([^)]*)\)"), r"[\1](\2)"),
)


def plain(description: Any) -> str:
    """A description (a text, or a list of sentences) as one line of Markdown, with Ansible's marks turned into Markdown's."""
    text = " ".join(" ".join(description if isinstance(description, list) else [str(description)]).split())
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    return text


def cell(text: str) -> str:
    """What may stand between two bars of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(value: Any) -> str:
    """A value as the inventory or a command line would have it, in code."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = " ".join(value.split()) or '""'
    elif value is None:
        text = "null"
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip().removesuffix("...").strip()
    return f"`{text}`" if "`" not in text else f"`` {text} ``"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def kind(option: Mapping[str, Any]) -> str:
    """The type of an option or of a returned value: ``list of str``."""
    name = str(option.get("type", "str"))
    return f"{name} of {option['elements']}" if option.get("elements") else name


# ------------------------------------------------------------------------------------------------------- options of all kinds


def options(given: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Rows of (name, type, default, description); those of a dictionary's keys follow it, as ``name.key``."""
    for name, option in given.items():
        path = prefix + name
        default = option.get("default", defaults.get(name))
        shown = code(default) if "default" in option or name in defaults else ""
        words = plain(option.get("description", ""))
        if option.get("choices"):
            words += f" One of {', '.join(code(choice) for choice in option['choices'])}."
        if option.get("no_log"):
            words += " Secret."
        yield f"`{path}`", kind(option), "**required**" if option.get("required") else shown, words
        yield from options(option.get("options") or option.get("suboptions") or {}, {}, f"{path}.")


# -------------------------------------------------------------------------------------------------------------------- roles


def role_variables(role: Path) -> str:
    """The variables of a role, from its argument specs; a default that they do not name is the one of defaults/main.yml."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    defaults_file = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(defaults_file.read_text(encoding="utf-8")) or {}) if defaults_file.exists() else {}
    rows = options(specs["main"].get("options", {}), defaults)
    return table(("variable", "type", "default", "meaning"), rows)


def role_page(role: Path) -> str:
    """A role's README, and its variables in the place of the README's last line, which names their files."""
    readme = (role / "README.md").read_text(encoding="utf-8").rstrip()
    return f"{readme}\n\n## Variables\n\n{role_variables(role)}"


# ------------------------------------------------------------------------------------------------------------------ modules


def module_docs(path: Path) -> dict[str, Any]:
    """A module's DOCUMENTATION and RETURN, parsed, and its EXAMPLES as they stand."""
    texts = {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in ("DOCUMENTATION", "EXAMPLES", "RETURN")
    }
    return {
        "documentation": yaml.safe_load(texts["DOCUMENTATION"]),
        "examples": texts["EXAMPLES"].strip(),
        "returned": yaml.safe_load(texts["RETURN"]) or {},
    }


def returned(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Rows of (name, type, when, description); those of a dictionary's keys follow it."""
    for name, value in given.items():
        yield f"`{prefix}{name}`", kind(value), str(value.get("returned", "")), plain(value.get("description", ""))
        yield from returned(value.get("contains") or {}, f"{prefix}{name}.")


def module_section(path: Path) -> str:
    """One module, from its own documentation."""
    docs = module_docs(path)
    about = docs["documentation"]
    sentences = about.get("description", [])
    parts = [
        f"## {about['module']}\n",
        "\n".join(f"{plain(sentence)}\n" for sentence in (sentences if isinstance(sentences, list) else [sentences])),
        table(("option", "type", "default", "meaning"), options(about.get("options") or {}, {})),
        table(("supports", "", ""), ((name, it["support"], plain(it["description"])) for name, it in about.get("attributes", {}).items())),
        f"```yaml\n{docs['examples']}\n```\n",
    ]
    if docs["returned"]:
        parts.append(table(("returns", "type", "when", "what"), returned(docs["returned"])))
    return "\n".join(parts)


def modules_page(library: Path) -> str:
    """All modules, in alphabetical order."""
    intro = "# Modules\n\nThe Ansible modules of `library/`; `ansible-doc -t module NAME`, run in the checkout, shows the same.\n"
    return "\n".join([intro, *(module_section(path) for path in sorted(library.glob("*.py")))])


# ----------------------------------------------------------------------------------------------------------------- commands


def commands(parser: argparse.ArgumentParser, level: int = 2) -> Iterator[str]:
    """The sections of a command and of its subcommands, the command's own arguments first."""
    yield f"{'#' * level} {parser.prog}\n"
    if parser.description:
        yield f"{' '.join(parser.description.replace('``', '`').split())}\n"
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    nested = next((action for action in actions if isinstance(action, argparse._SubParsersAction)), None)
    rows = [(_called(action), _meaning(action)) for action in actions if action is not nested]
    if nested is None:
        yield f"    {_usage(parser)}\n"
    if rows:
        yield table(("argument", "meaning"), rows)
    if nested is None:
        return
    helps = {choice.dest: choice.help or "" for choice in nested._choices_actions}
    for name, child in nested.choices.items():
        sections = commands(child, level + 1)
        yield next(sections)
        if helps.get(name):
            yield f"{helps[name][:1].upper()}{helps[name][1:]}.\n"
        yield from sections


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _called(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices or ())) or action.dest.upper()
    if not action.option_strings:
        return f"`{value if action.metavar else action.dest}`"
    return ", ".join(f"`{' '.join(filter(None, (option, value)))}`" for option in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    words = (action.help or "") % {**vars(action), "prog": ""}
    if action.required and action.option_strings:
        words += " **Required.**"
    # A default that the help names itself is not told twice.
    default = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
    if action.default not in (None, False, "", [], argparse.SUPPRESS) and default not in words:
        words += f" (default: {default})"
    return words.strip()


# ------------------------------------------------------------------------------------------------------- the services file


def attributes(docstring: str) -> dict[str, str]:
    """What the section ``Attributes:`` of a Google-style docstring says of each name; ``a, b: words`` is of both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.partition("Attributes:\n")[2].splitlines():
        if start := re.match(r"^ {4,8}(\w+(?:, \w+)*): (.*)$", line):
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        elif names and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return {name: " ".join(words.replace("``", "`").split()) for name, words in found.items()}


def keys(of: type) -> Iterator[tuple[str, str, str, str]]:
    """Rows of (key, type, default, description) of a dataclass of the services file."""
    words = attributes(of.__doc__ or "")
    for it in dataclasses.fields(of):
        name = {"tuple[str, ...]": "list of str"}.get(str(it.type), str(it.type))
        missing = it.default is dataclasses.MISSING and it.default_factory is dataclasses.MISSING
        default = list(it.default) if isinstance(it.default, tuple) else it.default
        yield f"`{it.name}`", name, "**required**" if missing else code(default), words.get(it.name, "")


def services_page(site: type, service: type, canary: type, inventory: Mapping[str, bool]) -> str:
    """The services file, key by key; ``inventory`` has what an inventory may say of a service, and whether it must."""
    said = {name: "required" if must else "optional" for name, must in inventory.items()}
    rows = ((*row[:3], said.get(row[0].strip("`"), ""), row[3]) for row in keys(service) if row[0] != "`name`")
    return (
        "# The services file\n\n"
        "`/etc/ptolemy/services.json` on the gateway: what `ptolemyd` is asked to run. `site.yml` writes it out of the inventory "
        "(`ptolemy_services`, `ptolemy_models` and the roles' variables), and `ptolemy check` reads it. It is an object with `site`, "
        "`services` (by name) and, while a rollout is under way, `canaries`.\n\n"
        "## services\n\nThe fourth column is about the inventory's `ptolemy_services`; what is empty there follows from the catalogue. "
        "`guaranteed` may be given instead of `max`: it is `max` without the opportunistic ones.\n\n"
        f"{table(('key', 'type', 'default', 'in the inventory', 'meaning'), rows)}\n"
        f"## site\n\nWritten from the roles' variables.\n\n{table(('key', 'type', 'default', 'meaning'), keys(site))}\n"
        "## canaries\n\nWritten by `playbooks/rollout.yml`.\n\n"
        f"{table(('key', 'type', 'default', 'meaning'), keys(canary))}"
    )


# ------------------------------------------------------------------------------------------------------------------ metrics


def metrics(lines: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Rows of (name, kind, labels, help) from Prometheus' text format."""
    words: dict[str, str] = {}
    kinds: dict[str, str] = {}
    labels: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("# HELP "):
            name, _, text = line.removeprefix("# HELP ").partition(" ")
            words[name] = text
        elif line.startswith("# TYPE "):
            name, _, text = line.removeprefix("# TYPE ").partition(" ")
            kinds[name] = text
        else:
            name = re.split(r"[{ ]", line, maxsplit=1)[0]
            labels.setdefault(name, re.findall(r'[{,](\w+)="', line))
    for name, text in words.items():
        yield f"`{name}`", kinds[name], ", ".join(f"`{label}`" for label in labels.get(name, ())), text


def metrics_page(lines: Iterable[str]) -> str:
    """The metrics of ``ptolemy-exporter``."""
    return (
        "# Metrics\n\n`ptolemy-exporter` answers Prometheus on the gateway, at `http://127.0.0.1:9177/metrics` "
        "(`ptolemyd_exporter_listen`). HAProxy's own metrics are at `http://127.0.0.1:8404/metrics` (`haproxy_stats_bind`).\n\n"
        f"{table(('metric', 'type', 'labels', 'meaning'), metrics(lines))}"
    )


# ---------------------------------------------------------------------------------------------------------------- changelog

SECTIONS = (
    ("major_changes", "Major changes"),
    ("minor_changes", "Minor changes"),
    ("breaking_changes", "Breaking changes"),
    ("security_fixes", "Security fixes"),
    ("bugfixes", "Bug fixes"),
    ("known_issues", "Known issues"),
)


def changelog(released: str, fragments: Iterable[Path], title: str = "Unreleased") -> str:
    """The changelog of the releases, and before them, under ``title``, what the fragments say of the next one."""
    found: dict[str, list[str]] = {}
    for path in fragments:
        for section, sentences in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            found.setdefault(section, []).extend(plain(sentence) for sentence in sentences)
    head, mark, rest = released.partition("\n## ")
    parts = [head.rstrip() + "\n"]
    if found:
        parts.append(f"## {title}\n")
        parts += [f"### {section}\n\n" + "".join(f"- {it}\n" for it in found[name]) for name, section in SECTIONS if name in found]
    return "\n".join(parts) + (mark + rest if mark else "")

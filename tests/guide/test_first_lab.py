"""docs/first-lab.md does what it says: its commands run as they stand, and print what the page shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TIMEOUT = 3600  # seconds for all of it, from an empty cache
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"^<<block (\d+) done>>$")


class Step(NamedTuple):
    commands: str
    shown: str  # what the page shows below them; `...` stands for anything


def steps(page: str) -> list[Step]:
    """The fenced blocks of a page: commands, each with the output that follows them, if one does."""
    found: list[Step] = []
    for language, text in BLOCK.findall(page):
        if language == "sh":
            found.append(Step(text, ""))
        else:
            found[-1] = Step(found[-1].commands, text)
    return found


def missing(shown: str, printed: str) -> str | None:
    """The first line of what the page shows that was not printed, in order; None if all were."""
    lines = iter(printed.splitlines())
    for wanted in filter(None, shown.splitlines()):
        pattern = re.compile(r"\s+".join(".*".join(map(re.escape, word.split("..."))) for word in wanted.split()))
        if not any(pattern.fullmatch(line.strip()) for line in lines):
            return wanted
    return None


def run(new_user, todo: list[Step]) -> list[str]:
    """Run the commands in one shell, which ends at the first that fails; returns what each block printed."""
    marked = (f"{step.commands}\nprintf '\\n<<block {number} done>>\\n'\n" for number, step in enumerate(todo))
    script = "set -eo pipefail\n" + "".join(marked)
    # The lab of this test has another name than that of the page.
    script = script.replace(".lab/", f".lab-{new_user.prefix}/").replace("ptolemy-lab-", f"{new_user.prefix}-")
    path = new_user.checkout.parent / f"{new_user.checkout.name}.sh"
    path.write_text(script)
    printed = [""]
    with subprocess.Popen(
        ["timeout", str(TIMEOUT), "bash", path], cwd=new_user.checkout, env=new_user.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as shell:  # fmt: skip
        assert shell.stdout is not None
        for line in shell.stdout:
            if MARK.match(line):
                printed.append("")
            else:
                printed[-1] += line
                print(line, end="", flush=True)
    path.unlink()
    done = len(printed) - 1
    assert done == len(todo), f"these commands failed:\n{todo[done].commands}\nthey printed:\n{printed[done]}"
    return printed[:done]


def test_the_commands_of_the_guide_print_what_it_shows(new_user, subtests):
    todo = steps((ROOT / "docs/first-lab.md").read_text())
    assert len(todo) > 10
    for step, printed in zip(todo, run(new_user, todo), strict=True):
        with subtests.test(step.commands.splitlines()[0]):
            assert missing(step.shown, printed) is None, printed
    assert not (new_user.checkout / f".lab-{new_user.prefix}").exists(), "the page leaves its lab behind"

"""A stub gateway in a process of its own, and the client as people start it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pyarrow.parquet as pq
import pytest

from ptolemy_client.cli import main
from stub import KEY

TESTS = Path(__file__).parent
# For the processes that tests start; pytest itself has it from its settings.
os.environ["PYTHONPATH"] = str(TESTS.parent / "src")
COMMAND = [sys.executable, "-m", "ptolemy_client"]
LABELS = "instructions: Which kind of expense is it?\nlabels:\n  travel: trains, flights\n  office: paper, pens\n  other:\n"


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


class Site:
    """A directory with a labels file and a key, and a gateway to ask."""

    def __init__(self, path: Path, url: str, log: Path) -> None:
        self.path, self.url, self.log = path, url, log
        (path / "labels.yml").write_text(LABELS)
        (path / "key").write_text(KEY)
        (path / "key").chmod(0o600)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PTOLEMY")},
            "PTOLEMY_URL": url,
            "PTOLEMY_MODEL": "stub",
            "XDG_CONFIG_HOME": str(path / "config"),
            "MPLCONFIGDIR": str(path / "config"),
        }

    def argv(self, *arguments: str) -> list[str]:
        given = list(arguments)
        if given[0] != "evaluate" and "--key-file" not in given:
            given += ["--key-file", "key"]
        return [*COMMAND, *given]

    def run(self, *arguments: str, status: int = 0) -> Done:
        """Run a command inside this process, which saves its start."""
        outside, directory = dict(os.environ), Path.cwd()
        stdout, stderr = io.StringIO(), io.StringIO()
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.path)
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                code = main(self.argv(*arguments)[len(COMMAND) :])
        finally:
            os.chdir(directory)
            os.environ.clear()
            os.environ.update(outside)
        done = Done(stdout.getvalue(), stderr.getvalue())
        assert code == status, f"{code}\n{done.stdout}\n{done.stderr}"
        return done

    def classify(self, *arguments: str, status: int = 0) -> Done:
        return self.run("classify", "data.csv", "--text", "text", "--labels", "labels.yml", "-o", "out.parquet", *arguments, status=status)

    def asked(self) -> list[str]:
        """The prompts that the gateway answered, in order; a line that a kill cut off was not answered."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def write_rows(self, texts: list[str], name: str = "data.csv") -> None:
        with (self.path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["n", "text"])
            writer.writerows(enumerate(texts))

    def output(self, name: str = "out.parquet") -> list[dict[str, Any]]:
        return pq.read_table(self.path / name).to_pylist()

    def facts(self, name: str = "out.provenance.json") -> dict[str, Any]:
        return json.loads((self.path / name).read_text())


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start a gateway with these options of the stub; returns its site."""
    started = []

    def make(*options: str) -> Site:
        log = tmp_path / "asked"
        stub = subprocess.Popen([sys.executable, str(TESTS / "stub.py"), "0", str(log), *options], stdout=subprocess.PIPE, text=True)
        started.append(stub)
        assert stub.stdout
        port = stub.stdout.readline().strip()
        return Site(tmp_path, f"http://127.0.0.1:{port}", log)

    yield make
    for stub in started:
        stub.kill()
        stub.wait(10)
        if stub.stdout:
            stub.stdout.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()

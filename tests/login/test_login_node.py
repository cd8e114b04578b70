"""A researcher on a login node, with the command that site.yml put there, a key, and a table."""

from __future__ import annotations

import csv
import json

import pytest

from demo.categories import LABELS

PERSON, HOME = "ptada", "/home/ptada"
ROWS = ["DELTA AIR 0062341 BOSTON", "STAPLES #114 PAPER TONER", "DELTA AIR 0062341 BOSTON", ""]


@pytest.fixture
def person(shared):
    """An account without rights, whose key lies where docs/researchers.md says."""
    key = shared.run("head", "ptolemy", "keys", "add", PERSON, "--user", PERSON, "--tier", "batch", "--service", "demo").strip()
    shared.run("head", "useradd", "--create-home", PERSON)
    kept = 'mkdir -p ~/.config/ptolemy && (umask 077; echo "key: \\"$(cat)\\"" >~/.config/ptolemy/client.yml)'
    shared.run("head", "sh", "-c", f"HOME={HOME}; {kept}", user=PERSON, stdin=key)
    yield PERSON
    shared.run("head", "userdel", "--remove", PERSON, check=False)
    shared.run("head", "ptolemy", "keys", "revoke", PERSON, check=False)


def test_a_table_gets_its_labels_by_the_command_of_the_login_node(cluster, person):
    def ask(*arguments):
        return cluster.run("head", "env", f"--chdir={HOME}", f"HOME={HOME}", "ptolemy-batch", *arguments, user=person, timeout=120)

    table = "id,description\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(ROWS))
    cluster.run("head", "tee", f"{HOME}/rows.csv", user=person, stdin=table)
    cluster.run("head", "tee", f"{HOME}/labels.yml", user=person, stdin=json.dumps(list(LABELS)))
    assert "demo" in ask("models")
    ask("classify", "rows.csv", "--text", "description", "--labels", "labels.yml", "-o", "out.csv", "--model", "demo")
    rows = list(csv.DictReader(cluster.run("head", "cat", f"{HOME}/out.csv").splitlines()))
    assert [row["description"] for row in rows] == ROWS
    assert [row["ptolemy_status"] for row in rows] == ["ok", "ok", "ok", "empty"]
    assert [row["ptolemy_label"] for row in rows] == ["air travel", "office supplies", "air travel", ""]
    told = json.loads(cluster.run("head", "cat", f"{HOME}/out.provenance.json"))
    assert told["model"]["at_end"]["revision"] == cluster.service("demo")["revision"]

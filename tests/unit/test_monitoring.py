"""The alerts' contract: each has words, a heading that says what to do, and a rule test in which it is quiet once and fires once."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
TROUBLESHOOTING = "docs/troubleshooting.md"


def load(path: str) -> Any:
    return yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8"))


ALERTS = [rule for group in load("roles/monitoring/files/rules/alerts.yml")["groups"] for rule in group["rules"]]
CASES = [case for test in load("tests/monitoring/alerts.yml")["tests"] for case in test.get("alert_rule_test", ())]


def anchors() -> set[str]:
    """Of the page's headings, as GitHub and mkdocs make them."""
    lines = (CHECKOUT / TROUBLESHOOTING).read_text(encoding="utf-8").splitlines()
    return {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines if line.startswith("#")}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_quiet_once_and_fires_once_in_its_rule_test(alert: dict[str, Any]) -> None:
    mine = [bool(case.get("exp_alerts")) for case in CASES if case["alertname"] == alert["alert"]]
    assert set(mine) == {True, False}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_words_a_severity_and_a_runbook(alert: dict[str, Any]) -> None:
    words = alert["annotations"]
    assert alert["for"] and alert["labels"]["severity"] and words["summary"] and words["description"]
    page, _, heading = words["runbook_url"].partition("#")
    assert page == TROUBLESHOOTING, "the role puts monitoring_runbooks in its place"
    assert heading in anchors()


def test_every_rule_test_is_of_an_alert_that_is_there() -> None:
    assert {case["alertname"] for case in CASES} == {rule["alert"] for rule in ALERTS}


def test_the_dashboards_are_what_their_maker_makes() -> None:
    place = CHECKOUT / "roles" / "monitoring"
    made = runpy.run_path(str(place / "dashboards" / "make.py"))
    files = {path.stem: path.read_text(encoding="utf-8") for path in (place / "files" / "dashboards").glob("*.json")}
    assert files == {name: made["text"](of) for name, of in made["DASHBOARDS"].items()}, "run roles/monitoring/dashboards/make.py"


def test_a_dashboards_panels_do_not_overlap_and_have_queries() -> None:
    for path in (CHECKOUT / "roles/monitoring/files/dashboards").glob("*.json"):
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        cells = [
            (it["x"] + x, it["y"] + y) for it in (panel["gridPos"] for panel in panels) for x in range(it["w"]) for y in range(it["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
        assert all(panel["title"] and panel["targets"] for panel in panels)

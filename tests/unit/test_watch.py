"""What the exporter answers to whom: only an operator's key opens the operators' view, and an old status is none."""

from __future__ import annotations

import json
import os

import pytest

from ptolemy import keys
from ptolemy.errors import PtolemyError
from ptolemy.keys import Key, fingerprint
from ptolemy.watch import Watch
from statuses import BOTH, seen

NOW = 1300.0
ALICE, BOB, OLD = (fingerprint(name) for name in ("alice's", "bob's", "alice's old one"))


@pytest.fixture
def place(tmp_path):
    """The daemon's files."""
    site = {"user": "p", "uid": 1, "status_file": str(tmp_path / "status.json"), "keys_file": str(tmp_path / "keys.map")}
    known = [Key("a", ALICE, "alice"), Key("b", BOB, "bob"), Key("c", OLD, "alice", expires=int(NOW) - 1)]
    (tmp_path / "keys.map").write_text(keys.render(known))
    (tmp_path / "services.json").write_text(json.dumps({"site": {**site, "operators": ["alice"]}, "services": {}}))
    (tmp_path / "status.json").write_text(json.dumps(seen(*BOTH)))
    users = [{"user": "carol", "requests": 3, "per_minute": 9}]
    (tmp_path / "users.json").write_text(json.dumps({"time": NOW, "users": users}))
    return tmp_path


def view(watch, key_hash, now=NOW):
    body, secret = watch.document(key_hash, now)
    assert secret == ("carol" in body.decode())
    return json.loads(body)["view"]


def test_only_a_valid_key_of_an_operator_opens_their_view(place):
    watch = Watch(str(place / "services.json"))
    assert [view(watch, key) for key in ("", "yes", ALICE, BOB, OLD, ALICE[:-1], "")] == [
        *("everybody", "everybody", "operators", "everybody", "everybody", "everybody", "everybody")
    ]


def test_a_revoked_key_and_a_dismissed_operator_see_no_more_at_once(place):
    watch = Watch(str(place / "services.json"))
    assert view(watch, ALICE) == "operators"
    keys.change(str(place / "keys.map"), lambda present: keys.revoked(present, "a"))
    assert view(watch, ALICE) == "everybody"
    text = (place / "services.json").read_text().replace("alice", "bob")
    (place / "services.json").write_text(text)
    os.utime(place / "services.json", (1, 1))
    assert view(watch, BOB) == "operators"


def test_where_the_keys_cannot_be_read_nobody_is_an_operator(place):
    (place / "keys.map").write_text("nonsense\n")
    assert view(Watch(str(place / "services.json")), ALICE) == "everybody"


def test_a_status_that_is_gone_or_old_is_not_shown(place):
    watch = Watch(str(place / "services.json"))
    with pytest.raises(PtolemyError, match="has said nothing for 2 min"):
        watch.document("", NOW + 120)
    (place / "status.json").unlink()
    with pytest.raises(PtolemyError, match="is ptolemyd running"):
        watch.document("", NOW + 130)


def test_visitors_of_the_same_second_get_what_was_made_once(place):
    watch = Watch(str(place / "services.json"))
    first, _ = watch.document("", NOW)
    assert watch.document("", NOW + 0.5)[0] is first
    assert watch.document("", NOW + 1.5)[0] is not first


def test_each_status_teaches_once(place):
    watch = Watch(str(place / "services.json"))
    for turn in range(3):
        told = {**seen(*BOTH), "time": NOW + turn, "observed_at": NOW + turn}
        (place / "status.json").write_text(json.dumps(told))
        watch.turn(NOW + turn)
        watch.turn(NOW + turn + 0.1)
    assert watch._trends.of("chat").lately(NOW + 2).watched == 2
    (place / "status.json").write_text("{")
    watch.turn(NOW + 3)

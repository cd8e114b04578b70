"""The file of clients' keys: what is written is read back, and what is wrong is said and changes nothing."""

from __future__ import annotations

import fcntl
import string
import threading
from argparse import ArgumentParser
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptolemy import keys, keys_command
from ptolemy.config import Config
from ptolemy.errors import ConfigError
from ptolemy.keys import Key
from values import SITE

names = st.from_regex(keys.NAME, fullmatch=True)
numbers = st.integers(0, 2**31 - 1)
some_keys = st.builds(
    Key,
    name=names,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    user=names,
    tier=st.sampled_from(keys.TIERS),
    services=st.lists(st.text(string.ascii_lowercase, min_size=1), unique=True).map(tuple),
    concurrent=numbers,
    per_minute=numbers,
    expires=numbers,
    speaks_for_users=st.booleans(),
    origin=st.sampled_from([keys.SITE, keys.LOCAL]),
)


def key(name="a", **fields):
    return Key(**{"name": name, "user": name, "sha256": keys.fingerprint(name), **fields})


@pytest.fixture
def path(tmp_path):
    (tmp_path / "keys.map").touch()
    return str(tmp_path / "keys.map")


@given(st.lists(some_keys, unique_by=(lambda key: key.sha256, lambda key: key.name)))
def test_what_is_written_is_read_back(some):
    assert keys.parse(keys.render(some), "keys.map") == sorted(some, key=lambda key: key.name)


@pytest.mark.parametrize("line", ["nonsense", "f" * 64, "f" * 64 + " a:b:c", "f" * 64 + " a:a:batch:all:x:0:0:self:site"])
def test_a_line_that_cannot_be_read_is_named_and_not_skipped(line):
    with pytest.raises(ConfigError, match=r"keys\.map.*is not a key; restore the file"):
        keys.parse(f"# comment\n{line}\n", "keys.map")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "a b"}, "keys.a b.name"),
        ({"user": "a:b"}, "keys.a.user"),
        ({"tier": "gold"}, "must be interactive or batch"),
        ({"concurrent": -1}, "keys.a.concurrent"),
        ({"expires": 2**31}, "keys.a.expires"),
        ({"services": ("chta",)}, "there is no service chta; there are chat"),
    ],
)
def test_a_wrong_key_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        keys.check(key(**wrong), ["chat"])


def test_the_inventory_rules_its_own_keys_and_leaves_the_others():
    present = [key("cli"), key("gone", origin=keys.SITE)]
    assert [known.name for known in keys.declared(present, [key("new", origin=keys.SITE)])] == ["cli", "new"]
    with pytest.raises(ConfigError, match=r"keys\.cli: another key has the same name"):
        keys.declared(present, [key("cli", sha256="0" * 64, origin=keys.SITE)])
    with pytest.raises(ConfigError, match="another key has the same secret"):
        keys.declared(present, [key("b", sha256=keys.fingerprint("cli"), origin=keys.SITE)])
    for edit in (keys.revoked, lambda present, name: keys.rotated(present, name, "0" * 64, 0)):
        with pytest.raises(ConfigError, match="the inventory declares it"):
            edit(present, "gone")
        with pytest.raises(ConfigError, match="there is no such key"):
            edit(present, "nope")


def test_a_rotated_key_may_overlap_with_its_old_secret():
    present = [key("a", expires=500)]
    (new,) = keys.rotated(present, "a", "1" * 64, 0)
    assert (new.sha256, new.expires) == ("1" * 64, 500)
    new, old = keys.rotated(present, "a", "1" * 64, until=900)
    assert (old.name, old.sha256, old.expires) == ("a.old", keys.fingerprint("a"), 500)
    assert [known.name for known in keys.rotated([new, old], "a", "2" * 64, until=900)] == ["a", "a.old"]


def test_a_day_is_read_and_anything_else_is_named():
    assert keys.unix_time("", "x") == 0
    assert keys.unix_time("123", "x") == 123
    assert keys.unix_time("2027-01-31", "x") > 1_800_000_000
    with pytest.raises(ConfigError, match=r"x: must be a day as 2027-01-31, not '31\.1\.2027'"):
        keys.unix_time("31.1.2027", "x")


def test_writers_wait_for_each_other_and_keep_the_files_mode(path, tmp_path):
    (tmp_path / "keys.map").chmod(0o640)
    add = lambda number: keys.change(path, lambda present: keys.added(present, key(f"k{number}")))  # noqa: E731
    writers = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(keys.load(path)) == 20
    assert (tmp_path / "keys.map").stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["keys.map"]


def test_a_command_that_hangs_with_the_file_is_not_waited_for_for_ever(path, monkeypatch):
    monkeypatch.setattr(keys, "LOCK_TIMEOUT", 0.1)
    with open(path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another command has held it"):
            keys.change(path, lambda present: [key("a")])
    assert keys.load(path) == []


def test_a_refused_edit_changes_nothing(path):
    keys.change(path, lambda present: keys.added(present, key("a")))
    with pytest.raises(ConfigError, match="there is such a key already"):
        keys.change(path, lambda present: keys.added(present, key("a")))
    assert keys.load(path) == [key("a")]


def test_a_file_that_is_gone_takes_no_key_away(path, tmp_path):
    (tmp_path / "keys.map").unlink()
    for use in (lambda: keys.publish(path, None), lambda: keys.change(path, lambda present: present)):
        with pytest.raises(ConfigError, match="there is no such file"):
            use()


def test_the_list_shows_limits_and_no_hash(path):
    keys.change(path, lambda _: [key("a", concurrent=8, services=("chat",)), key("b", expires=1, speaks_for_users=True)])
    parser = ArgumentParser()
    keys_command.add_arguments(parser)
    title, first, second = keys_command.run(parser.parse_args(["list"]), Config(replace(SITE, keys_file=path), {}))
    assert title.split()[:3] == ["NAME", "USER", "TIER"]
    assert first.split() == ["a", "a", "interactive", "chat", "8", "-", "never", "local"]
    assert "b and its users" in second and "(over)" in second
    assert keys.fingerprint("a") not in first

"""The action plugin ptolemy_wait: a line for each change, an end in any case."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PLUGIN = Path(__file__).parents[2] / "plugins" / "action" / "ptolemy_wait.py"
spec = importlib.util.spec_from_file_location("action_ptolemy_wait", PLUGIN)
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)


class Time:
    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds


def seen(*lines, done=False):
    return {"done": done, "lines": list(lines), "next_step": "look there"}


def wait(*looks, timeout=60):
    shown, left, time = [], list(looks), Time()
    result = plugin.wait(lambda: left.pop(0) if len(left) > 1 else left[0], shown.append, timeout, 2, lambda: time.now, time.sleep)
    return result, shown, time.now


def test_each_change_is_shown_once():
    result, shown, elapsed = wait(seen("a: 0", "b: 1"), seen("a: 0", "b: 1"), seen("a: 1", "b: 1", done=True))
    assert shown == ["a: 0", "b: 1", "a: 1"]
    assert (result.get("failed"), elapsed) == (None, 4)


def test_what_comes_back_is_shown_again():
    assert wait(seen("up"), seen("down"), seen("up", done=True))[1] == ["up", "down", "up"]


def test_the_timeout_says_the_last_lines_and_the_next_step():
    result, _, elapsed = wait(seen("a: 0"), timeout=10)
    assert result["failed"]
    assert result["msg"] == "not within 10 s:\na: 0\nNext: look there."
    assert elapsed == 10


def test_a_look_that_fails_ends_the_wait():
    result, shown, elapsed = wait(seen("a: 0"), {"failed": True, "msg": "run site.yml"})
    assert (result["msg"], shown, elapsed) == ("run site.yml", ["a: 0"], 2)

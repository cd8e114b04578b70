"""The action plugin gguf_model: a line for each change of a download, an end in any case."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure

PLUGIN = Path(__file__).parents[2] / "plugins" / "action" / "gguf_model.py"
spec = importlib.util.spec_from_file_location("action_gguf_model", PLUGIN)
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)


def follow(looks, end):
    """Looks come one after the other; an exception is raised instead. Returns the result, what was shown, and the seconds that passed."""
    shown, pauses, left = [], [], list(looks)

    def finished():
        return {} if left else end

    def look():
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    return plugin.follow(finished, look, shown.append, pauses.append), shown, sum(pauses)


def test_a_short_job_ends_without_a_word_and_soon():
    result, shown, seconds = follow([], {"changed": True})
    assert (result, shown, seconds) == ({"changed": True}, [], 0.5)


def test_each_change_is_shown_once():
    assert follow([["m: 1 of 9 GB"], ["m: 1 of 9 GB"], ["m: 2 of 9 GB"]], {"changed": True})[1] == ["m: 1 of 9 GB", "m: 2 of 9 GB"]


def test_a_host_that_is_away_for_a_while_ends_nothing_and_one_that_stays_away_is_told():
    away = AnsibleConnectionFailure("no route")
    result, shown, _ = follow([["m: 1 of 9 GB"], away, away, ["m: 2 of 9 GB"]], {"changed": True})
    assert (result, len(shown)) == ({"changed": True}, 4)
    result, _, seconds = follow([away] * 1000, {})
    assert result["failed"]
    assert "the download goes on there" in result["msg"]
    assert seconds < 400

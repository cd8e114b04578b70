"""Tuning: what is measured next and what is chosen, the load, and the loop over a small stand-in for llama-server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptolemy import tune
from ptolemy.tune_plan import FINAL, SEARCH, Result, Setting, Space, Trial, choose, next_trial, without_cache

MODULE_UTILS = Path(tune.__file__).parents[1]
PRESENT = Setting(1, 8, ("--flash-attn", "on"))


def result(requests, first=0.1, **fields):
    return Result(requests, requests * 10, (first, first), (0.01, 0.01), **fields)


def search(space, measure, trials_left=100, seconds=10.0):
    """All trials of a search that has the time for so many of them."""
    trials, left = [], trials_left * seconds
    while proposal := next_trial(space, trials, left, seconds):
        setting, phase = proposal
        assert space.allows(setting)
        cost = seconds * (2 if phase == FINAL else 1)
        found = measure(setting)
        trials.append(Trial(setting, phase, cost, found if isinstance(found, Result) else None, "" if found else "did not start"))
        left -= cost
        assert len(trials) < 100
    return trials, left


def hill(setting):
    """Best with 4 servers of 32 slots and one cache for all of them."""
    off = abs(setting.servers - 4) + abs(setting.slots - 32) / 16
    return result(100 - 5 * off + 20 * ("--kv-unified" in setting.flags) + 10 * ("--cache-ram" in setting.flags))


def test_the_present_setting_comes_first_and_last_and_the_best_is_found():
    space = Space(PRESENT)
    trials, _ = search(space, hill)
    assert (trials[0].setting, trials[0].phase) == (PRESENT, SEARCH)
    assert [(trial.setting, trial.phase) for trial in trials[-2:]] == [
        (Setting(4, 32, ("--flash-attn", "on", "--cache-ram", "0", "--kv-unified")), FINAL),
        (PRESENT, FINAL),
    ]
    choice = choose(space, trials)
    assert choice.trial.setting == trials[-2].setting
    assert choice.present is trials[-1]


def test_no_setting_is_measured_twice_in_the_search():
    searched = [trial.setting for trial in search(Space(PRESENT), hill)[0] if trial.phase == SEARCH]
    assert len(searched) == len(set(searched))


@pytest.mark.parametrize("trials_left", [1, 3, 6, 8, 12])
def test_the_end_always_has_its_time(trials_left):
    trials, left = search(Space(PRESENT), hill, trials_left)
    assert left >= 0 or len(trials) == 1
    if len(trials) > 2:
        assert [trial.phase for trial in trials[-2:]] == [FINAL, FINAL]


def test_what_does_not_fit_is_never_proposed():
    small = Space(PRESENT, fits=lambda setting: setting.servers * setting.slots <= 16)
    assert all(trial.setting.servers * trial.setting.slots <= 16 for trial in search(small, hill)[0])


def test_settings_that_do_not_start_are_passed_over():
    trials, _ = search(Space(PRESENT), lambda setting: None if "--kv-unified" in setting.flags else hill(setting))
    best = choose(Space(PRESENT), trials).trial.setting
    assert (best.servers, best.slots, "--kv-unified" in best.flags) == (4, 32, False)
    assert any(trial.failure for trial in trials)


def test_a_setting_beyond_the_bounds_is_not_chosen_however_much_it_answers():
    space = Space(PRESENT, first=1.0)

    def slow(setting):
        return result(1000 if setting.slots > 8 else 50 + setting.servers, first=2.0 if setting.slots > 8 else 0.5)

    assert choose(space, search(space, slow)[0]).trial.setting.slots == 8


def test_a_setting_with_errors_is_not_chosen():
    best = choose(Space(PRESENT), search(Space(PRESENT), lambda setting: result(setting.slots, errors=setting.slots > 8))[0]).trial
    assert best.setting.slots == 8


def test_a_rival_that_is_no_better_at_the_end_is_not_taken():
    rival = Setting(4, 32)
    trials = [Trial(PRESENT, SEARCH, 1, result(10)), Trial(rival, SEARCH, 1, result(30))]
    for at_the_end, chosen in ((9.0, PRESENT), (10.4, PRESENT), (10.6, rival)):
        ends = [Trial(rival, FINAL, 1, result(at_the_end)), Trial(PRESENT, FINAL, 1, result(10))]
        assert choose(Space(PRESENT), [*trials, *ends]).trial.setting == chosen
    assert (
        choose(Space(PRESENT), [*trials, Trial(rival, FINAL, 1, None, "gone"), Trial(PRESENT, FINAL, 1, result(10))]).trial.setting
        == PRESENT
    )
    for ends in (
        [],
        [Trial(rival, FINAL, 1, result(30))],
        [Trial(rival, FINAL, 1, result(30)), Trial(PRESENT, FINAL, 1, None, "cut short")],
    ):
        assert choose(Space(PRESENT), [*trials, *ends]).trial.setting == PRESENT, "without an end nothing is taken"


def test_without_a_measurement_of_the_present_setting_nothing_is_chosen():
    assert choose(Space(PRESENT), [Trial(PRESENT, SEARCH, 1, None, "did not start")]) is None


def test_the_prompt_cache_is_switched_off_once():
    assert without_cache(("-cram", "4096", "-fa", "on")) == ("-fa", "on", "--cache-ram", "0")
    assert without_cache(("--cache-ram", "0", "-fa", "on")) == ("--cache-ram", "0", "-fa", "on")


# ------------------------------------------------------------------------------------------------------------- the loop


@pytest.fixture
def node(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    program = tmp_path / "llama-server"
    shutil.copy(Path(__file__).with_name("fake_llama_server.py"), program)
    program.write_text(program.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1))
    program.chmod(0o755)
    return tmp_path


def started(node, **fields):
    """A tuner at work."""
    spec = {
        "llama_server": str(node / "llama-server"), "model_path": str(node / "model.gguf"), "prompt_tokens": 12, "answer_tokens": 4,
        "shared_tokens": 8, "streamed": False, "present": {"servers_per_gpu": 1, "slots": 1, "flags": []}, "servers": [1, 2],
        "slots": [1, 4], "minutes": 0.4, **fields,
    }  # fmt: skip
    (node / "spec.json").write_text(json.dumps(spec))
    # Shorter windows; the real loop else.
    code = "import sys\nfrom ptolemy import tune\ntune.SHORTEST_WINDOW = 0.3\nsys.exit(tune.main(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(MODULE_UTILS), "PTOLEMY_MPS": "no", "PATH": str(node)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(node / "spec.json")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def alive(node):
    return subprocess.run(["pgrep", "-f", f"{node}/llama-server"], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.parametrize("streamed", [False, True])
def test_the_setting_that_answers_most_is_found_and_nothing_is_left_running(node, streamed):
    (node / "no-unified").touch()
    out, err = started(node, streamed=streamed).communicate(timeout=60)
    found = json.loads(out)
    assert (found["chosen"]["servers_per_gpu"], found["chosen"]["slots"]) == (2, 4), err
    present, *_, best, again = found["trials"]
    assert present["setting"] == again["setting"] == found["present"]
    assert best["result"]["requests"] > 2 * again["result"]["requests"]
    assert 0 < best["result"]["first"][0] < 0.2 and bool(best["result"]["between"][0]) == streamed
    failed = [trial for trial in found["trials"] if "--kv-unified" in trial["setting"]["flags"]]
    assert failed and all("unknown cache" in trial["failure"] for trial in failed)
    ports = {int(line.split()[0]) for line in (node / "started").read_text().splitlines()}
    assert min(ports) > 29999, "ports of replicas"
    assert all("--host 127.0.0.1" in line for line in (node / "started").read_text().splitlines())
    assert not alive(node)


def test_answers_of_another_length_are_errors(node):
    (node / "short").touch()
    tuner = started(node)
    _, err = tuner.communicate(timeout=60)
    assert tuner.returncode == 1
    assert "12 tokens in and 3 out instead of 12 and 4" in err
    assert not alive(node)


def test_a_job_that_nobody_waits_for_ends_and_takes_its_servers_with_it(node):
    began = time.monotonic()
    tuner = started(node, minutes=5, unasked_seconds=1.5)
    _, err = tuner.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert "nobody asked for 1.5 s" in err
    assert not alive(node)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shared_tokens": 12}, "shared_tokens below prompt_tokens"),
        ({"context": 15}, "does not fit into the context"),
        ({"llama_server": "/nowhere"}, "/nowhere is not on"),
    ],
)
def test_a_wish_that_cannot_be_is_told_in_one_line(node, wrong, said):
    tuner = started(node, **wrong)
    _, err = tuner.communicate(timeout=30)
    assert tuner.returncode == 1
    assert said in err and len(err.splitlines()) == 1

"""What tuning found: the variables file, how it changes the services, and when it stops instead; what a job is asked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from ptolemy import tuned, tuning
from ptolemy.config import Service
from ptolemy.errors import ConfigError
from ptolemy.job import tuning_script
from ptolemy.record import decode
from ptolemy.usage import Use
from test_site import complaints, site
from values import SITE, service

ROOT = Path(__file__).parents[2]
SERVICES = {
    "chat": {"model": "qwen", "context": 4096, "servers_per_gpu": 1, "slots": 16, "flags": ["-fa", "on"], "min": 1},
    "other": {"model": "qwen", "context": 512, "servers_per_gpu": 1, "slots": 4},
}
BEST = {"servers_per_gpu": 4, "slots": 32, "flags": ["-fa", "on", "--cache-ram", "0"]}


def trial(name, setting, phase, requests, failure=""):
    seen = {"requests": requests, "tokens": requests * 16, "first": [0.1, 0.2], "between": [0.0, 0.0], "errors": 0, "error": ""}
    return {
        "setting": setting, "name": name, "phase": phase, "seconds": 20.0, "failure": failure, "result": None if failure else seen
    }  # fmt: skip


def found():
    """What a job printed."""
    present = {key: SERVICES["chat"][key] for key in tuned.KEYS}
    return {
        "service": "chat", "at": "2026-11-28 14:00", "host": "n1", "gpu": "NVIDIA H100", "seconds": 590, "window": 10.0,
        "profile": "400 tokens in, 128 out, streamed", "bounds": {"first": 2.0, "between": 0.0}, "stopped": "",
        "present": present, "chosen": BEST, "reason": "2.00 times the requests",
        "trials": [
            trial("1 x 16", present, "search", 10.0), trial("8 x 64", {**BEST, "slots": 64}, "search", 0, "out of: memory"),
            trial("4 x 32", BEST, "final", 21.0), trial("1 x 16", present, "final", 10.5),
        ],
    }  # fmt: skip


def entry():
    return tuned.entry_of(found(), SERVICES["chat"])


def test_the_file_is_yaml_with_the_evidence_and_keeps_the_other_services():
    log = f"14:00:01 chat on NVIDIA H100\n{json.dumps(found())}\n"
    written = tuned.dump({"chat": tuned.entry_of(tuned.result_in(log), SERVICES["chat"])})
    again = tuned.dump({**yaml.safe_load(written)["ptolemy_tuned"], "other": entry()})
    read = yaml.safe_load(again)["ptolemy_tuned"]
    assert read["chat"] == yaml.safe_load(written)["ptolemy_tuned"]["chat"]
    assert {key: read["chat"][key] for key in tuned.KEYS} == BEST
    evidence = read["chat"]["evidence"].splitlines()
    assert any("NVIDIA H100" in line for line in evidence)
    assert any(line.startswith("4 x 32, again") and line.endswith(" 2.00") for line in evidence)
    assert any("failed: out of: memory" in line for line in evidence)
    assert tuned.changes(entry())[0] == "servers_per_gpu: 1 -> 4"


def test_a_job_that_found_nothing_is_told_with_the_end_of_its_log():
    with pytest.raises(ConfigError, match="no GPU"):
        tuned.result_in("14:00:01 begun\nptolemy: no GPU\n")


def test_what_was_tuned_takes_the_place_of_the_same_keys_and_of_no_others():
    services = tuned.applied(SERVICES, {"chat": entry()})
    assert services["chat"] == {**SERVICES["chat"], **BEST}
    assert services["other"] == SERVICES["other"]
    assert tuned.applied(SERVICES, {}) == SERVICES


@pytest.mark.parametrize(("key", "value"), [("model", "llama"), ("context", 8192), ("slots", 8), ("flags", []), ("servers_per_gpu", 2)])
def test_an_entry_that_was_measured_with_something_else_stops(key, value):
    services = {**SERVICES, "chat": {**SERVICES["chat"], key: value}}
    ((path, message, mend),) = tuned.problems({"chat": entry()}, services)
    assert path == f"ptolemy_tuned.chat.instead_of.{key}"
    assert f"ptolemy_services.chat.{key} was {json.dumps(SERVICES['chat'][key])}, which is {json.dumps(value)} now" in message
    assert "remove ptolemy_tuned.chat" in mend
    with pytest.raises(ConfigError, match=r"ptolemy_tuned\.chat"):
        tuned.applied(services, {"chat": entry()})


def test_a_change_of_sizes_does_not_stop():
    assert not list(tuned.problems({"chat": entry()}, {**SERVICES, "chat": {**SERVICES["chat"], "min": 3, "flags": ["-fa", "on"]}}))


@pytest.mark.parametrize(
    ("wrong", "path", "message"),
    [
        ([], "ptolemy_tuned", "must be a dictionary"),
        ({"chatt": entry()}, "ptolemy_tuned.chatt", "no such service in ptolemy_services (did you mean 'chat'?)"),
        ({"chat": {**entry(), "slotz": 4}}, "ptolemy_tuned.chat.slotz", "unknown key (did you mean 'slots'?)"),
        ({"chat": {**entry(), "slots": 0}}, "ptolemy_tuned.chat.slots", "must be a whole number of 1 or more, not 0"),
        ({"chat": {**entry(), "flags": ["--port", "1"]}}, "ptolemy_tuned.chat.flags", "--port: the job script sets this itself"),
        ({"chat": {**entry(), "instead_of": {}}}, "ptolemy_tuned.chat.instead_of", "must have model, context, "),
    ],
)
def test_each_mistake_is_named(wrong, path, message):
    ((where, what, _),) = tuned.problems(wrong, SERVICES)
    assert where == path and what.startswith(message)


def test_the_sites_check_knows_what_was_tuned():
    variables = site()
    right = tuned.entry_of(found(), variables["ptolemy_services"]["chat"])
    assert complaints({**variables, "ptolemy_tuned": {"chat": right}}) == {}
    wrong = {**right, "instead_of": {**right["instead_of"], "model": "another"}}
    assert list(complaints({**variables, "ptolemy_tuned": {"chat": wrong}})) == ["ptolemy_tuned.chat.instead_of.model"]


def test_the_filter_is_the_same():
    path = ROOT / "plugins/filter/with_tuned.py"
    spec = importlib.util.spec_from_file_location("filter_with_tuned", path)
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    with_tuned = plugin.FilterModule().filters()["with_tuned"]
    assert with_tuned(SERVICES, {"chat": entry()})["chat"]["slots"] == 32
    with pytest.raises(Exception, match=r"ptolemy_tuned\.other"):
        with_tuned(SERVICES, {"other": entry()})


# ------------------------------------------------------------------------------------------------------ what a job is asked


def use(tier="interactive", **fields):
    return Use("2026-11-27", "chat", "ann", tier, **{"requests": 10, "tokens_read": 3995.0, "tokens_generated": 1280.0, **fields})


def asked(*rows, of: Service | None = None, **wishes):
    of = of or service(slots=16, context=4096)
    return tuning.wish(of, {"servers_per_gpu": 1, "slots": 16, "flags": ()}, wishes, rows, 0)


def test_the_load_is_the_mean_request_of_the_last_days():
    wish = asked(use(), Use("2026-11-27", "other", "bob", "batch", 1000, tokens_read=1e9, tokens_generated=1e9))
    assert (wish["prompt_tokens"], wish["answer_tokens"], wish["streamed"]) == (400, 128, True)
    assert wish["first_token_seconds"] == tuning.FIRST_TOKEN


def test_a_batch_is_not_streamed_and_has_no_bounds():
    wish = asked(use(requests=1), use("batch"))
    assert not wish["streamed"]
    assert "first_token_seconds" not in wish


def test_the_operators_wishes_come_before_the_past():
    wish = asked(use(), answer_tokens=16, minutes=3, streamed=False, first_token_seconds=9.0)
    assert (wish["prompt_tokens"], wish["answer_tokens"], wish["minutes"], wish["first_token_seconds"]) == (400, 16, 3, 9.0)


@pytest.mark.parametrize(
    ("rows", "wishes", "message"),
    [
        ((), {}, "-e tune_prompt_tokens=N -e tune_answer_tokens=N, and tune_shared_tokens=N"),
        ((use(tokens_read=0.0),), {}, "nobody has used it"),
        ((), {"prompt_tokens": 4000, "answer_tokens": 128}, "4128 tokens does not fit into chat's context"),
        ((), {"promt_tokens": 4000}, "tune_promt_tokens: unknown"),
    ],
)
def test_a_load_that_is_not_known_or_cannot_be_is_one_clear_error(rows, wishes, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        asked(*rows, **wishes)


def test_only_chats_are_tuned():
    with pytest.raises(ConfigError, match="embedding"):
        asked(use(), of=service(kind="embedding"))


def test_the_job_asks_for_one_gpu_where_its_replicas_run_and_is_no_replica():
    chat = service(gpus=4, nodes="n1", reservation="course", sbatch_options=("--account=ai",), flags=("-fa", "on"))
    script = tuning_script("#!/bin/bash\n$sbatch_options\nrun $command\n$spec", SITE, chat, asked(use(), of=chat), {"n2"})
    options = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    for option in ("--job-name=tune-chat", "--gres=gpu:1", "--reservation=course", "--exclude=n2", "--account=ai", "--time=00:15:00"):
        assert option in options
    assert not [option for option in options if option.startswith(("--comment", "--signal"))]
    assert "run tune\n" in script
    spec = json.loads(script[script.index("{") :])
    assert (spec["present"]["slots"], spec["prompt_tokens"], spec["context"]) == (16, 400, 8192)


def test_a_template_that_could_only_start_a_replica_is_refused():
    with pytest.raises(ConfigError, match=r"playbooks/gateway\.yml"):
        tuning_script("$sbatch_options $spec", SITE, service(), asked(use()))


def test_progress_is_no_record_of_a_replica():
    assert decode("14:00:01 chat on NVIDIA H100\n4 x 32: 57.0 requests/s") is None

"""The services file: what is missing or wrong is named, and a revision changes exactly when a replica would."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace

import pytest

from ptolemy.config import load, parse
from ptolemy.errors import ConfigError
from ptolemy.job import script
from values import SITE, service

RAW = {
    "site": {"user": "ptolemy", "uid": 6030, "llama_cpp": "b1"},
    "services": {"chat": {"model": "m", "model_path": "/m.gguf", "model_sha256": "0" * 64, "min": 1, "max": 2, "partition": "gpu"}},
}
TEMPLATE = "#!/bin/bash\n$sbatch_options\n# $service $revision\nexport PYTHONPATH=$lib\nexec cat <<'SPEC'\n$spec\nSPEC\n"


def test_a_services_file_is_read(tmp_path):
    path = tmp_path / "services.json"
    path.write_text(json.dumps(RAW))
    config = load(str(path))
    assert (config.services["chat"].min, config.services["chat"].max) == (1, 2)
    assert config.services["chat"].llama_cpp == "b1"


def changed(path, value):
    raw = json.loads(json.dumps(RAW))
    *parents, last = path
    place = raw
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["services"], None, "f: services: must be an object"),
        (["site", "uid"], None, "f: site.uid: missing"),
        (["site", "uid"], "6030", "f: site.uid: must be a whole number"),
        (["services", "chat", "model"], None, "f: services.chat.model: missing"),
        (["services", "chat", "gpuss"], 1, "f: services.chat.gpuss: unknown key"),
        (["services", "chat", "min"], True, "f: services.chat.min: must be a whole number"),
        (["services", "chat", "min"], 3, "f: services.chat.min: 3 is more than max, 2"),
        (["services", "chat", "opportunistic"], 3, "f: services.chat.opportunistic: 3 is more than max, 2"),
        (["services", "chat", "guaranteed"], 1, "f: services.chat.max: must be guaranteed + opportunistic, 1; leave it out"),
        (["services", "chat", "target_load"], 0, "f: services.chat.target_load: must be above 0"),
        (["services", "chat", "kind"], "embeddings", "f: services.chat.kind: must be chat, embedding or comfyui, not 'embeddings'"),
        (["services", "chat", "affinity"], "user", "f: services.chat.affinity: must be none or conversation, not 'user'"),
        (["services", "chat", "exclusive"], "yes", "f: services.chat.exclusive: must be true or false"),
        (["services", "chat", "flags"], "-b 1", "f: services.chat.flags: must be a list of strings"),
        (["services", "chat", "partition"], "a\n#SBATCH", "f: services.chat.partition: must be a string of one line"),
        (["services", "Chat!"], {}, "f: services.Chat!: a service's name must match"),
        (["services", "chat"], [], "f: services.chat: must be an object"),
    ],
)
def test_what_is_wrong_is_named(path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(changed(path, value), "f")


def test_guaranteed_is_another_way_to_say_max():
    raw = changed(["services", "chat", "max"], None)
    raw["services"]["chat"] |= {"guaranteed": 3, "opportunistic": 2}
    chat = parse(raw, "f").services["chat"]
    assert (chat.max, chat.guaranteed, chat.opportunistic) == (5, 3, 2)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        load(str(tmp_path / "none.json"))
    (tmp_path / "half.json").write_text('{"site":')
    with pytest.raises(ConfigError, match=r"half\.json: not JSON"):
        load(str(tmp_path / "half.json"))


def test_a_revision_follows_what_decides_how_a_replica_runs_and_nothing_else():
    base = service()
    for field, value in {"model_sha256": "1" * 64, "llama_cpp": "b2", "gpus": 2, "slots": 9, "context": 1, "flags": ("-b",)}.items():
        assert replace(base, **{field: value}).revision != base.revision
    for field, value in {"min": 0, "max": 5, "time_limit": "1:00", "sbatch_options": ("--nice",), "partition": "high"}.items():
        assert replace(base, **{field: value}).revision == base.revision


def test_an_embedding_service_takes_inputs_as_long_as_its_context_and_its_own_flags_win():
    embedding = service(kind="embedding", context=2048, flags=("--pooling", "last"))
    expected = "--embeddings --batch-size 2048 --ubatch-size 2048 --pooling last".split()
    assert json.loads(script("$spec", SITE, embedding))["flags"] == expected
    assert embedding.revision != replace(embedding, kind="chat").revision


def test_the_job_script_is_bash_and_hands_its_spec_on_unchanged():
    hostile = service(flags=("--grammar", "root ::= \"$HOME\" '`id`'"), sbatch_options=("--account=it's mine",), gpus=2)
    text = script(TEMPLATE, SITE, hostile)
    printed = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["flags"] == list(hostile.flags)
    assert "#SBATCH --gres=gpu:2" in text
    assert "#SBATCH --mem=32G" in text


def test_an_extra_replica_is_submitted_where_and_as_the_service_says():
    chat = service(
        size=2, opportunistic=1, opportunistic_partition="scavenge", opportunistic_options=("--qos=low",),
        reservation="course", exclusive=True,
    )  # fmt: skip
    ordinary, extra = (script(TEMPLATE, SITE, chat, opportunistic, {"n2"}, {"n1"}) for opportunistic in (False, True))
    assert "#SBATCH --partition=gpu\n" in ordinary
    assert "--time-min" not in ordinary
    for option in ("--reservation=course", "--exclusive", "--exclude=n1,n2"):
        assert f"#SBATCH {option}\n" in ordinary
        assert f"#SBATCH {option}\n" in extra
    assert "#SBATCH --partition=scavenge\n" in extra
    assert "#SBATCH --time-min=00:10:00\n#SBATCH --qos=low" in extra


def test_a_template_with_an_unknown_place_is_refused_by_name():
    with pytest.raises(ConfigError, match="gpuss"):
        script("$gpuss", SITE, service())


def test_affinity_is_for_chats_and_no_part_of_the_revision():
    raw = changed(["services", "chat", "affinity"], "conversation")
    assert parse(raw, "f").services["chat"].revision == parse(RAW, "f").services["chat"].revision
    raw["services"]["chat"]["kind"] = "embedding"
    with pytest.raises(ConfigError, match=r"chat\.affinity: is for services of the kind chat"):
        parse(raw, "f")


def test_a_comfyui_needs_no_model_and_follows_its_own_identity():
    raw = changed(["site", "comfyui_identity"], "c1")
    raw["services"]["draw"] = {"kind": "comfyui", "min": 0, "max": 1, "partition": "gpu"}
    draw = parse(raw, "f").services["draw"]
    assert (draw.model_path, draw.llama_cpp, parse(raw, "f").services["chat"].llama_cpp) == ("", "c1", "b1")
    assert json.loads(script("$spec", SITE, draw))["kind"] == "comfyui"
    raw["services"]["draw"]["servers_per_gpu"] = 2
    with pytest.raises(ConfigError, match=r"draw\.servers_per_gpu: a ComfyUI has its GPU for itself"):
        parse(raw, "f")


def test_a_comfyuis_revision_follows_its_models_and_their_places():
    base = service(kind="comfyui", comfyui_models=("vae/a.safetensors",))
    assert replace(base, comfyui_models=("checkpoints/a.safetensors",)).revision != base.revision
    assert base.about == {"model": "demo", "files": ["a.safetensors"]}

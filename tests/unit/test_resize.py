"""New sizes for services: only sizes change, and what is wrong is named before anything does."""

from __future__ import annotations

import json
import re

import pytest

from ptolemy.config import parse
from ptolemy.errors import ConfigError
from ptolemy.resize import STOPPED, declared, dump, resize, sizes

PLACE = {"model": "m", "model_path": "/m.gguf", "model_sha256": "0" * 64, "partition": "gpu"}
RAW = {
    "site": {"user": "ptolemy", "uid": 6030},
    "services": {
        "chat": {**PLACE, "min": 1, "max": 4},
        "classify": {**PLACE, "min": 2, "guaranteed": 6, "opportunistic": 8, "scale_in_delay": 60},
    },
}


def size_after(name, size):
    after = parse(resize(RAW, "f", {name: size}), "f").services[name]
    return after.min, after.max, after.opportunistic


@pytest.mark.parametrize(
    ("name", "size", "after"),
    [
        ("chat", 3, (3, 3, 0)),
        ("chat", {"replicas": 3, "opportunistic": 1}, (3, 3, 1)),
        ("chat", {"min": 2}, (2, 4, 0)),
        ("chat", {"max": 2}, (1, 2, 0)),
        ("chat", {"guaranteed": 2, "opportunistic": 3}, (1, 5, 3)),
        ("classify", 3, (3, 3, 0)),
        ("classify", {"max": 10}, (2, 10, 8)),
        ("classify", {"opportunistic": 0}, (2, 6, 0)),
        ("classify", {"guaranteed": 1}, (2, 9, 8)),
        ("classify", STOPPED, (0, 0, 0)),
    ],
)
def test_a_size_is_set_and_what_is_not_named_stays(name, size, after):
    assert size_after(name, size) == after


def test_nothing_but_sizes_changes():
    after = resize(RAW, "f", {"classify": {"min": 3, "target_load": 0.5}})
    assert after["services"]["chat"] == RAW["services"]["chat"]
    assert after["services"]["classify"] == {**RAW["services"]["classify"], "min": 3, "target_load": 0.5}
    assert after["site"] == RAW["site"]


def test_the_inventorys_sizes_bring_the_file_back_to_what_site_yml_writes():
    inventory = {name: {**service, "gpus": 2} for name, service in RAW["services"].items()}  # gpus is site.yml's to change
    altered = resize(RAW, "f", {"chat": {"min": 3, "target_load": 0.5}, "classify": 4})
    assert dump(resize(altered, "f", declared(inventory, {}))) == dump(RAW)


def test_overrides_replace_the_inventorys_sizes_and_the_others_follow_the_inventory():
    altered = resize(RAW, "f", {"chat": 3})
    wanted = declared(RAW["services"], {"classify": {"max": 3, "opportunistic": 1}})
    shown = sizes(resize(altered, "f", wanted), "f")
    assert (shown["chat"]["min"], shown["chat"]["max"]) == (1, 4)
    assert (shown["classify"]["min"], shown["classify"]["max"], shown["classify"]["opportunistic"]) == (2, 3, 1)
    assert shown["classify"]["scale_in_delay"] == 60


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"caht": 1}, "caht: no such service in f (did you mean 'chat'?); there are: chat, classify."),
        ({"chat": {"mni": 1}}, "chat.mni: is no size (did you mean 'min'?)"),
        ({"chat": {"gpus": 2}}, "chat.gpus: is no size; known are replicas, min"),
        ({"chat": {"min": "2"}}, "chat.min: must be a whole number of 0 or more, not '2'"),
        ({"chat": {"min": 5}}, "chat.min: 5 is more than max, 4; give keys that fit together"),
        ({"chat": -1}, "chat.replicas: must be a whole number of 0 or more, not -1"),
        ({"chat": True}, "chat: must be a number of replicas, or keys of min, max"),
        ({"chat": {"replicas": 2, "max": 3}}, "chat.max: replicas says it already"),
        ({"chat": {"target_load": 2}}, "chat.target_load: must be a number above 0"),
        ({"chat": {"min": None}}, "chat.min: missing"),
        ({"chat": {"max": 3, "guaranteed": 1}}, "chat.max: must be guaranteed + opportunistic, 1"),
    ],
)
def test_what_is_wrong_is_named(wanted, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        resize(RAW, "f", wanted)


def test_a_service_that_only_the_inventory_has_is_site_ymls_business():
    with pytest.raises(ConfigError, match=r"new: no such service in f; .* site\.yml brings it up"):
        resize(RAW, "f", declared({"new": {"min": 1, "max": 1}}, {}))
    with pytest.raises(ConfigError, match="chatt: no such service in ptolemy_services"):
        declared(RAW["services"], {"chatt": 1})


def test_a_file_is_written_as_ansible_writes_it():
    assert dump({"b": [1], "a": "é"}) == '{\n    "a": "\\u00e9",\n    "b": [\n        1\n    ]\n}\n'
    assert json.loads(dump(RAW)) == RAW

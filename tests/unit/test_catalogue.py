"""The catalogue's entries: which files each means, and what the gateway is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from ptolemy import catalogue, config
from ptolemy.catalogue import ModelFile, shown, url
from ptolemy.errors import ConfigError
from test_site import complaints, site, with_model

CHECKOUT = Path(__file__).parents[2]
A, B, C = "a" * 64, "b" * 64, "c" * 64


def entry(**changes: Any) -> dict[str, Any]:
    return {"file": "m.gguf", "source": "hf://o/n@r/m.gguf", "sha256": A, "licence": "MIT", **changes}


def shards(**changes: Any) -> dict[str, Any]:
    source = "https://example.org/x-00001-of-00002.gguf?download=true"
    return entry(**{"file": "m-00001-of-00002.gguf", "source": source, "sha256": [A, B], **changes})


PROJECTOR = {"file": "p.gguf", "source": "hf://o/n/mmproj-F16.gguf", "sha256": C}


def test_a_simple_entry_is_one_file() -> None:
    assert catalogue.files(entry()) == (ModelFile("m.gguf", A, "hf://o/n@r/m.gguf"),)


def test_shards_follow_from_the_first_one_and_the_mmproj_comes_last() -> None:
    assert catalogue.files(shards(mmproj=PROJECTOR)) == (
        ModelFile("m-00001-of-00002.gguf", A, "https://example.org/x-00001-of-00002.gguf?download=true"),
        ModelFile("m-00002-of-00002.gguf", B, "https://example.org/x-00002-of-00002.gguf?download=true"),
        ModelFile("p.gguf", C, "hf://o/n/mmproj-F16.gguf"),
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (entry(file=None), "file: is not set"),
        (entry(source="hf://onlyname/m"), "source: must be"),
        (entry(source="/m.gguf", sha256=[A, "b"]), "sha256: must be 64 hexadecimal digits"),
        (entry(sha256=[A, B]), "sha256: 2 checksums, but 'm.gguf' is not the first of several shards"),
        (shards(sha256=A), "sha256: 2 shards have 2 checksums, not 1"),
        (shards(source="/x.gguf"), "source: must end in the first shard's name, NAME-00001-of-00002.gguf"),
        (shards(file="m-00002-of-00002.gguf"), "file: 'm-00002-of-00002.gguf' is shard 2; llama.cpp wants the first one"),
        (entry(mmproj={"file": "p.gguf", "source": "/p"}), "mmproj.sha256: is not set"),
        (entry(mmproj={**PROJECTOR, "sha256": [A, B]}), "mmproj.sha256: an mmproj is one file"),
        (shards(mmproj={**PROJECTOR, "file": "m-00002-of-00002.gguf"}), "mmproj.file"),
        (entry(mmproj="p.gguf"), "mmproj: must be a dictionary with file, source, sha256"),
    ],
)
def test_what_does_not_fit_together_is_told_by_its_key(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as told:
        catalogue.files(given)
    assert str(told.value).startswith(says)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("hf://Qwen/Qwen3-8B-GGUF/Q4 K.gguf", "hf://Qwen/Qwen3-8B-GGUF/Q4 K.gguf"),  # no source at all
        ("hf://Qwen/Qwen3-8B-GGUF/a/b.gguf", "https://hub.example/Qwen/Qwen3-8B-GGUF/resolve/main/a/b.gguf"),
        ("hf://o/n@refs%2Fpr%2F1/b.gguf", "https://hub.example/o/n/resolve/refs%2Fpr%2F1/b.gguf"),
        ("https://example.org/b.gguf", "https://example.org/b.gguf"),
    ],
)
def test_a_hub_source_is_looked_up_at_the_endpoint(source: str, address: str) -> None:
    assert url(source, "https://hub.example/") == address


def test_a_source_is_shown_without_its_secrets() -> None:
    assert shown("https://me:secret@example.org/b.gguf?token=secret#x") == "https://example.org/b.gguf"
    assert shown("file:///srv/b.gguf") == "file:///srv/b.gguf"


def test_shards_and_an_mmproj_are_right_where_they_fit_together() -> None:
    projector = {"file": "mmproj.gguf", "source": "hf://o/n/mmproj.gguf", "sha256": "1" * 64}
    large = {"file": "l-00001-of-00002.gguf", "source": "hf://o/n@v1/q8/l-00001-of-00002.gguf", "sha256": ["2" * 64, "3" * 64]}
    models = {**site()["ptolemy_models"], "large": {**large, "licence": "MIT", "mmproj": projector}}
    assert complaints(site(ptolemy_models=models)) == {}
    assert complaints(with_model(mmproj={**projector, "sha": "x"})) == {
        "ptolemy_models.demo.mmproj.sha": "unknown key (did you mean 'sha256'?)"
    }
    assert complaints(with_model(mmproj={**projector, "file": "../x"})).keys() == {"ptolemy_models.demo.mmproj.file"}
    models["large"]["sha256"] = "2" * 64
    assert complaints(site(ptolemy_models=models)) == {"ptolemy_models.large.sha256": "2 shards have 2 checksums, not 1"}


def test_quantisations_of_a_model_may_share_an_mmproj_but_only_the_same_one() -> None:
    projector = {"file": "mmproj.gguf", "source": "hf://o/n/mmproj.gguf", "sha256": "1" * 64}
    models = with_model(mmproj=projector)["ptolemy_models"]
    models["other"] = {**models["demo"], "file": "other.gguf"}
    assert complaints(site(ptolemy_models=models)) == {}
    models["other"]["mmproj"] = {**projector, "sha256": "2" * 64}
    assert complaints(site(ptolemy_models=models)) == {"ptolemy_models.other.mmproj.file": "'mmproj.gguf' is also a file of model 'demo'"}


def test_the_services_file_tells_the_shards_and_the_mmproj_and_they_decide_the_revision() -> None:
    plain = services_file(entry())
    assert (plain.model_more, plain.mmproj_path, plain.model_sha256) == ((), "", A)
    full = services_file(shards(mmproj=PROJECTOR))
    assert (full.model_path, full.model_sha256, full.mmproj_path) == ("/models/m-00001-of-00002.gguf", A, "/models/p.gguf")
    assert full.model_more == (f"{B}  m-00002-of-00002.gguf", f"{C}  p.gguf")
    assert full.revision not in (plain.revision, services_file(shards()).revision, services_file(shards(sha256=[A, C])).revision)


def services_file(model: dict[str, Any]) -> config.Service:
    """The one service that the role's template makes of a model."""
    environment = jinja2.Environment(autoescape=False)
    environment.filters.update(
        flatten=lambda value: [item for part in value for item in (part if isinstance(part, list) else [part])],
        combine=lambda one, other: {**one, **other},
        to_nice_json=lambda value, **_: json.dumps(value),
    )
    role = CHECKOUT / "roles" / "ptolemyd"
    variables: dict[str, Any] = dict.fromkeys(yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8")), "0")
    services = {"chat": {"model": "m", "min": 1, "max": 1, "partition": "gpu"}}
    variables.update(ptolemyd_models={"m": model}, ptolemyd_services=services, ptolemyd_models_dir="/models")
    template = environment.from_string((role / "templates" / "services.json.j2").read_text(encoding="utf-8"))
    rendered = json.loads(template.render(variables))
    rendered["site"] = {"user": "ptolemy", "uid": 6030}
    return config.parse(rendered, "services.json").services["chat"]

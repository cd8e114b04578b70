"""The checks of a site's variables where a service makes pictures."""

from __future__ import annotations

from typing import Any

import pytest

from test_site import complaints, site


def pictures(folder: str = "checkpoints", **changes: Any) -> dict[str, Any]:
    models = {**site()["ptolemy_models"], "sdxl": {"file": "sdxl.safetensors", "folder": folder}}
    models["sdxl"] = {"source": "/srv/sdxl.safetensors", "sha256": "1" * 64, "licence": "OpenRAIL++", **models["sdxl"]}
    draw = {key: value for key, value in site()["ptolemy_services"]["chat"].items() if key not in ("model", "context", "servers_per_gpu")}
    services = {**site()["ptolemy_services"], "draw": {**draw, "kind": "comfyui", "models": ["sdxl"], "flags": [], **changes}}
    return site(ptolemy_models=models, ptolemy_services=services)


def test_a_comfyui_has_models_with_folders_and_no_context() -> None:
    assert complaints(pictures()) == {}
    assert complaints(pictures(models=[])) == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"models": ["sdx"]}, "ptolemy_services.draw.models"),
        ({"models": "sdxl"}, "ptolemy_services.draw.models"),
        ({"models": ["demo"]}, "ptolemy_models.demo.folder"),
        ({"model": "sdxl"}, "ptolemy_services.draw.model"),
        ({"servers_per_gpu": 2}, "ptolemy_services.draw.servers_per_gpu"),
        ({"affinity": "conversation"}, "ptolemy_services.draw.affinity"),
        ({"folder": "Check points"}, "ptolemy_models.sdxl.folder"),
    ],
)
def test_what_a_comfyui_cannot_have_is_named(changes: dict[str, Any], named: str) -> None:
    assert named in complaints(pictures(**changes))


def test_a_chat_service_has_no_model_of_comfyui() -> None:
    for change, named in (({"model": "sdxl"}, "ptolemy_services.chat.model"), ({"models": ["sdxl"]}, "ptolemy_services.chat.models")):
        wrong = pictures()
        wrong["ptolemy_services"]["chat"] |= change
        assert named in complaints(wrong)

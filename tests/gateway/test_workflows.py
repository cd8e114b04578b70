"""The workflows that the role brings, taken by the real ComfyUI: with PTOLEMY_TEST_COMFYUI only, see comfyui_instances.py."""

from __future__ import annotations

import json
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from comfyui_client import Painter, filled
from comfyui_instances import REAL, run
from local_gateway import Gateway

pytestmark = pytest.mark.skipif(not REAL, reason="the stand-in knows no such nodes")

MODELS = {
    "sdxl": ["checkpoints/sd_xl_base_1.0.safetensors"],
    "flux": [
        "diffusion_models/flux1-schnell.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
        "text_encoders/clip_l.safetensors",
        "vae/ae.safetensors",
    ],
    "empty": [],
}


def asked(name: str, prompt: str = "a lighthouse", size: int = 64, seed: int = 1) -> dict[str, Any]:
    """A workflow as Open WebUI sends it."""
    (model, *_) = MODELS[name] or [""]
    return filled(name, model=Path(model).name, prompt=prompt, width=size, height=size, n=1, seed=seed)


def put(directory: Path, name: str) -> list[str]:
    """Give ComfyUI files of the workflow's models, with nothing in them: what they are called is looked at before they are read."""
    (directory / "models").mkdir()
    for model in MODELS[name]:
        (directory / "models" / Path(model).name).touch()
    return MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_comfyui_takes_the_workflow(gateway: Gateway, instances: Any, tmp_path: Path, name: str) -> None:
    instances(models=put(tmp_path, name))
    prompt = asked(name)

    async def scenario(user: Painter) -> tuple[dict[str, Any], dict[str, Any]]:
        nodes = json.loads((await user.send("GET", "/object_info"))[1])
        return nodes, json.loads((await user.send("POST", "/prompt", json={"prompt": prompt}))[1])

    nodes, answer = run(gateway, scenario)
    assert answer.get("node_errors") == {} and "prompt_id" in answer, answer
    # It says nothing of inputs that it does not know.
    for node in prompt.values():
        inputs = nodes[node["class_type"]]["input"]
        assert set(node["inputs"]) <= {*inputs["required"], *inputs.get("optional", {})}


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_workflow_whose_models_the_service_has_not_got_is_refused(gateway: Gateway, instances: Any, name: str) -> None:
    instances()

    async def scenario(user: Painter) -> tuple[int, bytes]:
        return await user.send("POST", "/prompt", json={"prompt": asked(name)})

    status, body = run(gateway, scenario)
    assert status == 400
    wrong = [error for node in json.loads(body)["node_errors"].values() for error in node["errors"]]
    assert {error["type"] for error in wrong} == {"value_not_in_list"} and len(wrong) == len(MODELS[name])


def pixels(picture: bytes) -> tuple[tuple[int, int], bytes]:
    """The size of a PNG, and its pixels as they stand in it: beside them it has the prompt, too."""
    assert picture.startswith(b"\x89PNG")
    at, data = 8, b""
    while at < len(picture):
        length, kind = int.from_bytes(picture[at : at + 4], "big"), picture[at + 4 : at + 8]
        if kind == b"IDAT":
            data += picture[at + 8 : at + 8 + length]
        at += 12 + length
    return (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")), zlib.decompress(data)


def test_prompt_and_seed_make_the_picture(gateway: Gateway, instances: Any, tmp_path: Path) -> None:
    models = put(tmp_path, "sdxl")
    script, target = Path(__file__).with_name("random_checkpoint.py"), tmp_path / "models" / Path(models[0]).name
    environment = {"PYTHONPATH": f"{REAL}/source", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([f"{REAL}/venv/bin/python", script, target], check=True, env=environment, timeout=240)
    instances(models=models)

    async def scenario(user: Painter) -> list[bytes]:
        prompts = [asked("sdxl"), asked("sdxl", seed=2), asked("sdxl", prompt="a horse"), asked("sdxl")]
        for prompt in prompts:
            prompt["5"]["inputs"]["steps"] = 3
        return [await user.awaited(await user.submit(prompt)) for prompt in prompts]

    (size, first), (_, another_seed), (_, another_prompt), (_, again) = map(pixels, run(gateway, scenario))
    assert size == (64, 64)
    assert len({first, another_seed, another_prompt}) == 3 and again == first
    assert len(set(first)) > 100  # it is no picture of one colour

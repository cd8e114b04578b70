"""The workflows that the role brings: Open WebUI fills them in. tests/gateway/test_workflows.py gives them to the real ComfyUI."""

from __future__ import annotations

import json

import pytest

from comfyui_client import WORKFLOWS

FILES = sorted(WORKFLOWS.glob("*.json"))
# What Open WebUI knows of each picture. It fills in `steps` (50, its default) and `negative_prompt` (the word None), too, where nobody
# chose them: those stay the workflow's.
KNOWN = {"model", "prompt", "width", "height", "n", "seed"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_open_webui_fills_in_inputs_that_are_there_and_only_what_it_knows(file):
    told = json.loads(file.read_text())
    for node in told["nodes"]:
        assert node["type"] in KNOWN
        for number in node["node_ids"]:
            assert not isinstance(told["workflow"][number]["inputs"][node["key"]], list), "a link to another node"

#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: the files of one model. The action plugin of the same name lets it take hours, and shows how far it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_model
short_description: Bring a model's GGUF files to a host, each checked against its sha256
description:
  - Downloads resume, also those of an earlier run that was interrupted; a file gets its name only when its sha256 is right.
  - A file with a stamp (C(.FILE.sha256), with the size and the time of change that it had when it was hashed) is not hashed again.
  - Two processes that want the same file do not harm each other, as the second one waits. On NFS this needs a mount with locks.
  - A file that is there with another hash stops the run, see O(replace).
options:
  name:
    description: The model's name, for messages.
    type: str
    required: true
  file:
    description: The file's name on the host; of a model in shards, the first one's, which ends in C(-00001-of-0000N.gguf).
    type: str
    required: true
  source:
    description:
      - Where it comes from. An C(http(s)://) URL, C(hf://OWNER/NAME@REVISION/PATH) on Hugging Face or a mirror of it,
        C(file:///path) on the host, or a path on the controller.
      - Of a model in shards, the first one's. The others are looked for beside it.
    type: str
    required: true
  sha256:
    description: The checksum; of a model in shards, a list with one for each, in order.
    type: list
    elements: str
    required: true
  mmproj:
    description: The multimodal projector that belongs to the model.
    type: dict
    suboptions:
      file:
        description: Its name on the host.
        type: str
        required: true
      source:
        description: Where it comes from, as O(source).
        type: str
        required: true
      sha256:
        description: Its checksum.
        type: str
        required: true
  directory:
    description: Where the files lie. It must exist.
    type: path
    default: /var/lib/ptolemy/models
  owner:
    description: Owner of new files; who runs the module, where this is left out.
    type: str
  group:
    description: Group of new files.
    type: str
  replace:
    description: Replace a file that has another hash once the new one is whole, rather than stop.
    type: bool
    default: false
  verify:
    description: Hash the files that are there again, whatever their stamps say.
    type: bool
    default: false
  hf_endpoint:
    description: Where C(hf://) sources are looked up.
    type: str
    default: https://huggingface.co
  hf_token:
    description: Sent to O(hf_endpoint)'s host alone, never after a redirect to another one.
    type: str
  url_headers:
    description: HTTP headers, sent to the hosts of C(http(s)://) sources alone, never after a redirect to another one.
    type: dict
    default: {}
  timeout:
    description: Seconds for the whole model. What has come until then is kept.
    type: int
    default: 14400
  fetch:
    description: Set to V(false) to look only, without hashing anything. RV(done) says then whether all is right.
    type: bool
    default: true
  staged:
    description: The action plugin's, for sources on the controller. Files by name that it has copied to O(directory) for this call.
    type: dict
    default: {}
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Says what would come; hashes files without a stamp, and writes nothing.
    support: full
  diff_mode:
    description: Shows each file's hash, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Bring a model from Hugging Face
  gguf_model:
    name: qwen3-8b
    file: Qwen3-8B-Q4_K_M.gguf
    source: hf://Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf
    sha256: d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785
    hf_token: "{{ models_hf_token | default(omit) }}"

- name: Bring a model of two shards
  gguf_model:
    name: large
    file: large-q8_0-00001-of-00002.gguf
    source: https://models.example.org/large-q8_0-00001-of-00002.gguf
    sha256: ["{{ large_1 }}", "{{ large_2 }}"]
"""

RETURN = r"""
done:
  description: Every file is there and right.
  returned: success
  type: bool
files:
  description: What the host has of each file.
  returned: success
  type: list
  elements: dict
  contains:
    file: {description: Its name., type: str}
    source: {description: Where it comes from., type: str}
    state: {description: 'V(absent), V(right), V(wrong), or V(unknown) where it was not hashed.', type: str}
    sha256: {description: The hash found., type: str}
    size: {description: 'Its bytes; of an absent file, those that have come so far.', type: int}
header:
  description: What the model says of itself; null where it is not there, or its header cannot be read.
  returned: success
  type: dict
  sample: {architecture: qwen3, parameters: 8190735360, quantisation: Q4_K_M, context_length: 40960, tensor_bytes: {Q4_K: 3850000000},
           chat_template: true, tokenizer: gpt2}
lines:
  description: How far each file is, for people.
  returned: success
  type: list
  elements: str
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import catalogue, gguf
from ansible.module_utils.ptolemy.errors import ConfigError, GgufError, PtolemyError
from ansible.module_utils.ptolemy.model_files import ABSENT, RIGHT, WRONG, State, Store, gigabytes, refuse

LOG_EVERY = 10.0  # seconds


def reporter(module: AnsibleModule):
    """A function that says in the host's journal how far a file is."""
    last = [time.monotonic()]

    def report(size: int, total: int | None) -> None:
        if time.monotonic() - last[0] >= LOG_EVERY:
            last[0] = time.monotonic()
            module.log(f"{module.params['name']}: {gigabytes(size)} of {gigabytes(total) if total else '?'} GB")

    return report


def header(files: tuple[catalogue.ModelFile, ...], states: list[State], params: dict, warn) -> dict | None:
    """What the model says of itself, None where its files are not all there."""
    shards = [file.file for file in files if not params["mmproj"] or file.file != params["mmproj"]["file"]]
    if any(state.state == ABSENT for state in states if state.file in shards):
        return None
    if not shards[0].endswith(".gguf"):
        return None
    try:
        read = gguf.read_model([os.path.join(params["directory"], name) for name in shards])
        if read.size < read.expected_size:
            warn(
                f"{params['name']}: is cut off as it was published: it has {read.size} bytes, and its header asks for {read.expected_size}"
            )
        return {
            "architecture": read.architecture,
            "parameters": read.parameters,
            "quantisation": read.quantisation,
            "context_length": read.context_length,
            "tensor_bytes": dict(read.tensor_bytes),
            "chat_template": read.has_chat_template,
            "tokenizer": read.tokenizer,
        }
    except GgufError as error:
        # Its sha256 is what the catalogue wants, and llama.cpp may know newer files than this reader does.
        warn(f"{params['name']}: its header cannot be read: {error}")
        return None


def shown(states: list[State]) -> str:
    return "".join(f"{state.file} {state.sha256 or state.state}\n" for state in states)


def main() -> None:
    """Entry point."""
    part = {"file": {"type": "str", "required": True}, "source": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            **part,
            "sha256": {"type": "list", "elements": "str", "required": True},
            "mmproj": {"type": "dict", "options": {**part, "sha256": {"type": "str", "required": True}}},
            "directory": {"type": "path", "default": "/var/lib/ptolemy/models"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "replace": {"type": "bool", "default": False},
            "verify": {"type": "bool", "default": False},
            "hf_endpoint": {"type": "str", "default": catalogue.HF_ENDPOINT},
            "hf_token": {"type": "str", "no_log": True},
            "url_headers": {"type": "dict", "default": {}, "no_log": True},
            "timeout": {"type": "int", "default": 14400},
            "fetch": {"type": "bool", "default": True},
            "staged": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    store = Store(
        directory=params["directory"],
        owner=params["owner"] or "",
        group=params["group"] or "",
        hf_endpoint=params["hf_endpoint"],
        hf_token=params["hf_token"] or "",
        url_headers=params["url_headers"],
        deadline=time.monotonic() + params["timeout"],
        report=reporter(module),
    )
    changed = False
    try:
        files = catalogue.files({key: params[key] for key in ("file", "source", "sha256", "mmproj") if params[key] is not None})
        writing = params["fetch"] and not module.check_mode
        before = store.look(files, hashing=params["fetch"], stamping=writing, again=params["verify"] and params["fetch"])
        refuse(params["directory"], files, before, params["replace"])
        after = before
        if writing:
            changed = any(state.stamped for state in before)
            for file, state in zip(files, before):
                if state.state != RIGHT:
                    module.log(f"{params['name']}: {file.file} comes from {catalogue.shown(file.source)}")
                    changed = store.bring(file, params["replace"], params["staged"].get(file.file)) or changed
            after = store.look(files)
        elif params["fetch"]:
            changed = any(state.state in (ABSENT, WRONG) for state in before)
    except ConfigError as error:
        module.fail_json(msg=f"ptolemy_models.{params['name']}.{error}")
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    wanted = [State(file.file, RIGHT, file.sha256) for file in files]
    module.exit_json(
        changed=changed,
        done=all(state.state == RIGHT for state in after),
        files=[
            {"file": state.file, "source": catalogue.shown(file.source), "state": state.state, "sha256": state.sha256, "size": state.size}
            for file, state in zip(files, after)
        ],
        header=header(files, after, params, module.warn),
        lines=[str(state) for state in after],
        diff={"before": shown(before), "after": shown(wanted if changed else before)},
    )


if __name__ == "__main__":
    main()

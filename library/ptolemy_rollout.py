#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: one step of a rollout."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_rollout
short_description: One step of a rollout of a service's new revision
description:
  - Changes the services file on the gateway, which C(ptolemyd) takes up within a second. Does not wait; M(ptolemy_wait) does.
  - C(playbooks/rollout.yml) and C(playbooks/rollback.yml) put the steps together. Each step is one change of one file, so that a
    rollout that is interrupted can be gone on with, or undone, at any time.
options:
  name:
    description: The service.
    type: str
    required: true
  state:
    description:
      - V(canary) asks for one replica of what O(wanted) says the service should be, which no client reaches. One of that revision
        that is there already is kept. Nothing is asked for where the service is of that revision already.
      - V(shared) gives the canary O(share) of the service's requests.
      - V(promoted) makes the service what the canary is. C(ptolemyd) then replaces the other replicas one by one. What the service was
        is kept for V(previous).
      - V(undone) ends the rollout of O(revision), however far it has come.
      - V(previous) makes the service what it was before its last rollout; where one is going on, it ends that instead.
    type: str
    required: true
    choices: [canary, shared, promoted, undone, previous]
  wanted:
    description: For O(state=canary), the whole services file as C(site.yml) would write it.
    type: dict
  share:
    description: For O(state=shared), above 0 and below 1.
    type: float
  revision:
    description: For O(state=undone), which.
    type: str
  services_file:
    description: The services file that the role C(ptolemyd) writes.
    type: path
    default: /etc/ptolemy/services.json
  previous_file:
    description: Where what the services were is kept.
    type: path
    default: /etc/ptolemy/previous.json
seealso:
  - module: ptolemy_wait
  - module: ptolemy_golden
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Checks and reports, and changes nothing.
    support: full
  diff_mode:
    description: Shows the services file before and after.
    support: full
"""

EXAMPLES = r"""
- name: Try the new revision beside the old one
  ptolemy_rollout:
    name: chat
    state: canary
    wanted: "{{ ptolemyd_wanted }}"

- name: Let it answer a tenth of the requests
  ptolemy_rollout:
    name: chat
    state: shared
    share: 0.1
"""

RETURN = r"""
revision:
  description: The revision of the service, afterwards.
  returned: success
  type: str
  sample: 0123456789ab
canary:
  description: The revision of its canary, afterwards; empty where there is none.
  returned: success
  type: str
  sample: ba9876543210
models:
  description: The names of the models that the service runs before and afterwards, and of its canary's, if there is one.
  returned: success
  type: dict
  sample: {before: qwen3-8b-q8, after: qwen3-8b-q8, canary: qwen3-8b-q4}
files:
  description: The paths of the model files that the service needs afterwards, on the compute nodes.
  returned: success
  type: list
  elements: str
"""

import json
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import rollout
from ansible.module_utils.ptolemy.config import Config, Service, parse
from ansible.module_utils.ptolemy.errors import ConfigError
from ansible.module_utils.ptolemy.files import replace_file
from ansible.module_utils.ptolemy.model_cache import parse as checksums
from ansible.module_utils.ptolemy.resize import dump


def read(path: str) -> dict:
    """Read a file of JSON; an empty one where there is none. Raises ConfigError: it is not JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            found: dict = json.load(file)
            return found
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


def step(raw: dict, path: str, params: dict, previous: dict) -> dict:
    """Return the services file after the step. Raises ConfigError as ``rollout``."""
    name = params["name"]
    known = parse(raw, path)
    if name not in known.services:
        raise ConfigError(f"{name}: no such service in {path}; there are: {', '.join(known.services) or 'none'}")
    if params["state"] == "canary":
        return rollout.begin(raw, path, name, params["wanted"], time.time())
    if params["state"] == "shared":
        return rollout.share(raw, path, name, params["share"], time.time())
    if params["state"] == "promoted":
        return rollout.promote(raw, path, name)
    if params["state"] == "undone":
        return rollout.undo(raw, path, name, params["revision"], previous.get(name))
    if name in known.canaries:
        return rollout.undo(raw, path, name, known.canaries[name].service.revision, None)
    changed = rollout.revert(raw, path, name, previous[name]) if name in previous else raw
    if changed == raw:
        raise ConfigError(f"{name}: no rollout of it is known that could be rolled back; change the inventory, and run rollout.yml")
    return changed


def kept(name: str, state: str, before: Config, after: Config, raw: dict, previous: dict) -> dict:
    """Return what the services were, with what this one was if the step changed it. Nobody wants to return to what was undone."""
    if state == "undone" or before.services[name].revision == after.services[name].revision:
        return previous
    return {**previous, name: raw["services"][name]}


def files(service: Service) -> list[str]:
    """Return the paths of a service's model files."""
    return [os.path.join(os.path.dirname(service.model_path), name) for name in checksums(service.model_files)]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "required": True, "choices": ["canary", "shared", "promoted", "undone", "previous"]},
            "wanted": {"type": "dict"},
            "share": {"type": "float"},
            "revision": {"type": "str"},
            "services_file": {"type": "path", "default": "/etc/ptolemy/services.json"},
            "previous_file": {"type": "path", "default": "/etc/ptolemy/previous.json"},
        },
        required_if=[("state", "canary", ("wanted",)), ("state", "shared", ("share",)), ("state", "undone", ("revision",))],
        supports_check_mode=True,
    )
    path, name = os.path.realpath(module.params["services_file"]), module.params["name"]
    try:
        raw, previous = read(path), read(module.params["previous_file"])
        changed = step(raw, path, module.params, previous)
        before, after = parse(raw, path), parse(changed, path)
        different = raw != changed
        if different and not module.check_mode:
            # First what is needed to go back.
            remembered = kept(name, module.params["state"], before, after, raw, previous)
            if remembered != previous:
                replace_file(module, module.params["previous_file"], dump(remembered))
            replace_file(module, path, dump(changed))
    except ConfigError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    except OSError as error:
        module.fail_json(msg=f"{path}: {error.strerror}; become root on the gateway. Nothing was changed.")
    canary = after.canaries.get(name)
    models = {"before": before.services[name].model, "after": after.services[name].model}
    if canary:
        models["canary"] = canary.service.model
    module.exit_json(
        changed=different,
        revision=after.services[name].revision,
        canary=canary.service.revision if canary else "",
        models=models,
        files=files(after.services[name]),
        diff={"before": dump(raw), "after": dump(changed)},
    )


if __name__ == "__main__":
    main()

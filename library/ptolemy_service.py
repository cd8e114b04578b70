#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: how many replicas services have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_service
short_description: Set how many replicas Ptolemy's services have
description:
  - Changes sizes in the services file on the gateway, which C(ptolemyd) takes up within a second. It then submits the
    difference, or drains replicas and ends them when they are idle. This module does not wait for that; M(ptolemy_wait) does.
  - Name one service with O(name), or give the sizes of all with O(services).
  - Only sizes are changed, and only of services that the gateway knows. A new one needs HAProxy's configuration too, so it is
    written to the inventory, and C(site.yml) brings it up.
  - The file is checked before it replaces the old one in one step. Where anything is wrong, nothing is changed.
  - C(site.yml) and C(scale.yml) write the inventory's sizes again.
options:
  name:
    description: The service, as clients name it in the C(model) field. What is not given of its size stays as it is.
    type: str
  state:
    description:
      - V(present) gives the service the size that the other options say; one of them is required.
      - V(stopped) ends all its replicas, without cutting an answer, and starts none, as O(replicas=0) does. Its name stays
        known, and its requests are refused. Give it a size to start it again.
    type: str
    choices: [present, stopped]
    default: present
  replicas:
    description:
      - A fixed size, the same as O(min) and O(max) of that number.
      - All of them are ordinary replicas, unless O(opportunistic) is given too.
    type: int
  min:
    description: The least replicas; 0 lets the service sleep while nobody asks.
    type: int
  max:
    description: The most replicas.
    type: int
  guaranteed:
    description: The most ordinary replicas; another way to say O(max), which is then this number and O(opportunistic).
    type: int
  opportunistic:
    description: How many of O(max) are extra replicas, on GPUs that nobody else wants at the time.
    type: int
  target_load:
    description: The share of its slots that a replica is meant to have busy, above 0, at most 1.
    type: float
  scale_in_delay:
    description: Seconds for which fewer replicas must have been enough before one is given up.
    type: int
  services:
    description:
      - The site's services as in the inventory's C(ptolemy_services). Each gets exactly the size that stands there, and defaults
        where none does. Keys that are no size are left out of account.
    type: dict
  overrides:
    description: Other sizes than those in O(services) by service name, each a number of replicas or a dictionary of the keys above.
    type: dict
    default: {}
  services_file:
    description: The services file that the role C(ptolemyd) writes.
    type: path
    default: /etc/ptolemy/services.json
seealso:
  - module: ptolemy_wait
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Checks and reports, and changes nothing.
    support: full
  diff_mode:
    description: Shows the sizes before and after.
    support: full
"""

EXAMPLES = r"""
- name: Four replicas, whatever the load is
  ptolemy_service:
    name: chat
    replicas: 4

- name: Two to eight, by load
  ptolemy_service:
    name: classify
    min: 2
    max: 8

- name: Give its GPUs back, and keep its name
  ptolemy_service:
    name: chat
    state: stopped

- name: What the inventory says, but four of chat
  ptolemy_service:
    services: "{{ ptolemy_services }}"
    overrides:
      chat: 4
"""

RETURN = r"""
before:
  description: The size of each service in question before, defaults included.
  returned: success
  type: dict
  sample: {chat: {min: 1, max: 4, opportunistic: 0, target_load: 0.8, scale_in_delay: 300}}
after:
  description: The size afterwards; in check mode what it would be.
  returned: success
  type: dict
  sample: {chat: {min: 4, max: 4, opportunistic: 0, target_load: 0.8, scale_in_delay: 300}}
changes:
  description: The names of the services whose size changed, or would.
  returned: success
  type: list
  elements: str
  sample: [chat]
written:
  description: The size of each service in question as the services file has it, without defaults. The same in the inventory keeps it.
  returned: success
  type: dict
  sample: {chat: {min: 4, max: 4}}
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy.config import load
from ansible.module_utils.ptolemy.errors import ConfigError
from ansible.module_utils.ptolemy.files import replace_file
from ansible.module_utils.ptolemy.resize import SIZE_KEYS, STOPPED, declared, dump, resize, sizes

SIZE = ("replicas", *SIZE_KEYS)


def wanted(params: dict) -> dict:
    """Return what is asked, by service name."""
    size = {key: params[key] for key in SIZE if params[key] is not None}
    name = params["name"]
    if name is None:
        if size or params["state"] == "stopped":
            raise ConfigError(f"{next(iter(size), 'state')}: of which service? Give its name, or the sizes in overrides")
        return declared(params["services"], params["overrides"])
    if params["overrides"]:
        raise ConfigError("overrides: goes with services; with name, give the size itself")
    if params["state"] == "stopped":
        if size:
            raise ConfigError(f"{next(iter(size))}: a stopped service has no size; leave it out, or leave state out")
        return {name: STOPPED}
    if not size:
        raise ConfigError(f"{name}: which size? Give replicas, or min and max")
    return {name: size}


def lines(shown: dict) -> str:
    """Sizes as text for the diff, one service a line."""
    return "".join(f"{name}: {', '.join(f'{key} {value:g}' for key, value in size.items())}\n" for name, size in sorted(shown.items()))


def main() -> None:
    """Entry point."""
    numbers = {key: {"type": "float" if key == "target_load" else "int"} for key in SIZE}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "stopped"], "default": "present"},
            **numbers,
            "services": {"type": "dict"},
            "overrides": {"type": "dict", "default": {}},
            "services_file": {"type": "path", "default": "/etc/ptolemy/services.json"},
        },
        mutually_exclusive=[("name", "services")],
        required_one_of=[("name", "services")],
        supports_check_mode=True,
    )
    path = os.path.realpath(module.params["services_file"])
    try:
        load(path)  # says what is wrong with the file as it is
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
        asked = wanted(module.params)
        changed = resize(raw, path, asked)
        before, after = ({name: all_sizes[name] for name in asked} for all_sizes in (sizes(raw, path), sizes(changed, path)))
        different = before != after
        if different and not module.check_mode:
            replace_file(module, path, dump(changed))
    except ConfigError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    except OSError as error:
        module.fail_json(msg=f"{path}: {error.strerror}; become root on the gateway. Nothing was changed.")
    module.exit_json(
        changed=different,
        before=before,
        after=after,
        changes=sorted(name for name in asked if before[name] != after[name]),
        written={name: {key: value for key, value in changed["services"][name].items() if key in SIZE_KEYS} for name in asked},
        diff={"before": lines(before), "after": lines(after)},
    )


if __name__ == "__main__":
    main()

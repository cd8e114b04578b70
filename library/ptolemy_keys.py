#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: the keys of clients that an inventory declares."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_keys
short_description: The keys of clients, as an inventory declares them
description:
  - Writes the gateway's file of keys, which holds hashes only, and makes them valid in the running HAProxy at once, without a reload.
  - Keys that C(ptolemy keys) made on the gateway stay. Declared ones that are no longer in the list end.
options:
  keys:
    description: The keys.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The key's name, unique.
        type: str
        required: true
      key:
        description: The secret, 16 printable characters or more.
        type: str
        required: true
      user:
        description: Whose it is; its name where this is left out. Limits are a user's, over all of their keys.
        type: str
      tier:
        description: The class of its requests.
        type: str
        choices: [interactive, batch]
        default: interactive
      services:
        description: The only services that it may use; empty for all.
        type: list
        elements: str
        default: []
      concurrent:
        description: Requests that its user may have at once; 0 for no limit.
        type: int
        default: 0
      per_minute:
        description: Requests that its user may send in a minute; 0 for no limit.
        type: int
        default: 0
      expires:
        description: The day, as V(2027-01-31), or Unix time of its end; empty for never.
        type: str
        default: ""
      speaks_for_users:
        description: It may name the user that a request is for, in a header. For Open WebUI.
        type: bool
        default: false
  services:
    description: The services that there are, to check the keys against.
    type: list
    elements: str
    default: []
  path:
    description: The file of keys. It must exist.
    type: path
    default: /etc/ptolemy/keys.map
  haproxy_socket:
    description: HAProxy's admin socket. Empty to write the file only; HAProxy reads it when it starts or reloads.
    type: path
    default: /run/haproxy/admin.sock
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Reports what would change, and changes nothing.
    support: full
  diff_mode:
    description: Shows names, users and limits; neither keys nor hashes.
    support: full
"""

EXAMPLES = r"""
- name: Give the researchers and Open WebUI their keys
  ptolemy_keys:
    keys:
      - {name: webui, key: "{{ vault_webui_key }}", speaks_for_users: true}
      - {name: study-7, key: "{{ vault_study_key }}", user: meier, tier: batch, services: [classify], concurrent: 256, expires: 2027-01-31}
"""

RETURN = r"""
keys:
  description: Names of all keys of the gateway, those that C(ptolemy keys) made included.
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import keys
from ansible.module_utils.ptolemy.errors import ConfigError, PtolemyError
from ansible.module_utils.ptolemy.haproxy import HAProxy


def wanted(params: dict) -> list[keys.Key]:
    """The keys of the module's parameters. Raises ConfigError where one is wrong."""
    found = []
    for given in params["keys"]:
        secret = given["key"]
        if len(secret) < keys.SHORTEST or not all("!" <= letter <= "~" for letter in secret):
            raise ConfigError(f"keys.{given['name']}.key: needs {keys.SHORTEST} printable characters or more, without spaces")
        key = keys.Key(
            given["name"],
            keys.fingerprint(secret),
            given["user"] or given["name"],
            given["tier"],
            tuple(given["services"]),
            given["concurrent"],
            given["per_minute"],
            keys.unix_time(given["expires"], f"keys.{given['name']}.expires"),
            given["speaks_for_users"],
            keys.SITE,
        )
        found.append(keys.check(key, params["services"]))
    return found


def shown(given: list[keys.Key]) -> str:
    """What a diff shows."""
    return "".join(f"{key.public()}\n" for key in given)


def main() -> None:
    """Entry point."""
    suboptions = {
        "name": {"type": "str", "required": True},
        "key": {"type": "str", "required": True, "no_log": True},
        "user": {"type": "str"},
        "tier": {"type": "str", "choices": ["interactive", "batch"], "default": "interactive"},
        "services": {"type": "list", "elements": "str", "default": []},
        "concurrent": {"type": "int", "default": 0},
        "per_minute": {"type": "int", "default": 0},
        "expires": {"type": "str", "default": ""},
        "speaks_for_users": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "keys": {"type": "list", "elements": "dict", "required": True, "options": suboptions, "no_log": False},
            "services": {"type": "list", "elements": "str", "default": []},
            "path": {"type": "path", "default": keys.DEFAULT_PATH},
            "haproxy_socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    path, socket = module.params["path"], module.params["haproxy_socket"]
    try:
        declared = wanted(module.params)
        # In check mode the task before may not have made the file.
        before = [] if module.check_mode and not os.path.exists(path) else keys.load(path)
        if module.check_mode:
            after = keys.declared(before, declared)
        else:
            after = list(keys.change(path, lambda present: keys.declared(present, declared)))
            if socket:
                keys.publish(path, HAProxy(socket))
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=after != before,
        keys=[key.name for key in after],
        diff={"before": shown(before), "after": shown(after)},
    )


if __name__ == "__main__":
    main()

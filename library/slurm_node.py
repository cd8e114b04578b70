#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: drain a Slurm node, or put it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_node
short_description: Drain a Slurm node, or put it back
description:
  - Runs C(scontrol) as an account that Slurm lets update nodes, as root, on a host that has Slurm's commands.
  - Draining starts nothing new on the node and touches no running job. C(ptolemyd) then moves its own replicas elsewhere;
    M(ptolemy_wait) waits for that.
  - A node that drains already is left as it is, with its reason, whoever drained it.
options:
  name:
    description: The node's name in Slurm.
    type: str
    required: true
  state:
    description: V(drain) closes the node, V(resume) opens it again.
    type: str
    choices: [drain, resume]
    default: drain
  reason:
    description: What C(sinfo --list-reasons) shows.
    type: str
    default: maintenance (Ptolemy)
  timeout:
    description: Seconds that one Slurm command may take.
    type: float
    default: 15
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Asks and reports, and changes nothing.
    support: full
  diff_mode:
    description: Shows the node's state before and after.
    support: full
"""

EXAMPLES = r"""
- name: Close a node
  slurm_node:
    name: node3
    reason: new power supply

- name: Open it again
  slurm_node:
    name: node3
    state: resume
"""

RETURN = r"""
before:
  description: The node's state before, in C(sinfo)'s words.
  returned: success
  type: str
  sample: mixed
reason:
  description: Why it drains, or drained; empty where it does not.
  returned: success
  type: str
"""

import shlex

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy.errors import ChangeError, ObservationError, PtolemyError
from ansible.module_utils.ptolemy.process import run


def observe(name: str, timeout: float) -> tuple[str, str]:
    """Return a node's state and reason, in sinfo's words. Raises PtolemyError where Slurm gives no answer, or has no such node."""
    text = run(("sinfo", "--noheader", "--Node", "--all", "--format=%N|%T|%E"), timeout, error=ObservationError)
    nodes = {columns[0]: columns[1:] for columns in (line.strip().split("|", 2) for line in text.splitlines()) if len(columns) == 3}
    if name not in nodes:
        raise PtolemyError(f"name: Slurm has no node {name!r}; there are: {', '.join(sorted(nodes)) or 'none'}")
    state, reason = nodes[name]
    return state, "" if reason == "none" else reason


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drain", "resume"], "default": "drain"},
            "reason": {"type": "str", "default": "maintenance (Ptolemy)"},
            "timeout": {"type": "float", "default": 15.0},
        },
        supports_check_mode=True,
    )
    name, timeout = module.params["name"], module.params["timeout"]
    draining = module.params["state"] == "drain"
    update = ["scontrol", "update", f"NodeName={name}", f"State={module.params['state'].upper()}"]
    update += [f"Reason={module.params['reason']}"] if draining else []
    try:
        state, reason = observe(name, timeout)
        changed = state.startswith("drain") != draining
        if changed and not module.check_mode:
            run(update, timeout, error=ChangeError)
    except ChangeError as error:
        module.fail_json(
            msg=f"{error}. Nothing was changed. Ask Slurm's administrator to run: {shlex.join(update)}"
            " and then run this again: a node that is so already is fine."
        )
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    after = (module.params["reason"] if draining else "") if changed else reason
    sides = {"before": (state, reason), "after": (("drained" if draining else "resumed") if changed else state, after)}
    diff = {side: f"{name}: {words[0]}{f' ({words[1]})' if words[1] else ''}\n" for side, words in sides.items()}
    module.exit_json(changed=changed, before=state, reason=after if draining else reason, diff=diff)


if __name__ == "__main__":
    main()

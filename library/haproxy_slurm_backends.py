#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: bring HAProxy's servers in step with the live Slurm jobs, once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_slurm_backends
short_description: Bring HAProxy's servers in step with the replicas that live in Slurm, once
description:
  - Does one turn of what C(ptolemyd) does all the time, for HAProxy only. No job is submitted or ended.
  - Endpoints of ready replicas are added; those of others are drained, and removed once they are idle. No stream is cut.
  - Run it where C(ptolemyd) is stopped on purpose, or with check mode to see what it would do.
  - Fails, and changes nothing, when Slurm or HAProxy gives no answer.
options:
  services_file:
    description: The services file that the role C(ptolemyd) writes.
    type: path
    default: /etc/ptolemy/services.json
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Plans and reports, and changes nothing.
    support: full
  diff_mode:
    description: Shows the servers of all backends before and after.
    support: full
"""

EXAMPLES = r"""
- name: Show what is out of step
  haproxy_slurm_backends:
  check_mode: true
  diff: true

- name: Bring HAProxy in step
  haproxy_slurm_backends:
"""

RETURN = r"""
changes:
  description: What was changed, in order; in check mode what would be.
  returned: always
  type: list
  elements: str
  sample: ["add svc_qwen3-8b/j42r0p20000", "drain svc_qwen3-8b/j17r0p20016"]
"""

import time
from typing import Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy.backends import ADD, DRAIN, READY, REMOVE, Change
from ansible.module_utils.ptolemy.config import load
from ansible.module_utils.ptolemy.controller import Applied, apply_backends, decide
from ansible.module_utils.ptolemy.errors import PtolemyError
from ansible.module_utils.ptolemy.gateway import Gateway
from ansible.module_utils.ptolemy.haproxy import HAProxy
from ansible.module_utils.ptolemy.memory import Memory
from ansible.module_utils.ptolemy.slurm import Slurm


def difference(gateway: Gateway, changes: Sequence[Change]) -> dict[str, str]:
    """Ansible's before and after: a line for each server."""
    before = {f"{server.backend}/{server.name}": server.admin for server in gateway.servers}
    after = dict(before)
    for change in changes:
        key = f"{change.backend}/{change.name}"
        if change.verb == REMOVE:
            after.pop(key, None)
        elif change.verb in (ADD, READY, DRAIN):
            after[key] = "drain" if change.verb == DRAIN else "ready"
    return {
        side: "".join(f"{name} {admin}\n" for name, admin in sorted(servers.items()))
        for side, servers in (("before", before), ("after", after))
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"services_file": {"type": "path", "default": "/etc/ptolemy/services.json"}},
        supports_check_mode=True,
    )
    try:
        config = load(module.params["services_file"])
        site = config.site
        haproxy = HAProxy(site.haproxy_socket, site.awake_map)
        slurm, memory = Slurm(site.uid, site.command_timeout), Memory()
        gateway = haproxy.observe()
        jobs, nodes = slurm.jobs(memory.expected(gateway)), slurm.nodes()
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    memory.learn(config, jobs, gateway, time.time())
    changes = decide(config, jobs, nodes, gateway, memory, time.time()).backends
    applied = Applied(done=[str(change) for change in changes] if module.check_mode else [])
    if not module.check_mode:
        apply_backends(changes, haproxy, applied)
    result = {"changed": bool(applied.done), "changes": applied.done, "diff": difference(gateway, changes)}
    if applied.failed:
        module.fail_json(msg="; ".join(applied.failed), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

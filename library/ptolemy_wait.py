#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: one look at how far a change has come. The action plugin of the same name repeats it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_wait
short_description: Wait until services have their replicas, or until a node is empty, and show the progress
description:
  - Runs on the gateway. Shows a line whenever something has changed, while it waits.
  - What C(ptolemyd) says counts only once it has taken the present services file up, and while its view of Slurm and HAProxy is
    fresh.
  - Fails at the timeout, with the last lines and the next step. Changes nothing.
options:
  until:
    description:
      - V(ready) waits until the ordinary replicas that each service should have now serve. Extra (opportunistic) ones are not
        waited for, since they may wait for idle GPUs for ever.
      - V(settled) moreover waits until the replicas that are too many, or of an old revision, are gone.
      - V(empty) waits until no replica is left on O(node), which Slurm must show as draining or drained.
      - V(started) waits until the canary of a rollout is ready, and fails as soon as it has failed. O(services) names the one service.
      - V(watched) waits until that canary has had its share of requests for O(watch) seconds, and fails as soon as it does worse than
        O(max_error_rate) and O(max_slowdown) allow.
      - V(tuned) waits until O(job), which tunes a service, has ended. The job ends by itself where nobody waits for it any more.
    type: str
    choices: [ready, settled, empty, started, watched, tuned]
    default: ready
  services:
    description: The services in question; all of them where this is empty.
    type: list
    elements: str
    default: []
  node:
    description: The node's name in Slurm, for O(until=empty).
    type: str
  job:
    description: For O(until=tuned), the job's id in Slurm.
    type: int
  all_jobs:
    description: For O(until=empty), wait until the jobs of other people are gone, too.
    type: bool
    default: false
  timeout:
    description: Seconds to wait at most.
    type: float
    default: 1200
  watch:
    description: For O(until=watched), for how many seconds.
    type: float
    default: 60
  max_error_rate:
    description: For O(until=watched), the greatest share of the canary's requests that may end in an error.
    type: float
    default: 0.01
  max_slowdown:
    description: For O(until=watched), how many times as long as the other replicas the canary may take to the first byte of an answer.
    type: float
    default: 2
  interval:
    description: Seconds between two looks.
    type: float
    default: 2
  services_file:
    description: The services file that the role C(ptolemyd) writes.
    type: path
    default: /etc/ptolemy/services.json
seealso:
  - module: ptolemy_service
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Does not wait, and does not look.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Wait until all services answer
  ptolemy_wait:

- name: Wait until one service has exactly its new size
  ptolemy_wait:
    until: settled
    services: [chat]
    timeout: 600

- name: Wait until a node may be switched off
  ptolemy_wait:
    until: empty
    node: node3
"""

RETURN = r"""
done:
  description: What was waited for is so. False in check mode only.
  returned: success
  type: bool
lines:
  description: The last state of affairs.
  returned: success, but for check mode
  type: list
  elements: str
  sample: ["chat: 3 of 4 replicas ready, 1 starting on node2"]
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import tuning
from ansible.module_utils.ptolemy.canary import Trial
from ansible.module_utils.ptolemy.config import Config, load
from ansible.module_utils.ptolemy.errors import ConfigError, ObservationError, PtolemyError
from ansible.module_utils.ptolemy.progress import Look, guests, node, services
from ansible.module_utils.ptolemy.slurm import Slurm
from ansible.module_utils.ptolemy.status import read


def look(params: dict) -> Look:
    """Take one look.

    Raises:
        ConfigError: waiting would not help.
    """
    config = load(params["services_file"])
    if params["until"] == "tuned":
        return tuning.look(params["job"], config.site.command_timeout)
    unknown = [name for name in params["services"] if name not in config.services]
    if unknown:
        raise ConfigError(f"services: no such service: {', '.join(unknown)}; there are: {', '.join(config.services) or 'none'}")
    try:
        status = read(config.site.status_file)
    except PtolemyError:
        status = {}  # it may be about to start
    if params["until"] in ("started", "watched"):
        return look_at_canary(config, status, params)
    if params["until"] != "empty":
        return services(config, status, time.time(), params["services"], params["until"] == "settled")
    try:
        return look_at_node(params["node"], config, status, params["all_jobs"])
    except ObservationError as error:
        return Look(False, [f"Slurm gives no answer: {error}"], "sinfo and squeue on the gateway")


def look_at_node(name: str, config: Config, status: dict, all_jobs: bool) -> Look:
    """Take one look at a node. Raises as ``look``, and ObservationError where Slurm gives no answer."""
    nodes = Slurm(config.site.uid, config.site.command_timeout).nodes()
    if name not in nodes:
        raise ConfigError(f"node: Slurm has no node {name!r}; there are: {', '.join(sorted(nodes))}")
    return node(name, nodes[name].closed, guests(name, config.site.command_timeout), config, status, time.time(), all_jobs)


def look_at_canary(config: Config, status: dict, params: dict) -> Look:
    """Take one look at the canary of a rollout. Raises PtolemyError where waiting would not help."""
    if len(params["services"]) != 1:
        raise ConfigError("services: name the one service that is rolled out")
    trial = Trial(config, status, params["services"][0])
    if params["until"] == "started":
        return trial.started(status, time.time())
    return trial.watched(status, time.time(), params["watch"], params["max_error_rate"], params["max_slowdown"])


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "until": {"type": "str", "choices": ["ready", "settled", "empty", "started", "watched", "tuned"], "default": "ready"},
            "services": {"type": "list", "elements": "str", "default": []},
            "node": {"type": "str"},
            "job": {"type": "int"},
            "all_jobs": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 1200.0},
            "watch": {"type": "float", "default": 60.0},
            "max_error_rate": {"type": "float", "default": 0.01},
            "max_slowdown": {"type": "float", "default": 2.0},
            "interval": {"type": "float", "default": 2.0},
            "services_file": {"type": "path", "default": "/etc/ptolemy/services.json"},
        },
        required_if=[("until", "empty", ("node",)), ("until", "tuned", ("job",))],
        supports_check_mode=True,
    )
    try:
        seen = look(module.params)
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, done=seen.done, lines=list(seen.lines), next_step=seen.next_step)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: the Slurm jobs of Ptolemy's service account."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_jobs_info
short_description: List the Slurm jobs of Ptolemy's service account and the records they publish
description:
  - Asks Slurm for the jobs of one user, recently ended ones too, and decodes the record that each replica publishes as
    its Slurm comment.
  - Jobs of other users are never read.
  - Fails when Slurm gives no answer. An unknown state is never reported as an empty list.
options:
  user:
    description: The service account's name.
    type: str
    default: ptolemy
  timeout:
    description: Seconds that one Slurm command may take.
    type: float
    default: 15
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Runs the same, for it changes nothing.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Look at the replicas
  slurm_jobs_info:
  register: replicas

- name: Stop unless each running replica is ready
  ansible.builtin.assert:
    that: replicas.jobs | selectattr('state', 'eq', 'RUNNING') | rejectattr('ready') | length == 0
"""

RETURN = r"""
jobs:
  description: The jobs, in the order of their ids.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Slurm's job id.
      type: int
      sample: 42
    state:
      description: Slurm's word for its state.
      type: str
      sample: RUNNING
    ended:
      description: It ended or is ending.
      type: bool
    ready:
      description: It runs, and its record is of this run and says ready.
      type: bool
    host:
      description: The node that runs it; empty where it has none.
      type: str
      sample: node3
    address:
      description: The node's IP address, of ready jobs.
      type: str
      sample: 10.0.0.3
    name:
      description: The job's name.
      type: str
      sample: ptolemy-qwen3-8b
    restart:
      description: How often it was requeued.
      type: int
      sample: 0
    submit:
      description: Unix time of its submission.
      type: float
    start:
      description: Unix time of its start, 0 where Slurm names none.
      type: float
    end:
      description: Unix time of its end or time limit, 0 where Slurm names none.
      type: float
    preempted:
      description: Slurm has begun to take its GPUs away.
      type: bool
    reason:
      description: Slurm's word for why it waits or ended.
      type: str
      sample: Resources
    record:
      description: What the replica published; null where the comment holds no record.
      type: dict
      sample:
        service: qwen3-8b
        revision: 0123456789ab
        restart: 0
        state: ready
        ports: [20000]
        slots: 32
        reason: ""
        opportunistic: false
        took: 40
        avoids: []
"""

import pwd
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy.errors import PtolemyError
from ansible.module_utils.ptolemy.slurm import Job, Slurm


def describe(job: Job) -> dict[str, object]:
    """A job as plain data."""
    fields = asdict(job)
    del fields["user_id"]
    if job.record is not None:
        fields["record"] |= {"ports": list(job.record.ports), "avoids": list(job.record.avoids)}
    return {**fields, "ended": job.ended, "ready": job.ready}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"user": {"type": "str", "default": "ptolemy"}, "timeout": {"type": "float", "default": 15.0}},
        supports_check_mode=True,
    )
    user = module.params["user"]
    try:
        jobs = Slurm(pwd.getpwnam(user).pw_uid, module.params["timeout"]).jobs()
    except KeyError:
        module.fail_json(msg=f"user: there is no account {user!r} on this host; name the service account, or run site.yml")
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, jobs=[describe(job) for job in jobs])


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: the steps of playbooks/tune.yml on the gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_tune
short_description: Find the best setting of a service's llama-servers with a job
description:
  - Runs on the gateway, as root. Submits, as the service account, a job that measures settings of a service on one GPU of its partition,
    where and as its replicas run. The live service is not touched.
  - The module C(ptolemy_wait) with C(until=tuned) shows how far it is. The job ends by itself a minute after nobody waits for it any more.
options:
  name:
    description: The service.
    type: str
    required: true
  state:
    description:
      - V(submitted) submits the job.
      - V(located) tells on which node it ran and where its log is.
      - V(written) makes the variables file of the O(log); it writes nothing by itself.
      - V(cancelled) ends the job.
    type: str
    required: true
    choices: [submitted, located, written, cancelled]
  wanted:
    description: For V(submitted), the services file as C(site.yml) would write it of O(services), without what was tuned.
    type: dict
  services:
    description: For V(submitted) and V(written), the value of C(ptolemy_services).
    type: dict
  tuned:
    description: For V(submitted), the value of C(ptolemy_tuned); for V(written), what the file has of it.
    type: dict
    default: {}
  wishes:
    description:
      - For V(submitted), what the operator wants, without the C(tune_) before each name. See C(playbooks/tune.yml).
      - Without C(prompt_tokens) and C(answer_tokens) the means of the service's last 14 days hold.
    type: dict
    default: {}
  gpu_memory:
    description: For V(submitted), a GPU's memory by partition, in Slurm's notation. For one that is not named, the node tells.
    type: dict
    default: {}
  job:
    description: For V(located) and V(cancelled), the job's id in Slurm.
    type: int
  log:
    description: For V(written), what the job's log holds.
    type: str
  usage_directory:
    description: Where C(ptolemy usage) has its files.
    type: path
    default: /var/lib/ptolemy/usage
seealso:
  - module: ptolemy_wait
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Submits and cancels nothing; C(job) is 0.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Submit the job
  ptolemy_tune:
    name: chat
    state: submitted
    wanted: "{{ ptolemyd_wanted }}"
    services: "{{ ptolemy_services }}"
    wishes: {minutes: 20, prompt_tokens: 400, answer_tokens: 128}
"""

RETURN = r"""
job:
  description: The job's id; 0 in check mode.
  returned: state=submitted
  type: int
  sample: 4711
asked:
  description: What the job was asked.
  returned: state=submitted
  type: dict
  sample: {"minutes": 10, "prompt_tokens": 400, "answer_tokens": 128, "streamed": true}
node:
  description: The node on which the job ran.
  returned: state=located
  type: str
  sample: node3
path:
  description: The job's log there.
  returned: state=located
  type: str
  sample: /var/log/ptolemy/tune-chat-4711.log
content:
  description: The variables file.
  returned: state=written
  type: str
  sample: "ptolemy_tuned: {}"
chosen:
  description: The setting that is best, and why.
  returned: state=written
  type: str
  sample: "4 x 32, --cache-ram 0: 2.46 times the requests of the present setting, both measured again at the end"
changes:
  description: What the new entry changes of the service as it stands in O(services).
  returned: state=written
  type: list
  elements: str
  sample: ["slots: 16 -> 32"]
"""

import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import config, fit, job, tuned, tuning, usage_command
from ansible.module_utils.ptolemy.errors import ConfigError, PtolemyError
from ansible.module_utils.ptolemy.process import run
from ansible.module_utils.ptolemy.replicas import nodes_outside
from ansible.module_utils.ptolemy.slurm import Slurm

TIMEOUT = 30.0  # seconds that one command of Slurm may take


def present_of(name: str, params: dict) -> dict:
    """Return the setting that the service has: what was tuned before, unless services.yml has changed since."""
    service = params["services"].get(name)
    if not isinstance(service, dict):
        raise ConfigError(f"{name}: no such service in ptolemy_services; there are: {', '.join(params['services']) or 'none'}")
    before = {key: entry for key, entry in params["tuned"].items() if key == name}
    current = service if list(tuned.problems(before, params["services"])) else tuned.applied(params["services"], before)[name]
    return tuned.measured_with(current)


def submit(name: str, params: dict, check_mode: bool) -> dict:
    """Submit the job. Raises PtolemyError."""
    present = present_of(name, params)
    wanted = config.parse(params["wanted"], "the inventory")
    service, site = wanted.services[name], wanted.site
    rows = usage_command.recent(params["usage_directory"], tuning.DAYS, datetime.date.today())
    memory = params["gpu_memory"].get(service.partition)
    wish = tuning.wish(service, present, params["wishes"], rows, fit.bytes_of(str(memory)) if memory else 0)
    try:
        with open(site.job_template, encoding="utf-8") as file:
            template = file.read()
    except OSError as error:
        raise ConfigError(f"{site.job_template}: {error.strerror}; run playbooks/gateway.yml") from error
    slurm = Slurm(site.uid, TIMEOUT)
    script = job.tuning_script(template, site, service, wish, nodes_outside(service, slurm.nodes()))
    if check_mode:
        return {"changed": False, "job": 0, "asked": wish}
    text = run(["runuser", "-u", site.user, "--", "sbatch", "--parsable"], TIMEOUT, stdin=script)
    return {"changed": True, "job": int(text.strip().partition(";")[0]), "asked": wish}


def write(name: str, params: dict) -> dict:
    """Make the file. Raises ConfigError."""
    result = tuned.result_in(params["log"] or "")
    entry = tuned.entry_of(result, params["services"][name])
    return {
        "changed": False,
        "content": tuned.dump({**params["tuned"], name: entry}),
        "chosen": f"{tuned.named(result, 'chosen')}: {result['reason']}",
        "changes": tuned.changes(entry),
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "required": True, "choices": ["submitted", "located", "written", "cancelled"]},
            "wanted": {"type": "dict"},
            "services": {"type": "dict"},
            "tuned": {"type": "dict", "default": {}},
            "wishes": {"type": "dict", "default": {}},
            "gpu_memory": {"type": "dict", "default": {}},
            "job": {"type": "int"},
            "log": {"type": "str"},
            "usage_directory": {"type": "path", "default": usage_command.DIRECTORY},
        },
        required_if=[
            ("state", "submitted", ("wanted", "services")),
            ("state", "located", ("job",)),
            ("state", "written", ("services", "log")),
            ("state", "cancelled", ("job",)),
        ],
        supports_check_mode=True,
    )
    params, name = module.params, module.params["name"]
    try:
        if params["state"] == "submitted":
            module.exit_json(**submit(name, params, module.check_mode))
        if params["state"] == "written":
            module.exit_json(**write(name, params))
        if params["state"] == "located":
            node, path = tuning.place(params["job"], TIMEOUT)
            module.exit_json(changed=False, node=node, path=path)
        if not module.check_mode:
            run(["scancel", str(params["job"])], TIMEOUT)
        module.exit_json(changed=not module.check_mode)
    except (PtolemyError, ValueError) as error:
        module.fail_json(msg=f"{error}")


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: ask a rollout's canary questions with known answers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_golden
short_description: Ask a rollout's canary questions with known answers
description:
  - Runs on the gateway, and sends the questions to the canary's endpoints directly, each of which must do well enough.
  - Without questions, one short chat must be answered; an embedding service must return a vector, a ComfyUI a picture.
  - Changes nothing.
options:
  name:
    description: The service, a canary of which is ready.
    type: str
    required: true
  cases:
    description:
      - The questions. Each is a dictionary with C(ask) (a text) or C(messages) (a chat), and one of C(expect) (the whole answer, but for
        case and white space around it), C(matches) (a regular expression that it contains) and C(json) (keys and values that it, a JSON
        object, has); C(max_tokens) if need be. The temperature is 0.
    type: list
    elements: dict
    default: []
  min_score:
    description: The least share of right answers.
    type: float
    default: 1
  max_latency:
    description: Seconds within which 95 of 100 answers must come, with as many under way as the endpoint has slots. 0 for no limit.
    type: float
    default: 0
  timeout:
    description: Seconds for one answer.
    type: float
    default: 120
  backend_key:
    description: The site's key for its servers, C(ptolemy_backend_key).
    type: str
    required: true
  services_file:
    description: The services file that the role C(ptolemyd) writes.
    type: path
    default: /etc/ptolemy/services.json
seealso:
  - module: ptolemy_rollout
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Checks the questions, and asks none.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Two questions
  ptolemy_golden:
    name: chat
    backend_key: "{{ ptolemy_backend_key }}"
    min_score: 0.5
    cases:
      - {ask: "What is the capital of France? One word.", expect: Paris}
      - {ask: "Is 91 prime? Answer in JSON.", json: {prime: false}}
"""

RETURN = r"""
asked:
  description: How many questions each endpoint was asked.
  returned: success
  type: int
score:
  description: The share of right answers, of the endpoint that did worst.
  returned: success
  type: float
latency:
  description: Seconds within which 95 of 100 answers came, at the endpoint that was slowest.
  returned: success
  type: float
wrong:
  description: The first few answers that were not right.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy.canary import Trial
from ansible.module_utils.ptolemy.config import COMFYUI, EMBEDDING, load
from ansible.module_utils.ptolemy.errors import PtolemyError
from ansible.module_utils.ptolemy.golden import SMOKE, cases, embed, examine, paint
from ansible.module_utils.ptolemy.keys import backend_key
from ansible.module_utils.ptolemy.status import read


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "cases": {"type": "list", "elements": "dict", "default": []},
            "min_score": {"type": "float", "default": 1.0},
            "max_latency": {"type": "float", "default": 0.0},
            "timeout": {"type": "float", "default": 120.0},
            "backend_key": {"type": "str", "required": True, "no_log": True},
            "services_file": {"type": "path", "default": "/etc/ptolemy/services.json"},
        },
        supports_check_mode=True,
    )
    params, name = module.params, module.params["name"]
    where = f"ptolemy_golden.{name}.cases"
    try:
        questions = cases(params["cases"], where) if params["cases"] else [SMOKE]
        if module.check_mode:
            module.exit_json(changed=False, asked=0, score=1.0, latency=0.0, wrong=[])
        config = load(params["services_file"])
        urls = Trial(config, read(config.site.status_file), name).endpoints()
        if not urls:
            module.fail_json(msg=f"{name}: its canary is not ready; ptolemy_wait until=started waits for that")
        service, key = config.canaries[name].service, backend_key(name, params["backend_key"])
        if service.kind in (EMBEDDING, COMFYUI):
            what = "vector" if service.kind == EMBEDDING else "picture"
            if params["cases"]:
                module.fail_json(
                    msg=f"{where}: a service of the kind {service.kind} answers no chat; leave it out, one {what} is asked for"
                )
            for url in urls:
                if service.kind == EMBEDDING:
                    embed(url, key, name, params["timeout"])
                else:
                    paint(url, key, params["timeout"])
            module.exit_json(changed=False, asked=1, score=1.0, latency=0.0, wrong=[])
        reports = [examine(url, key, name, questions, service.slots, params["timeout"]) for url in urls]
    except PtolemyError as error:
        module.fail_json(msg=str(error))
    worst = min(reports, key=lambda report: report.score)
    latency = max(report.latency for report in reports)
    told = {"asked": worst.asked, "score": worst.score, "latency": round(latency, 3), "wrong": list(worst.wrong)}
    if worst.score < params["min_score"]:
        line = f"{name}: {worst.right} of {worst.asked} answers were right, {worst.score:.3f} of them; {params['min_score']:g} is the least"
        module.fail_json(msg="\n".join([line, *worst.wrong]), **told)
    if params["max_latency"] and latency > params["max_latency"]:
        module.fail_json(msg=f"{name}: 95 of 100 answers came within {latency:.2f} s; {params['max_latency']:g} s is the most", **told)
    module.exit_json(changed=False, **told)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: check that the services' llama-servers fit into the GPUs' memory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_fit
short_description: Check that the services fit into the GPUs' memory
description:
  - Runs on a host that has the models' files, and reads their headers only.
  - Computes what each llama-server takes of its GPU, weights, KV cache and buffers, and fails where C(servers_per_gpu) of them need
    more than it has, with the numbers and the most slots and context that fit.
  - Warns of what it cannot check, as an architecture whose cache it does not know, a flag that moves memory elsewhere, or a file that
    is not there yet, and lets it pass.
options:
  services:
    description: The value of C(ptolemy_services).
    type: dict
    required: true
  models:
    description: The value of C(ptolemy_models).
    type: dict
    required: true
  models_dir:
    description: The directory of the models' files.
    type: path
    required: true
  gpu_memory:
    description:
      - A GPU's memory by partition, in Slurm's notation, as V(80G).
      - For a partition that is not named, C(nvidia-smi) on this host tells, if it is there.
    type: dict
    default: {}
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Changes nothing in either mode.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Check that the services fit into the GPUs
  ptolemy_fit:
    services: "{{ ptolemy_services }}"
    models: "{{ ptolemy_models }}"
    models_dir: /var/lib/ptolemy/models
    gpu_memory:
      gpu: 80G
"""

RETURN = r"""
needs:
  description: Bytes of one llama-server of each service that was checked, by part, and of all servers of a GPU (C(total)).
  returned: success
  type: dict
  sample: {"chat": {"weights": 5000000000, "cache": 4000000000, "buffers": 200000000, "driver": 740000000, "total": 9940000000}}
unchecked:
  description: Why each other service was not checked.
  returned: success
  type: dict
  sample: {"embed": "/var/lib/ptolemy/models/embed.gguf is not there yet"}
"""

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import config, fit, gguf
from ansible.module_utils.ptolemy.errors import ConfigError, GgufError
from ansible.module_utils.ptolemy.server_memory import UncheckedError, need

TIMEOUT = 30  # seconds that nvidia-smi may take


def detected() -> int:
    """Return the bytes of this host's smallest GPU, 0 where no NVIDIA driver tells."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
        return min(int(line) for line in told.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def memory_of(service: config.Service, known: dict, here: int) -> int:
    """Return the bytes of the smallest GPU that the service's replicas may get."""
    partitions = [service.partition]
    if service.opportunistic and service.opportunistic_partition:
        partitions.append(service.opportunistic_partition)
    told = [fit.bytes_of(str(known[name])) if name in known else here for name in partitions]
    if not all(told):
        missing = ", ".join(name for name, memory in zip(partitions, told) if not memory)
        raise UncheckedError(f"set ptolemy_gpu_memory for partition {missing}; nvidia-smi on this host does not tell it either")
    return min(told)


def service_of(name: str, given: dict, path: str, sees: bool) -> config.Service:
    """Return the service as the gateway will read it; whether its model ``sees`` is all that matters of a projector here."""
    entry = {**given, "model_path": path, "model_sha256": "", "mmproj_path": path if sees else ""}
    raw = {"site": {"user": "any", "uid": 0}, "services": {name: entry}}
    return config.parse(raw, "ptolemy_services").services[name]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "dict", "required": True},
            "models": {"type": "dict", "required": True},
            "models_dir": {"type": "path", "required": True},
            "gpu_memory": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    here = detected()
    needs: dict[str, dict[str, int]] = {}
    unchecked: dict[str, str] = {}
    problems: list[str] = []
    for name, given in sorted(params["services"].items()):
        try:
            if given.get("kind") == config.COMFYUI:
                raise UncheckedError("ComfyUI moves its models between the GPU and the host by itself")
            model = params["models"][given["model"]]
            path = os.path.join(params["models_dir"], model["file"])
            service = service_of(name, given, path, "mmproj" in model)
            memory = memory_of(service, params["gpu_memory"], here)
            paths = gguf.shard_paths(path)
            absent = [it for it in paths if not os.path.exists(it)]
            if absent:
                raise UncheckedError(f"{absent[0]} is not there yet")
            header = gguf.read_model(paths)
            wrong = fit.problem(service, header, memory)
            one = need(header, fit.run_of(service))
        except UncheckedError as reason:
            unchecked[name] = str(reason)
            module.warn(f"ptolemy_services.{name}: not checked whether it fits into a GPU: {reason}")
        except (GgufError, ConfigError, KeyError, TypeError, ValueError) as error:
            problems.append(f"ptolemy_services.{name}: {error}")
        else:
            parts = {"weights": one.weights, "cache": one.cache, "buffers": one.buffers, "driver": one.driver}
            needs[name] = {**parts, "total": one.total * service.servers_per_gpu}
            if wrong:
                problems.append(f"ptolemy_services.{name}: {wrong}")
    if problems:
        mend = "set slots, context, servers_per_gpu or flags (a smaller --cache-type-k and -v) of ptolemy_services in the inventory"
        module.fail_json(msg="\n".join([*problems, mend]), needs=needs, unchecked=unchecked)
    module.exit_json(changed=False, needs=needs, unchecked=unchecked)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: the Ptolemy authors
# SPDX-License-Identifier: Apache-2.0
"""Check a site's variables before anything changes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_site_check
short_description: Check a site's variables before anything changes
description:
  - Checks that the variables of a Ptolemy site are present, of the right type and consistent with each other and with
    Slurm's partitions, and fails with one line for each problem, which names the variable and the file to mend.
  - Reads the inventory's files to find the one that sets a variable, so it runs on the controller.
  - Changes nothing. Never prints a key.
options:
  variables:
    description: The site's variables by name; leave out the ones that are not set.
    type: dict
    required: true
  api_key:
    description: The value of C(ptolemy_api_key).
    type: raw
  backend_key:
    description: The value of C(ptolemy_backend_key).
    type: raw
  groups:
    description: The inventory's hosts by group.
    type: dict
    required: true
  defined:
    description: The names of all variables that the inventory sets, to recognise a misspelt one.
    type: list
    elements: str
    default: []
  sources:
    description: The inventory sources in use, as in C(ansible_inventory_sources).
    type: list
    elements: str
    required: true
  sinfo:
    description:
      - What C(sinfo --noheader --all --format='%P %G %D %l') printed, where Slurm is not managed by Ptolemy.
      - Leave it out where Slurm is managed; then O(slurm) tells the partitions.
    type: str
  sinfo_error:
    description: Why C(sinfo) could not be run, if so.
    type: str
  slurm:
    description: What the variables of a managed Slurm say of its partitions and nodes.
    type: dict
    suboptions:
      partitions:
        description: The value of C(slurm_partitions).
        type: raw
      nodes:
        description: The value of C(slurm_nodes).
        type: raw
      hosts:
        description: The compute hosts' names. The lists below run beside it.
        type: list
        elements: str
        default: []
      fake_gpus:
        description: The values of C(slurm_fake_gpus).
        type: list
        elements: raw
        default: []
      gpus_per_node:
        description: The values of C(slurm_gpus_per_node).
        type: list
        elements: raw
        default: []
      node:
        description: The values of C(slurm_node).
        type: list
        elements: raw
        default: []
  root:
    description: The directory relative to which files are named.
    type: path
    required: true
author:
  - The Ptolemy authors
attributes:
  check_mode:
    support: full
    description: Changes nothing in either mode.
  diff_mode:
    support: none
    description: Changes nothing.
"""

EXAMPLES = r"""
- name: Check the site's variables
  ptolemy_site_check:
    variables:
      slurm_managed: "{{ slurm_managed | default(omit) }}"
      ptolemy_services: "{{ ptolemy_services | default(omit) }}"
    api_key: "{{ ptolemy_api_key | default(omit) }}"
    backend_key: "{{ ptolemy_backend_key | default(omit) }}"
    groups: "{{ groups }}"
    sources: "{{ ansible_inventory_sources }}"
    sinfo: "{{ partitions.stdout }}"
    root: "{{ playbook_dir | dirname }}"
"""

RETURN = r"""
services:
  description: The names of the services that were checked.
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ptolemy import site
from ansible.module_utils.ptolemy.partitions import Partition, from_sinfo, from_variables

SUFFIXES = ("", ".yml", ".yaml", ".json", ".ini", ".example")
LARGEST = 1_000_000  # bytes; an inventory file is never so long


def read_inventory(sources: list[str]) -> dict[str, str]:
    """Return the text of the inventory's own files and its group_vars and host_vars, by path."""
    files: dict[str, str] = {}
    for source in sources:
        base = source if os.path.isdir(source) else os.path.dirname(source)
        paths = [source] if os.path.isfile(source) else [os.path.join(base, name) for name in _names(base)]
        for top in ("group_vars", "host_vars"):
            for folder, _, names in os.walk(os.path.join(base, top)):
                paths += [os.path.join(folder, name) for name in names]
        for path in paths:
            text = _text(path)
            if text is not None:
                files[path] = text
    return files


def _names(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _text(path: str) -> str | None:
    if os.path.splitext(path)[1] not in SUFFIXES or not os.path.isfile(path) or os.path.getsize(path) > LARGEST:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return None  # unreadable here is Ansible's to report; this text only tells where a variable stands


def name_of_file(problem: site.Problem, files: dict[str, str], sources: list[str], root: str) -> str:
    """Return the file in which a problem is to be mended, relative to ``root`` where it lies below."""
    path = sources[0] if sources else "the inventory"
    note = ""
    if problem.variable.startswith("group "):
        lists = [name for name in files if "group_vars" not in name and "host_vars" not in name]
        path = lists[0] if lists else path
    else:
        found = site.where(problem.variable, files)
        base = path if os.path.isdir(path) else os.path.dirname(path)
        path = found or os.path.join(base, "group_vars", "all", "")
        if path.endswith(".example"):
            path = path[: -len(".example")]
            note = "" if os.path.exists(path) else f" (start from {os.path.basename(path)}.example)"
    inside = os.path.relpath(path, root)
    return (path if inside.startswith("..") else inside + ("/" if path.endswith("/") else "")) + note


def partitions(params: dict, problems: list[site.Problem]) -> dict[str, Partition] | None:
    """Return Slurm's partitions, or None where they are not known; a reason for that is a problem too."""
    if params["slurm"]:
        try:
            return from_variables(params["slurm"]["partitions"], gpus_by_node(params["slurm"]))
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(site.Problem("slurm_partitions", str(error)))
            return None
    reason = params["sinfo_error"]
    if params["sinfo"] is not None and not reason:
        try:
            return from_sinfo(params["sinfo"])
        except ValueError as error:
            reason = str(error)
    if reason:
        why = f"is false, so sinfo on the gateway has to tell the partitions, but {reason}"
        problems.append(site.Problem("slurm_managed", why, "make it answer there, or set it to true"))
    return None


def gpus_by_node(slurm: dict) -> dict[str, int | None]:
    """Return the GPUs of each node as far as variables tell, by the rules of the role slurm."""
    if slurm["nodes"]:
        return {str(node["name"]): int(node.get("gpus") or 0) for node in slurm["nodes"]}
    found: dict[str, int | None] = {}
    for host, fake, counted, node in zip(slurm["hosts"], slurm["fake_gpus"], slurm["gpus_per_node"], slurm["node"]):
        gpus = (node or {}).get("gpus", fake or counted)
        found[(node or {}).get("name", host)] = None if gpus in (None, "") else int(gpus)  # None: the host will tell
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "variables": {"type": "dict", "required": True},
            "api_key": {"type": "raw", "no_log": True},
            "backend_key": {"type": "raw", "no_log": True},
            "groups": {"type": "dict", "required": True},
            "defined": {"type": "list", "elements": "str", "default": []},
            "sources": {"type": "list", "elements": "str", "required": True},
            "sinfo": {"type": "str"},
            "sinfo_error": {"type": "str"},
            "slurm": {
                "type": "dict",
                "options": {
                    "partitions": {"type": "raw"},
                    "nodes": {"type": "raw"},
                    "hosts": {"type": "list", "elements": "str", "default": []},
                    "fake_gpus": {"type": "list", "elements": "raw", "default": []},
                    "gpus_per_node": {"type": "list", "elements": "raw", "default": []},
                    "node": {"type": "list", "elements": "raw", "default": []},
                },
            },
            "root": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    keys = dict(zip(site.KEYS, (params["api_key"], params["backend_key"])))
    problems: list[site.Problem] = []
    known = partitions(params, problems)
    problems += site.check({**params["variables"], **keys}, params["groups"], known, params["defined"])
    if problems:
        files = read_inventory(params["sources"])
        lines = [it.line(name_of_file(it, files, params["sources"], params["root"])) for it in problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        module.fail_json(msg="\n".join([f"the site's variables have {count}; nothing was changed", *lines]))
    module.exit_json(changed=False, services=sorted(params["variables"]["ptolemy_services"]))


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Ansible module: install the control plane's Python package on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ptolemy_package
short_description: Install Ptolemy's control plane as a Python package
description:
  - Writes the package C(ptolemy), which travels inside this module, to a directory named after its content, and switches
    one symbolic link to it. What runs from the old directory goes on undisturbed.
  - The package that the modules use and the one that is installed are thus always the same.
options:
  link:
    description:
      - The symbolic link to switch; put it on C(PYTHONPATH).
      - The versions lie beside it, as C(<link>-<hash>). The last one before stays; older ones are removed.
    type: path
    default: /opt/ptolemy/lib
author:
  - Ptolemy contributors
attributes:
  check_mode:
    description: Reports whether it would change.
    support: full
  diff_mode:
    description: Shows the link's target before and after.
    support: full
"""

EXAMPLES = r"""
- name: Install the control plane
  ptolemy_package:
"""

RETURN = r"""
directory:
  description: Where the package lies.
  returned: always
  type: str
  sample: /opt/ptolemy/lib-0123456789ab
"""

import hashlib
import os
import pkgutil
import shutil
import tempfile

from ansible.module_utils import ptolemy
from ansible.module_utils.basic import AnsibleModule

# Ansible packs only what is imported by name: the command imports everything else.
from ansible.module_utils.ptolemy import __main__ as command


def sources() -> dict[str, bytes]:
    """The package's files by name, out of the archive that this module runs from."""
    files = {}
    for name in ["__init__", *(module.name for module in pkgutil.iter_modules(ptolemy.__path__))]:
        data = pkgutil.get_data(command.__package__, f"{name}.py")
        if data is not None:
            files[f"{name}.py"] = data
    return files


def install(files: dict[str, bytes], directory: str) -> None:
    """Write the package below a new directory: whole or not at all."""
    parent = os.path.dirname(directory)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        package = os.path.join(temporary, "new", "ptolemy")
        os.makedirs(package)
        for name, data in files.items():
            with open(os.path.join(package, name), "wb") as file:
                file.write(data)
        for root, _, names in os.walk(os.path.join(temporary, "new")):
            os.chmod(root, 0o755)  # noqa: S103  everybody may read it: it holds no secret
            for name in names:
                os.chmod(os.path.join(root, name), 0o644)
        os.rename(os.path.join(temporary, "new"), directory)


def switch(link: str, directory: str) -> None:
    """Point the link to the directory in one step."""
    temporary = f"{link}.new"
    if os.path.lexists(temporary):
        os.remove(temporary)
    os.symlink(os.path.basename(directory), temporary)
    os.replace(temporary, link)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec={"link": {"type": "path", "default": "/opt/ptolemy/lib"}}, supports_check_mode=True)
    link = module.params["link"]
    files = sources()
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + data + b"\0" for name, data in sorted(files.items())))
    directory = f"{link}-{digest.hexdigest()[:12]}"
    before = os.path.realpath(link) if os.path.islink(link) else ""
    result = {"directory": directory, "diff": {"before": f"{before}\n", "after": f"{directory}\n"}}
    if before == directory:
        module.exit_json(changed=False, **result)
    try:
        if not module.check_mode:
            if not os.path.isdir(directory):
                install(files, directory)
            switch(link, directory)
            parent, prefix = os.path.split(link)
            for name in os.listdir(parent):
                path = os.path.join(parent, name)
                if name.startswith(f"{prefix}-") and path not in (before, directory):
                    shutil.rmtree(path)
    except OSError as error:
        module.fail_json(msg=f"link: {error.filename}: {error.strerror}")
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()

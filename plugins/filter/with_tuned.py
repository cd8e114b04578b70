# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""The filter with_tuned: the services of an inventory with what playbooks/tune.yml found, wherever the services are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# On the controller the control plane is no package of Ansible's.
sys.path.append(str(Path(__file__).parents[2] / "module_utils"))

from ptolemy import tuned
from ptolemy.errors import ConfigError


def with_tuned(services: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The services with the values of the entries; stops where one was measured with something else."""
    try:
        return tuned.applied(services, plain(entries))
    except ConfigError as error:
        raise AnsibleFilterError(str(error)) from error


def plain(value: Any) -> Any:
    """A value without Ansible's tags: to the rules a tagged number is none."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


class FilterModule:
    """As Ansible finds it."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"with_tuned": with_tuned}

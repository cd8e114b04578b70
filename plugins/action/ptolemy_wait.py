# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Repeats the module ptolemy_wait and shows what changed meanwhile: Ansible itself shows a task's output only at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

DEFAULTS = {"timeout": 1200.0, "interval": 2.0}  # as the module documents them


def wait(
    look: Callable[[], dict[str, Any]],
    show: Callable[[str], None],
    timeout: float,
    interval: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Look again and again, and show each line that the look before did not have.

    Returns:
        The last look; ``failed`` and ``msg`` where the time was not enough. A look that fails by itself ends the wait, too.
    """
    deadline = clock() + timeout
    shown: list[str] = []
    while True:
        seen = look()
        if seen.get("failed"):
            return seen
        for line in seen["lines"]:
            if line not in shown:
                show(line)
        shown = seen["lines"]
        if seen["done"]:
            return seen
        if clock() >= deadline:
            return {"failed": True, "msg": "\n".join([f"not within {timeout:g} s:", *shown, f"Next: {seen['next_step']}."])}
        sleep(interval)


class ActionModule(ActionBase):
    """``ptolemy_wait``."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Wait, as Ansible calls it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "changed": False, "done": False, "msg": "check mode does not wait"}
        first = self._execute_module(task_vars=task_vars)  # checks the arguments
        if first.get("failed"):
            return {**result, **first}
        timeout, interval = (float(self._task.args.get(name, default)) for name, default in DEFAULTS.items())
        looks = iter([first])

        def look() -> dict[str, Any]:
            return next(looks, None) or self._look(task_vars)

        def show(line: str) -> None:
            self._display.display(f"{time.strftime('%H:%M:%S')} {line}")

        return {**result, **wait(look, show, timeout, interval)}

    def _look(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        try:
            seen: dict[str, Any] = self._execute_module(task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            return {"done": False, "lines": [f"the gateway gives no answer: {error}"], "next_step": "reach the gateway by ssh"}
        return seen

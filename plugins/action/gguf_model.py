# Copyright: Ptolemy contributors
# Licensed under the Apache License, Version 2.0

"""Runs the module gguf_model in the background, so that no connection has to last for hours, and shows how far it is.

A source on the controller is copied to the host first, and only when its file is missing there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

TIMEOUT = 14400  # as the module documents it
SPARE = 300  # seconds after which Ansible ends a module that did not keep to its own timeout
FIRST_PAUSE = 0.5
LAST_PAUSE = 10.0
SHOW_FROM = 4.0  # what takes less is not worth a line
MOST_LOST = 30  # looks in a row without an answer: five minutes


def follow(
    finished: Callable[[], dict[str, Any]],
    look: Callable[[], list[str]],
    show: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Wait for a background job, and show each line that the look before did not have.

    Args:
        finished: the job's result, empty while it runs. Both may raise AnsibleConnectionFailure.
        look: the lines to show.
        show: what shows one.
        sleep: for tests.

    Returns:
        The result; it is a failure where the host gave no answer for too long.
    """
    pause, lost, shown = FIRST_PAUSE, 0, []  # type: float, int, list[str]
    while True:
        sleep(pause)
        try:
            result = finished()
            if result:
                return result
            if pause >= SHOW_FROM:
                lines = look()
                for line in lines:
                    if line not in shown:
                        show(line)
                shown = lines
            lost = 0
        except AnsibleConnectionFailure as error:
            lost += 1
            show(f"the host gives no answer: {error}")
            if lost >= MOST_LOST:
                return {"failed": True, "msg": f"the host gave no answer for {lost} looks; the download goes on there: {error}"}
        pause = min(pause * 2, LAST_PAUSE)


class ActionModule(ActionBase):
    """``gguf_model``."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Bring a model's files, as Ansible calls it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = {name: value for name, value in self._task.args.items() if name != "staged"}
        if self._task.check_mode or not boolean(arguments.get("fetch", True)):
            return {**result, **self._execute_module(module_args=arguments, task_vars=task_vars)}
        seen = self._execute_module(module_args={**arguments, "fetch": False}, task_vars=task_vars)
        verify = boolean(arguments.get("verify", False))
        if seen.get("failed") or (seen["done"] and not verify):
            return {**result, **seen}
        staged: dict[str, str] = {}
        try:
            for file in self._missing(seen["files"]):
                staged[file["file"]] = self._copy(file, arguments, task_vars)
            return {**result, **self._bring({**arguments, "staged": staged}, task_vars)}
        finally:
            for path in staged.values():  # the module has renamed those that it took
                self._execute_module("ansible.legacy.file", {"path": path, "state": "absent"}, task_vars=task_vars)

    def _missing(self, files: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        # One that was not hashed yet may turn out to be wrong; it must then be copied only if it may be replaced.
        states = ("absent", "wrong", "unknown") if boolean(self._task.args.get("replace", False)) else ("absent",)
        for file in files:
            if file["state"] in states and file["source"].startswith("/"):
                yield file

    def _copy(self, file: dict[str, Any], arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> str:
        path: str = self._connection._shell.join_path(arguments.get("directory", "/var/lib/ptolemy/models"), f".staged-{file['file']}")
        task = self._task.copy()
        task.args = {"src": file["source"], "dest": path, "mode": "0600"}
        copy = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.copy",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        done = copy.run(task_vars=task_vars)
        if done.get("failed"):
            raise AnsibleActionFail(f"{file['source']} could not be copied from the controller: {done.get('msg')}")
        return path

    def _bring(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        host = (task_vars or {}).get("inventory_hostname", "")
        before = self._task.async_val
        # Else Ansible would poll by itself, without a word about the progress.
        self._task.async_val = int(arguments.get("timeout", TIMEOUT)) + SPARE
        try:
            job = self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = before
        if job.get("failed") or "ansible_job_id" not in job:
            return job
        poll = {"jid": job["ansible_job_id"], "_async_dir": self._async_dir()}

        def finished() -> dict[str, Any]:
            status = self._execute_module("ansible.legacy.async_status", {**poll, "mode": "status"}, task_vars=task_vars)
            return status if status.get("finished") or (status.get("failed") and "started" not in status) else {}

        def look() -> list[str]:
            seen = self._execute_module(module_args={**arguments, "fetch": False, "staged": {}}, task_vars=task_vars)
            return [line for line in seen.get("lines", []) if not line.endswith(": right")]

        def show(line: str) -> None:
            self._display.display(f"{time.strftime('%H:%M:%S')} [{host}] {line}")

        done = follow(finished, look, show)
        self._execute_module("ansible.legacy.async_status", {**poll, "mode": "cleanup"}, task_vars=task_vars)
        for name in ("ansible_job_id", "results_file", "started", "finished", "stdout", "stderr", "stdout_lines", "stderr_lines"):
            done.pop(name, None)
        return done

    def _async_dir(self) -> str:
        folder: str = self._remote_expand_user(self.get_shell_option("async_dir", default="~/.ansible_async"))
        return folder

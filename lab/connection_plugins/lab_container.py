"""Reaches the lab's containers through their namespaces.

The podman connection of containers.podman starts podman five times for a task and cannot pipeline: 2.3 s for a ping, 4 s for a copy
on 2 cores. This one is a process in the container's namespaces, fed through its standard input, as ssh does for a real host.
"""

from __future__ import annotations

DOCUMENTATION = """
name: lab_container
short_description: Run tasks in a local podman container through nsenter
description:
  - For Ptolemy's lab and tests only. The controller must be root on the machine that runs the containers.
author: Ptolemy
options:
  remote_addr:
    description: The container's name.
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
"""

import shlex  # noqa: E402
import subprocess  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound  # noqa: E402
from ansible.plugins.connection import ConnectionBase  # noqa: E402

# What `podman exec` would set.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "container": "podman",
}


class Connection(ConnectionBase):
    """One task's way into one container."""

    transport = "lab_container"
    has_pipelining = True

    def _connect(self) -> Connection:
        if self._connected:
            return self
        name = self.get_option("remote_addr")
        asked = subprocess.run(
            ["podman", "container", "inspect", "--format", "{{.State.Pid}}", name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        pid = asked.stdout.strip()
        if asked.returncode != 0 or pid == "0":
            raise AnsibleConnectionFailure(f"container {name} is not running; `make lab` starts the lab: {asked.stderr.strip()}")
        enter = ["nsenter", "--no-fork", "--target", pid]
        # Two steps, and a shell of the host between them. Left to fork for the process namespace by itself, nsenter stops when its
        # child is stopped, as a container's shutdown does to all processes, and never reaps it: the container could not end.
        self._prefix = [*enter, "--pid", "/bin/sh", "-c", '"$@"; exit $?', "sh"]
        self._prefix += [*enter, "--mount", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd"]
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = subprocess.run(
            [*self._prefix, "/bin/sh", "-c", cmd],
            input=in_data if in_data is not None else b"",
            capture_output=True,
            env=ENVIRONMENT,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        if not Path(in_path).is_file():
            raise AnsibleFileNotFound(f"{in_path} is not a file")
        with open(in_path, "rb") as source:
            self._copy(["/bin/sh", "-c", f"cat > {shlex.quote(out_path)}"], stdin=source)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        with open(out_path, "wb") as target:
            self._copy(["cat", "--", in_path], stdout=target)

    def _copy(self, argv: list[str], **streams: object) -> None:
        done = subprocess.run([*self._prefix, *argv], stderr=subprocess.PIPE, env=ENVIRONMENT, check=False, **streams)
        if done.returncode != 0:
            raise AnsibleError(f"copy to or from {self.get_option('remote_addr')}: {done.stderr.decode(errors='replace').strip()}")

    def close(self) -> None:
        self._connected = False

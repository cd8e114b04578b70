#!/usr/bin/env python3
"""Ptolemy's lab: a small cluster in systemd containers, provisioned by the same site.yml as production."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import containers
import images
import settings as settings_module
import sources
from settings import CHECKOUT, Settings
from steps import LabError, Steps, capture, elapsed, logged, say

INVENTORY = CHECKOUT / "inventory" / "lab"
API_KEY_FILE = "api_key"


def prepare(settings: Settings, steps: Steps) -> dict[str, str]:
    """Everything that is made once and cached. Returns the images' names by Debian release."""
    with cache_lock(settings):
        found = {}
        for suite in containers.suites(settings):
            steps.begin(f"host image, Debian {suite}")
            found[suite] = images.ensure_image(dataclasses.replace(settings, suite=suite))
        steps.begin("llama.cpp source")
        sources.ensure_sdist(settings)
        steps.begin("ComfyUI" if settings.comfyui else "the stand-in for ComfyUI")
        sources.ensure_comfyui(settings)
        if settings.openwebui:
            steps.begin("Open WebUI's wheels")
            sources.ensure_wheelhouse(settings)
        if settings.client:
            steps.begin("the client's wheels")
            sources.ensure_client(settings)
    return found


def count_of_steps(settings: Settings, others: int) -> int:
    """What `prepare` does, and others."""
    return others + len(containers.suites(settings)) + 2 + settings.openwebui + settings.client


@contextlib.contextmanager
def cache_lock(settings: Settings) -> Iterator[None]:
    """Labs side by side share the cache: one fills it, the others wait."""
    settings.cache.mkdir(parents=True, exist_ok=True)
    with (settings.cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another lab is filling the cache: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cmd_containers_up(settings: Settings, arguments: argparse.Namespace) -> None:
    """Hosts only, with what they need in the cache: what molecule's create asks for."""
    containers.check_host()
    steps = Steps(count_of_steps(settings, 1))
    found = prepare(settings, steps)
    steps.begin(f"containers {settings.prefix}-*")
    containers.containers_up(settings, found, arguments.port)


def cmd_containers_down(settings: Settings, _arguments: argparse.Namespace) -> None:
    containers.check_host()
    found = containers.containers_down(settings)
    if settings.state.exists():
        shutil.rmtree(settings.state)
        found = True
    if not found:
        say(f"nothing of {settings.prefix} is there")


def cmd_spare_node(settings: Settings, _arguments: argparse.Namespace) -> None:
    """A machine with nothing on it, beside the lab's: what a new node is before it is in the inventory."""
    containers.check_host()
    if not containers.labelled(settings):
        raise LabError(f"no lab with prefix {settings.prefix} is there: make lab")
    settings = dataclasses.replace(settings, openwebui=containers.has_openwebui(settings), spare=True)
    steps = Steps(count_of_steps(settings, 1))
    found = prepare(settings, steps)
    steps.begin(f"container {containers.container(settings, containers.SPARE_HOST)}")
    containers.containers_up(settings, found, containers.published_port(settings))


def cmd_up(settings: Settings, arguments: argparse.Namespace) -> None:
    containers.check_host()
    port = containers.published_port(settings)
    if port is not None and arguments.port not in (None, port):
        raise LabError(f"the lab publishes port {port}; to move it to {arguments.port}: make lab-down first")
    port = port or arguments.port or containers.DEFAULT_PORT
    # A lab that has Open WebUI keeps it.
    settings = dataclasses.replace(settings, openwebui=settings.openwebui or containers.has_openwebui(settings))
    steps = Steps(count_of_steps(settings, 3))
    found = prepare(settings, steps)
    steps.begin("containers")
    known = containers.containers_up(settings, found, port)
    steps.begin("site.yml with inventory/lab")
    playbook(settings, "site.yml", arguments.ansible_arguments)
    steps.begin("a chat through the gateway")
    environment = write_env(settings, port)
    smoke(environment)
    print(summary(settings, known, environment), flush=True)


def playbook(settings: Settings, name: str, extra: Sequence[str] = ()) -> None:
    """Run a playbook; its output is shown as it comes, each task with the time since the start."""
    argv = [str(Path(sys.executable).parent / "ansible-playbook"), "--inventory", str(INVENTORY), name, *extra]
    environment = {**os.environ, **settings.environment, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"}
    if sys.stdout.isatty() and "NO_COLOR" not in environment:
        environment["ANSIBLE_FORCE_COLOR"] = "1"
    with subprocess.Popen(
        argv, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            text = line.rstrip()
            print(f"{text.rstrip(' *')} (+{elapsed()})" if text.startswith(("TASK [", "PLAY [", "RUNNING HANDLER [")) else text, flush=True)
        code = running.wait()
    if code != 0:
        raise LabError(f"{name} failed (exit {code}) after {elapsed()}; what the hosts say: lab/diagnose.sh {settings.prefix}")


def write_env(settings: Settings, port: int) -> dict[str, str]:
    """`.lab/env`: after sourcing it, any OpenAI client speaks to the lab."""
    key_file = settings.state / API_KEY_FILE
    if not key_file.exists():
        raise LabError(f"{key_file} is missing: site.yml should have made the API key there")
    environment = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": key_file.read_text(encoding="utf-8").strip(),
    }
    text = "".join(f"export {name}={value}\n" for name, value in environment.items())
    target = settings.state / "env"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.touch(mode=0o600)
        target.write_text(text, encoding="utf-8")
    give_to_caller(settings.state)
    return environment


def give_to_caller(directory: Path) -> None:
    """Under sudo, the person at the keyboard must be able to read the key."""
    if "SUDO_UID" in os.environ:
        owner = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
        for path in (directory, *directory.rglob("*")):
            os.chown(path, *owner)


def smoke(environment: dict[str, str]) -> None:
    argv = [sys.executable, str(CHECKOUT / "lab" / "smoke.py")]
    code = subprocess.run(argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        raise LabError("the gateway did not answer a chat; `make lab-status` shows the replicas")


def summary(settings: Settings, known: dict[str, str], environment: dict[str, str]) -> str:
    head = containers.container(settings, "head")
    hosts = ", ".join(f"{host} {address}" for host, address in known.items())
    people = (
        f"\n  people   http://127.0.0.1:{containers.OPENWEBUI_PORT}   {settings_module.ADMIN_EMAIL}, "
        f"password in {os.path.relpath(settings.state / 'openwebui_admin_password')}"
        if settings.openwebui
        else ""
    )
    return f"""
The lab is up after {elapsed()}.
  gateway  {environment["OPENAI_BASE_URL"]}
  key      {environment["OPENAI_API_KEY"]}
  hosts    {hosts}{people}
Try next:
  . {os.path.relpath(settings.state / "env")}     then any OpenAI client works, for instance
  curl -H "Authorization: Bearer $OPENAI_API_KEY" $OPENAI_BASE_URL/models
  make lab-status            services, replicas, servers
  podman exec -it {head} bash    a shell on the head; `squeue`, `ptolemy status`, `journalctl -fu ptolemyd`
  make lab-down              removes all of it"""


def cmd_status(settings: Settings, _arguments: argparse.Namespace) -> None:
    containers.check_host()
    if not containers.labelled(settings):
        raise LabError(f"no lab with prefix {settings.prefix} is there: make lab")
    ours = f"label={settings_module.LABEL}={settings.prefix}"
    questions = (
        ["podman", "ps", "--all", "--filter", ours, "--format", "table {{.Names}}  {{.Status}}  {{.Ports}}"],
        containers.podman("exec", containers.container(settings, "head"), "squeue"),
        containers.podman("exec", containers.container(settings, "head"), "ptolemy", "status"),
    )
    failed = [argv for argv in questions if subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode]
    if failed:
        raise LabError(f"`{' '.join(failed[0])}` failed")


def cmd_clean_cache(settings: Settings, _arguments: argparse.Namespace) -> None:
    """Forget images and downloads, so that the next run starts from nothing."""
    containers.check_host()
    in_use = capture(["podman", "ps", "--all", "--filter", f"label={settings_module.LABEL}", "--format", "{{.Names}}"]).split()
    if in_use:
        raise LabError(f"containers of the lab are there ({' '.join(in_use)}): make lab-down first")
    names = capture(["podman", "images", "--format", "{{.Repository}}:{{.Tag}}"]).split()
    mine = [name for name in names if name.startswith((f"{images.REPOSITORY}:", f"{images.REPOSITORY}-base:"))]
    if mine:
        logged(["podman", "rmi", *mine], Path("/dev/null"), timeout=300)
    shutil.rmtree(settings.cache, ignore_errors=True)
    say(f"removed {settings.cache} and {len(mine)} images")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--prefix", help=f"name of the lab (LAB_PREFIX, default {settings_module.DEFAULT_PREFIX})")
    common.add_argument("--suite", choices=settings_module.SUITES, help="Debian release of the hosts (LAB_SUITE, default trixie)")
    port = argparse.ArgumentParser(add_help=False)
    given = os.environ.get("LAB_PORT")
    port.add_argument("--port", type=int, default=int(given) if given else None, help="port of 127.0.0.1 for the gateway (LAB_PORT)")
    actions = top.add_subparsers(required=True, metavar="ACTION")
    up = actions.add_parser("up", parents=[common, port], help="make the lab, provision it, ask it a question")
    up.add_argument("ansible_arguments", nargs="*", help="after --, passed on to ansible-playbook")
    up.set_defaults(run=cmd_up)
    actions.add_parser("down", parents=[common], help="remove it").set_defaults(run=cmd_containers_down)
    actions.add_parser("status", parents=[common], help="containers, jobs, replicas").set_defaults(run=cmd_status)
    actions.add_parser("spare-node", parents=[common], help="one more bare machine, n3").set_defaults(run=cmd_spare_node)
    actions.add_parser("clean-cache", parents=[common], help="remove cached images and downloads").set_defaults(run=cmd_clean_cache)
    hosts = actions.add_parser("containers", help="the bare hosts only").add_subparsers(required=True, metavar="up|down")
    # Tests reach the hosts by their addresses, so nothing is published unless a port is asked for.
    bare = argparse.ArgumentParser(add_help=False)
    bare.add_argument("--port", type=int, help="port of 127.0.0.1 for the gateway (default: none)")
    hosts.add_parser("up", parents=[common, bare], help="make or start them").set_defaults(run=cmd_containers_up)
    hosts.add_parser("down", parents=[common], help="remove them").set_defaults(run=cmd_containers_down)
    return top


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.run(settings_module.load(arguments.prefix, arguments.suite), arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

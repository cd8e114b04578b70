"""The lab's hosts: systemd containers with static addresses on a network of their own, run by podman."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings import CHECKOUT, LABEL, OWNER_LABEL, Settings
from steps import LabError, capture, say, succeeds

# Static addresses: slurmctld caches those of its nodes, and a restarted container would come back with another.
HOSTS = {"head": 10, "n1": 11, "n2": 12, "web": 13, "n3": 14}
GATEWAY_HOST = "head"
GATEWAY_PORT = 8080
DEFAULT_PORT = 8080
# With Open WebUI there is one more host, and the gateway answers people's browsers at one more port.
OPENWEBUI_HOST = "web"
OPENWEBUI_PORT = 8443
# Not in inventory/lab: docs/first-lab.md adds it to an inventory of the reader's.
SPARE_HOST = "n3"


@functools.cache
def _info() -> dict[str, Any]:
    host: dict[str, Any] = json.loads(capture(["podman", "info", "--format", "json"]))["host"]
    return host


@functools.cache
def _global_options() -> tuple[str, ...]:
    """On cgroups in hybrid mode crun fails and runc works: take runc on such a host, podman's own choice elsewhere."""
    host = _info()
    if host.get("cgroupVersion") == "v1" and host.get("ociRuntime", {}).get("name") == "crun":
        if not shutil.which("runc"):
            raise LabError("this host has cgroups v1, where podman needs runc: apt-get install runc")
        return ("--runtime", "runc")
    return ()


def podman(*arguments: str) -> list[str]:
    """A podman command line that works on this host."""
    return ["podman", *_global_options(), *arguments]


def ulimits() -> list[str]:
    """Podman's default limits exceed the hard ones of some hosts, and raising those needs a right that may be missing.

    Podman lowers the hard limit of processes for itself (to less than 40,000 where it was 96,000), hence the modest 10,000.
    """
    options = []
    for name, which, enough in (("nofile", resource.RLIMIT_NOFILE, 65536), ("nproc", resource.RLIMIT_NPROC, 10000)):
        hard = resource.getrlimit(which)[1]
        limit = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        options += ["--ulimit", f"{name}={limit}:{limit}"]
    return options


def check_host() -> None:
    """Stop early, and in one line, on a host that cannot run the lab."""
    if os.geteuid() != 0:
        raise LabError("the lab's containers need root: call this through make, or with sudo")
    major = int(capture(["podman", "version", "--format", "{{.Client.Version}}"]).split(".")[0])
    if major < 4:
        raise LabError(f"podman {major} is too old: 4 or newer is needed")


def _network_subnets(name: str) -> list[str]:
    found: list[dict[str, Any]] = json.loads(capture(["podman", "network", "inspect", name]))
    return [subnet["subnet"] for subnet in found[0].get("subnets") or []]


def _taken() -> list[ipaddress.IPv4Network]:
    """What the host's routes and podman's other networks use already."""
    taken = []
    for name in capture(["podman", "network", "ls", "--format", "{{.Name}}"]).split():
        taken += [ipaddress.ip_network(s) for s in _network_subnets(name)]
    for route in json.loads(capture(["ip", "-4", "-j", "route", "show", "table", "all"]) or "[]"):
        destination = route.get("dst", "default")
        if destination != "default" and route.get("type") != "broadcast":
            taken.append(ipaddress.ip_network(destination, strict=False))
    return [network for network in taken if isinstance(network, ipaddress.IPv4Network)]


def ensure_network(settings: Settings) -> ipaddress.IPv4Network:
    """The lab's network; its subnet follows from the prefix, and moves on where the host uses that one already."""
    name = settings.prefix
    if not succeeds(["podman", "network", "exists", name]):
        taken = _taken()
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        for attempt in range(64):
            number = (start + attempt) % 8192  # 10.96.0.0/24 to 10.127.255.0/24
            subnet = ipaddress.IPv4Network(f"10.{96 + number // 256}.{number % 256}.0/24")
            if any(subnet.overlaps(other) for other in taken):
                continue
            # Another lab may take the subnet between the look and the command: then the next one is tried.
            if succeeds(["podman", "network", "create", "--label", f"{LABEL}={name}", "--subnet", str(subnet), name]):
                break
        else:
            raise LabError(f"podman network create {name}: none of 64 subnets of 10.96.0.0/11 could be used")
    return ipaddress.IPv4Network(_network_subnets(name)[0])


def addresses(subnet: ipaddress.IPv4Network) -> dict[str, str]:
    return {host: str(subnet[number]) for host, number in HOSTS.items()}


def hosts(settings: Settings) -> list[str]:
    """The hosts that this lab has."""
    left_out = {OPENWEBUI_HOST: not settings.openwebui, SPARE_HOST: not settings.spare}
    return [host for host in HOSTS if not left_out.get(host)]


def has_openwebui(settings: Settings) -> bool:
    """Whether an earlier run has made its host."""
    return inspect(container(settings, OPENWEBUI_HOST)) is not None


def suite_of(settings: Settings, host: str) -> str:
    """A host's Debian. Open WebUI needs Python 3.11 or 3.12, which Debian 13 does not have."""
    return "bookworm" if host == OPENWEBUI_HOST else settings.suite


def suites(settings: Settings) -> list[str]:
    return sorted({suite_of(settings, host) for host in hosts(settings)})


def container(settings: Settings, host: str) -> str:
    return f"{settings.prefix}-{host}"


def inspect(name: str) -> dict[str, Any] | None:
    """What podman knows of a container, None if there is none."""
    if not succeeds(["podman", "container", "exists", name]):
        return None
    found: list[dict[str, Any]] = json.loads(capture(["podman", "container", "inspect", name]))
    return found[0]


def published_port(settings: Settings) -> int | None:
    """The port of 127.0.0.1 where the gateway answers."""
    found = inspect(container(settings, GATEWAY_HOST))
    bindings = ((found or {}).get("HostConfig", {}).get("PortBindings") or {}).get(f"{GATEWAY_PORT}/tcp") or []
    return int(bindings[0]["HostPort"]) if bindings else None


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LabError(f"port 127.0.0.1:{port} is taken ({error.strerror}): choose another, LAB_PORT=18080 make lab") from error


def _run_arguments(settings: Settings, host: str, image: str, known: dict[str, str], port: int | None) -> list[str]:
    # One directory of packages a container, because apt locks it. The compilers' cache is where roles/llama_cpp has it.
    suite = suite_of(settings, host)
    debs = settings.cache / "apt" / suite / container(settings, host)
    ccache = settings.cache / "ccache" / suite
    wheels = settings.cache / "openwebui"
    comfyui = settings.cache / "comfyui"
    client = settings.cache / "client"
    for directory in (debs / "partial", ccache, wheels, comfyui, client):
        directory.mkdir(parents=True, exist_ok=True)
    options = ["--name", container(settings, host), "--hostname", host, "--label", f"{LABEL}={settings.prefix}"]
    options += ["--label", f"{OWNER_LABEL}={CHECKOUT}"]
    options += ["--network", settings.prefix, "--ip", known[host], "--network-alias", host]
    for other, address in known.items():
        options += ["--add-host", f"{other}:{address}"]
    options += ["--volume", f"{debs}:/var/cache/apt/archives", "--volume", f"{ccache}:/var/cache/ptolemy/llama.cpp/ccache"]
    options += ["--volume", f"{comfyui}:/var/cache/ptolemy/comfyui:ro"]
    if host == OPENWEBUI_HOST:
        options += ["--volume", f"{wheels}:/var/cache/ptolemy/openwebui:ro"]
    if host == GATEWAY_HOST:
        options += ["--volume", f"{client}:/var/cache/ptolemy/client:ro"]
    if port is not None and host == GATEWAY_HOST:
        options += ["--publish", f"127.0.0.1:{port}:{GATEWAY_PORT}"]
        if settings.openwebui:
            options += ["--publish", f"127.0.0.1:{OPENWEBUI_PORT}:{OPENWEBUI_PORT}"]
    # Privileged: systemd wants its cgroups, slurmd makes device cgroups, tmpfiles.d makes the fake GPUs.
    return podman("run", "--detach", *options, *ulimits(), "--systemd=always", "--privileged", image)


def containers_up(settings: Settings, images: Mapping[str, str], port: int | None) -> dict[str, str]:
    """Make the hosts that are missing, start those that stand still, leave the rest alone. Returns their addresses."""
    _check_owner(settings)
    existing = {host: inspect(container(settings, host)) for host in hosts(settings)}
    gateway = existing[GATEWAY_HOST]
    if port is not None and not (gateway and gateway["State"]["Running"]):
        for wanted in (port, OPENWEBUI_PORT) if settings.openwebui else (port,):
            _check_port(wanted)
    known = addresses(ensure_network(settings))
    for host, found in existing.items():
        name, image = container(settings, host), images[suite_of(settings, host)]
        if found is None:
            capture(_run_arguments(settings, host, image, known, port), timeout=180)
            say(f"{name}  {known[host]}  made")
        elif not found["State"]["Running"]:
            capture(podman("start", name), timeout=180)
            say(f"{name}  {known[host]}  started again")
        else:
            say(f"{name}  {known[host]}  running")
        if found is not None and found["ImageName"] != image:
            say(f"{name} was made from {found['ImageName']}, the recipe is now {image}: `make lab-down` renews it")
    _pin_bridge_address(settings)
    for host in existing:
        _wait_for_systemd(container(settings, host))
    return {host: known[host] for host in existing}


def _pin_bridge_address(settings: Settings) -> None:
    """Let the bridge keep its hardware address when a host ends.

    By itself a bridge has the lowest address of its ports: if the host with that one is killed, the others send to the old address until
    their ARP entries expire, and answers to this machine are lost for so long.
    """
    (network,) = json.loads(capture(["podman", "network", "inspect", settings.prefix]))
    bridge = network["network_interface"]
    address = Path(f"/sys/class/net/{bridge}/address").read_text(encoding="ascii").strip()
    capture(["ip", "link", "set", "dev", bridge, "address", address])


def _wait_for_systemd(name: str, timeout: float = 60) -> None:
    """Until systemd has started everything; `degraded` will do, since a container never has all of a host's units."""
    deadline = time.monotonic() + timeout
    ask = podman("exec", name, "sh", "-c", "systemctl is-system-running | grep -qxE 'running|degraded'")
    while not succeeds(ask, timeout=20):
        if time.monotonic() > deadline:
            raise LabError(f"{name}: systemd did not come up within {timeout:.0f} s; see `podman logs {name}`")
        time.sleep(0.5)


def labelled(settings: Settings) -> list[str]:
    """Names of this lab's containers, whatever state they are in."""
    ours = f"label={LABEL}={settings.prefix}"
    return capture(["podman", "ps", "--all", "--filter", ours, "--format", "{{.Names}}"]).split()


def _check_owner(settings: Settings) -> None:
    """Two checkouts with the same prefix would provision, and remove, each other's hosts."""
    if settings.take_over:
        return
    for name in labelled(settings):
        found = inspect(name)
        owner = found["Config"]["Labels"].get(OWNER_LABEL) if found else None
        if owner and owner != str(CHECKOUT) and Path(owner).exists():
            raise LabError(f"{name} belongs to the checkout {owner}: end that one first, or set LAB_PREFIX for a lab beside it")


def containers_down(settings: Settings) -> bool:
    """Remove the lab's containers and network; True if there was anything to remove."""
    _check_owner(settings)
    names = sorted(labelled(settings))
    for name in names:
        _remove(name)
    if names:
        say(f"removed {' '.join(names)}")
    network = succeeds(["podman", "network", "exists", settings.prefix])
    if network:
        capture(["podman", "network", "rm", "--force", settings.prefix])
        say(f"removed network {settings.prefix}")
    return bool(names) or network


def _remove(name: str, attempts: int = 4) -> None:
    """Remove a container without waiting for its services; on a busy machine podman may need to be asked again."""
    for _ in range(attempts):
        if succeeds(podman("rm", "--force", "--time", "0", name), timeout=90) and inspect(name) is None:
            return
        time.sleep(3)
    raise LabError(f"`podman rm --force {name}` failed {attempts} times; see `podman ps --all`")

"""The services file: what the gateway is asked to run. Ansible renders it; the daemon and the modules read it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, Mapping

from .errors import ConfigError
from .record import NAME

DEFAULT_PATH = "/etc/ptolemy/services.json"


@dataclass(frozen=True)
class Site:
    """What all services of a cluster share.

    Attributes:
        user: the service account's name; every replica job is its.
        uid: the service account's numeric user id on every host.
        haproxy_socket: path of HAProxy's admin socket on the gateway.
        status_file: where the daemon writes what it sees, for people and monitoring; never read back by it.
        job_template: path of the job script's template on the gateway.
        job_log: the jobs' ``--output`` pattern.
        lib: directory on the compute nodes that holds the package ``ptolemy``.
        llama_server: path of llama-server on the compute nodes.
        llama_cpp: identity of the llama.cpp build (source, flags), part of each revision.
        backend_key_file: path on the compute nodes of the key that llama-server asks for.
        port_first, port_last: the TCP ports that endpoints may use.
        interval: seconds between two ticks.
        command_timeout: seconds that one Slurm command may take.
        max_removal_share: the share of healthy servers that one observation alone may remove, 0 to 1.
        sever_after: seconds that a server must have been down before the requests that it still holds are cut.
        max_submissions: how many jobs one tick may submit.
    """

    user: str
    uid: int
    haproxy_socket: str = "/run/haproxy/admin.sock"
    status_file: str = "/run/ptolemy/status.json"
    job_template: str = "/etc/ptolemy/replica.sh"
    job_log: str = "/var/log/ptolemy/%x-%j.log"
    lib: str = "/opt/ptolemy/lib"
    llama_server: str = "/opt/ptolemy/llama.cpp/current/bin/llama-server"
    llama_cpp: str = ""
    backend_key_file: str = "/etc/ptolemy/backend.key"
    port_first: int = 20000
    port_last: int = 29999
    interval: float = 1.0
    command_timeout: float = 15.0
    max_removal_share: float = 0.5
    sever_after: float = 30.0
    max_submissions: int = 8


@dataclass(frozen=True)
class Service:
    """One service: a model, how a replica runs it, and how many replicas there shall be.

    Attributes:
        name: what a client names in the ``model`` field.
        model: the model's name in the catalogue.
        model_path: the GGUF file on the compute nodes.
        model_sha256: its checksum.
        replicas: how many Slurm jobs shall serve it.
        partition: the Slurm partition.
        gpus: GPUs of one replica.
        servers_per_gpu: llama-servers on each of them.
        slots: sequences that each llama-server decodes in parallel.
        context: tokens of context of each slot.
        time_limit: Slurm's ``--time``.
        cpus_per_gpu: CPU cores for each GPU.
        memory_per_gpu: host memory for each GPU, in Slurm's notation.
        flags: further arguments of llama-server.
        sbatch_options: further options of sbatch.
        start_timeout: seconds until the endpoints must be healthy.
        stop_grace: seconds that running requests get after a TERM; below Slurm's KillWait.
        drain_before_end: seconds before its time limit that a replica starts to drain.
    """

    name: str
    model: str
    model_path: str
    model_sha256: str
    replicas: int
    partition: str
    gpus: int = 1
    servers_per_gpu: int = 1
    slots: int = 8
    context: int = 8192
    time_limit: str = "1-00:00:00"
    cpus_per_gpu: int = 4
    memory_per_gpu: str = "16G"
    flags: tuple[str, ...] = ()
    sbatch_options: tuple[str, ...] = ()
    start_timeout: int = 900
    stop_grace: int = 20
    drain_before_end: int = 300
    llama_cpp: str = ""

    @property
    def revision(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of everything that decides how a replica runs.

        Left out on purpose is what may change without touching a running replica: how many there are, and Slurm's
        options for the next one.
        """
        decides = (
            self.model_sha256,
            self.llama_cpp,
            self.gpus,
            self.servers_per_gpu,
            self.slots,
            self.context,
            list(self.flags),
        )
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Config:
    """The whole services file."""

    site: Site
    services: Mapping[str, Service]


def load(path: str = DEFAULT_PATH) -> Config:
    """Read and check a services file.

    Raises:
        ConfigError: it cannot be read, or a key is missing, unknown or of the wrong type.
    """
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; run site.yml, which writes it") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); run site.yml, which writes it") from error
    return parse(raw, path)


def parse(raw: Any, path: str) -> Config:
    """Turn the parsed JSON of a services file into values; ``path`` is for the messages.

    Raises:
        ConfigError: as in ``load``.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("services"), dict):
        raise ConfigError(f"{path}: services: must be an object of services by name")
    site = Site(**_checked(Site, raw.get("site"), f"{path}: site"))
    services = {}
    for name, entry in sorted(raw["services"].items()):
        where = f"{path}: services.{name}"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}: a service's name must match {NAME.pattern}")
        given = {**entry, "name": name, "llama_cpp": site.llama_cpp} if isinstance(entry, dict) else entry
        services[name] = Service(**_checked(Service, given, where))
    return Config(site, services)


def _checked(kind: type, given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: must be an object")
    known = {field.name: field for field in fields(kind)}
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key not in given:
            if field.default is field.default_factory:  # both MISSING: no default
                raise ConfigError(f"{where}.{key}: missing")
            continue
        values[key] = _typed(given[key], str(field.type), f"{where}.{key}")
    return values


def _typed(value: Any, kind: str, where: str) -> Any:
    if kind == "tuple[str, ...]":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{where}: must be a list of strings")
    if kind == "str" and isinstance(value, str) and "\n" not in value:
        return value
    if kind == "int" and type(value) is int and value >= 0:
        return value
    if kind == "float" and type(value) in (int, float) and value >= 0:
        return float(value)
    wanted = {"str": "a string of one line", "int": "a whole number, 0 or more", "float": "a number, 0 or more"}[kind]
    raise ConfigError(f"{where}: must be {wanted}, not {value!r}")

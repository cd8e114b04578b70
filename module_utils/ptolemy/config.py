"""The services file: what the gateway is asked to run. Ansible renders it; the daemon and the modules read it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Mapping

from .errors import ConfigError
from .record import NAME

DEFAULT_PATH = "/etc/ptolemy/services.json"
# How a GGUF file's name tells its quantisation, as in Qwen3-8B-Q4_K_M.gguf.
_QUANTISATION = re.compile(r"(?i)(?<![A-Z0-9])(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4|NVFP4|BF16|F16|F32)(?![A-Z0-9])")
CHAT, EMBEDDING, COMFYUI = KINDS = ("chat", "embedding", "comfyui")
AFFINITIES = ("none", "conversation")


@dataclass(frozen=True)
class Site:
    """What all services of a cluster share.

    Attributes:
        user: the service account's name; every replica job is its.
        uid: the service account's numeric user id on every host.
        haproxy_socket: path of HAProxy's admin socket on the gateway.
        awake_map: path of HAProxy's map of the services that have a server.
        states_map: path of HAProxy's map of the services' states.
        keys_file: path of the file of the clients' keys.
        status_file: where the daemon writes what it sees, for people and monitoring; never read back by it.
        job_template: path of the job script's template on the gateway.
        job_log: the jobs' ``--output`` pattern.
        lib: directory on the compute nodes that holds the package ``ptolemy``.
        llama_server: path of llama-server on the compute nodes.
        llama_cpp: identity of the llama.cpp build (source, flags), part of each revision.
        comfyui: directory on the compute nodes with ComfyUI's source and its environment.
        comfyui_identity: what that is (source, packages), part of each revision of a service of that kind.
        comfyui_dir: directory on the compute nodes for what each instance of ComfyUI writes.
        backend_key_file: path on the compute nodes of the key that the servers ask for.
        models_cache_dir: directory on the compute nodes' own disk for copies of the models, or empty.
        models_cache_size: what all of them may take there, as ``800G``.
        port_first, port_last: the TCP ports that endpoints may use.
        interval: seconds between two ticks.
        command_timeout: seconds that one Slurm command may take.
        sever_after: seconds that a server must have been down before the requests that it still holds are cut.
        max_submissions: how many jobs one tick may submit.
        operators: users whose keys see more on the status page: who asks how much, addresses, reasons of failures.
    """

    user: str
    uid: int
    haproxy_socket: str = "/run/haproxy/admin.sock"
    awake_map: str = "/etc/haproxy/ptolemy/awake.map"
    states_map: str = "/etc/haproxy/ptolemy/states.map"
    keys_file: str = "/etc/ptolemy/keys.map"
    status_file: str = "/run/ptolemy/status.json"
    job_template: str = "/etc/ptolemy/replica.sh"
    job_log: str = "/var/log/ptolemy/%x-%j.log"
    lib: str = "/opt/ptolemy/lib"
    llama_server: str = "/opt/ptolemy/llama.cpp/current/bin/llama-server"
    llama_cpp: str = ""
    comfyui: str = "/opt/ptolemy/comfyui/current"
    comfyui_identity: str = ""
    comfyui_dir: str = "/var/lib/ptolemy/comfyui"
    backend_key_file: str = "/etc/ptolemy/backend.key"
    models_cache_dir: str = ""
    models_cache_size: str = ""
    port_first: int = 20000
    port_last: int = 29999
    interval: float = 1.0
    command_timeout: float = 15.0
    sever_after: float = 30.0
    max_submissions: int = 8
    operators: tuple[str, ...] = ()

    @property
    def users_file(self) -> str:
        """Where the daemon writes who asks how much, for operators: a file of its own, because everybody may read the status file."""
        return os.path.join(os.path.dirname(self.status_file), "users.json")


@dataclass(frozen=True)
class Service:
    """One service: a model, how a replica runs it, how many replicas there may be, and where.

    Attributes:
        name: what a client names in the ``model`` field.
        model: the model's name in the catalogue.
        model_path: the GGUF file on the compute nodes.
        model_sha256: its checksum.
        model_more: the model's other files in the same directory, further shards and the mmproj: ``SHA256  NAME``, as sha256sum prints.
        mmproj_path: the multimodal projector on the compute nodes, or empty.
        comfyui_models: of a ComfyUI, where it looks for each of those files: ``FOLDER/NAME``, as ``vae/sdxl.safetensors``.
        kind: what it answers: ``chat`` (chats and completions), ``embedding`` (embeddings only) or ``comfyui`` (ComfyUI's own API).
        affinity: ``conversation``: its turns go to the server that has their beginning in its cache; ``none``: to the least busy one.
        min, max: the least and the most Slurm jobs that serve it. With ``min`` 0 it sleeps while nobody asks.
        opportunistic: how many of ``max`` are extra ones, on GPUs that nobody else wants at the time.
        target_load: the share of its slots that a replica is meant to have busy, above 0, at most 1.
        batch_share: the share of its slots that batch requests may have while somebody chats, above 0, at most 1.
        scale_in_delay: seconds for which fewer replicas must have been enough before one is given up.
        partition: the Slurm partition.
        reservation: of Slurm, or empty.
        nodes: Slurm's notation of the only nodes that replicas may use; empty for all of the partition's.
        exclusive: a replica takes its whole node.
        opportunistic_partition: the partition of extra replicas; empty for the same one.
        opportunistic_options: further options of sbatch for them, as ``--qos=scavenger``.
        opportunistic_time_min: Slurm's ``--time-min`` for them, so that they fit into gaps.
        gpus: GPUs of one replica.
        servers_per_gpu: llama-servers on each of them.
        slots: sequences that each llama-server decodes in parallel; of a ComfyUI, prompts that it is meant to have, one of which runs.
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
    min: int
    max: int
    partition: str
    model_more: tuple[str, ...] = ()
    mmproj_path: str = ""
    comfyui_models: tuple[str, ...] = ()
    kind: str = CHAT
    affinity: str = AFFINITIES[0]
    opportunistic: int = 0
    target_load: float = 0.8
    batch_share: float = 0.75
    scale_in_delay: int = 300
    reservation: str = ""
    nodes: str = ""
    exclusive: bool = False
    opportunistic_partition: str = ""
    opportunistic_options: tuple[str, ...] = ()
    opportunistic_time_min: str = "00:10:00"
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
    llama_cpp: str = ""  # or which ComfyUI

    @property
    def guaranteed(self) -> int:
        """How many replicas may be ordinary ones."""
        return self.max - self.opportunistic

    @property
    def capacity(self) -> int:
        """Requests that one replica answers at once."""
        return self.gpus * self.servers_per_gpu * self.slots

    @property
    def arguments(self) -> tuple[str, ...]:
        """What llama-server is told for this service alone; its own flags come last, so that they win."""
        if self.kind != EMBEDDING:
            return self.flags
        # An input must fit into one physical batch, whose default is 512 tokens: with these, all that fits into a slot is taken.
        return ("--embeddings", "--batch-size", str(self.context), "--ubatch-size", str(self.context), *self.flags)

    @property
    def model_files(self) -> tuple[str, ...]:
        """All files of the model, in the directory of ``model_path``: ``SHA256  NAME``, as sha256sum prints."""
        return (f"{self.model_sha256}  {os.path.basename(self.model_path)}", *self.model_more)

    @property
    def about(self) -> Mapping[str, Any]:
        """What people who use it may want to cite."""
        if self.kind == COMFYUI:
            return {"model": self.model, "files": [os.path.basename(entry) for entry in self.comfyui_models]}
        file = os.path.basename(self.model_path)
        quantisation = _QUANTISATION.search(file)
        return {
            "context_length": self.context,
            "model": self.model,
            "file": file,
            "quantisation": quantisation.group() if quantisation else "unknown",
            "sha256": self.model_sha256,
        }

    @cached_property
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
            list(self.arguments),
            *self.model_more,
            *self.comfyui_models,
        )
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Canary:
    """One replica of a new revision, which a rollout tries beside the service's present ones.

    Attributes:
        service: the service as it would be.
        share: of the service's requests that it is to have, below 1; with 0 it is reached directly only, not by clients.
        asked_at: Unix time at which it was asked for.
        shared_at: Unix time at which it got its share; 0 before.
    """

    service: Service
    share: float = 0.0
    asked_at: float = 0.0
    shared_at: float = 0.0


@dataclass(frozen=True)
class Config:
    """The whole services file.

    Attributes:
        site: what all services share.
        services: by name.
        canaries: of the services that are rolled out at the moment, by their names.
    """

    site: Site
    services: Mapping[str, Service]
    canaries: Mapping[str, Canary] = field(default_factory=dict)


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
    services = {name: _service(name, entry, site, f"{path}: services.{name}") for name, entry in sorted(raw["services"].items())}
    given = raw.get("canaries", {})
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: canaries: must be an object of canaries by service name")
    canaries = {name: _canary(name, entry, site, f"{path}: canaries.{name}") for name, entry in sorted(given.items())}
    for name, canary in canaries.items():
        if name not in services or canary.service.revision == services[name].revision:
            raise ConfigError(f"{path}: canaries.{name}: must be another revision of a service that is there; remove it with rollback.yml")
    return Config(site, services, canaries)


def _service(name: str, entry: Any, site: Site, where: str) -> Service:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: a service's name must match {NAME.pattern}")
    given = entry
    if isinstance(entry, dict):
        pictures = entry.get("kind") == COMFYUI
        # A workflow may need no model at all.
        none = dict.fromkeys(("model", "model_path", "model_sha256"), "") if pictures else {}
        given = {**none, **entry, "name": name, "llama_cpp": site.comfyui_identity if pictures else site.llama_cpp}
    service = Service(**_checked(Service, _sized(given, where), where))
    _check_values(service, where)
    return service


def _canary(name: str, entry: Any, site: Site, where: str) -> Canary:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must be an object")
    service = _service(name, entry.get("service"), site, f"{where}.service")
    rest = {key: value for key, value in entry.items() if key != "service"}
    canary = Canary(service, **_checked(Canary, rest, where, but="service"))
    if canary.share >= 1:
        raise ConfigError(f"{where}.share: must be below 1, not {canary.share:g}")
    return canary


def _sized(given: Any, where: str) -> Any:
    """``guaranteed: N`` is another way to say ``max``: N and the opportunistic ones."""
    if not isinstance(given, dict) or "guaranteed" not in given:
        return given
    rest = {key: value for key, value in given.items() if key != "guaranteed"}
    guaranteed, opportunistic = (
        _typed(value, "int", f"{where}.{key}")
        for key, value in (("guaranteed", given["guaranteed"]), ("opportunistic", given.get("opportunistic", 0)))
    )
    if rest.setdefault("max", guaranteed + opportunistic) != guaranteed + opportunistic:
        raise ConfigError(f"{where}.max: must be guaranteed + opportunistic, {guaranteed + opportunistic}; leave it out")
    return rest


def _check_values(service: Service, where: str) -> None:
    if service.min > service.max:
        raise ConfigError(f"{where}.min: {service.min} is more than max, {service.max}")
    if service.opportunistic > service.max:
        raise ConfigError(f"{where}.opportunistic: {service.opportunistic} is more than max, {service.max}")
    if service.kind not in KINDS:
        raise ConfigError(f"{where}.kind: must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {service.kind!r}")
    if service.affinity not in AFFINITIES:
        raise ConfigError(f"{where}.affinity: must be {' or '.join(AFFINITIES)}, not {service.affinity!r}")
    if service.kind != CHAT and service.affinity != AFFINITIES[0]:
        raise ConfigError(f"{where}.affinity: is for services of the kind {CHAT}; leave it out")
    if service.kind == COMFYUI and service.servers_per_gpu != 1:
        raise ConfigError(f"{where}.servers_per_gpu: a ComfyUI has its GPU for itself; leave it out")
    for key, share in (("target_load", service.target_load), ("batch_share", service.batch_share)):
        if not 0 < share <= 1:
            raise ConfigError(f"{where}.{key}: must be above 0 and at most 1, not {share:g}")


def _checked(kind: type, given: Any, where: str, but: str = "") -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: must be an object")
    known = {it.name: it for it in fields(kind) if it.name != but}
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for key, known_field in known.items():
        if key not in given:
            if known_field.default is known_field.default_factory:  # both MISSING: no default
                raise ConfigError(f"{where}.{key}: missing")
            continue
        values[key] = _typed(given[key], str(known_field.type), f"{where}.{key}")
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
    if kind == "bool" and type(value) is bool:
        return value
    if kind == "float" and type(value) in (int, float) and value >= 0:
        return float(value)
    wanted = {"str": "a string of one line", "int": "a whole number, 0 or more", "float": "a number, 0 or more", "bool": "true or false"}[
        kind
    ]
    raise ConfigError(f"{where}: must be {wanted}, not {value!r}")

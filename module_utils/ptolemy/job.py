"""The job script: the site's template, filled in with one service, to serve it or to tune it."""

from __future__ import annotations

import json
import math
import shlex
from string import Template
from typing import Any, Iterable, Mapping

from .config import COMFYUI, Service, Site
from .errors import ConfigError
from .record import STARTING, Record, encode
from .slurm import job_name

TUNING = "tune-"  # before the service's name, the name of a job that tunes it


def script(
    template: str, site: Site, service: Service, opportunistic: bool = False, avoid: Iterable[str] = (), outside: Iterable[str] = ()
) -> str:
    """Return the batch script of one replica.

    Args:
        template: text with ``$name`` places, see roles/replica_jobs/templates/replica.sh.j2.
        site: the site.
        service: what the replica serves.
        opportunistic: it is one of the extra replicas.
        avoid: nodes on which it must not start, because replicas failed there.
        outside: nodes on which the service may not run at all.

    Raises:
        ConfigError: the template names a place that is unknown.
    """
    record = Record(service.name, service.revision, 0, STARTING, opportunistic=opportunistic, avoids=tuple(sorted(avoid)))
    partition = (opportunistic and service.opportunistic_partition) or service.partition
    options = [
        f"--job-name={job_name(service.name)}",
        f"--comment={encode(record)}",
        *_asked(site, service, partition, service.gpus, service.time_limit, {*avoid, *outside}),
        f"--signal=B:USR1@{service.drain_before_end}",
        *service.sbatch_options,
        *([f"--time-min={service.opportunistic_time_min}", *service.opportunistic_options] if opportunistic else []),
    ]
    return _filled(template, site, service, options, "replica", spec(site, service, opportunistic))


def tuning_script(template: str, site: Site, service: Service, wish: Mapping[str, Any], outside: Iterable[str] = ()) -> str:
    """Return the batch script that tunes a service on one GPU, where its replicas would run.

    Args:
        template: as in ``script``.
        site: the site.
        service: what is tuned.
        outside: nodes on which it may not run.
        wish: what ``tune.DEFAULTS`` has, beside what the service says itself.

    Raises:
        ConfigError: the template cannot be used.
    """
    if "$command" not in template:
        raise ConfigError(f"{site.job_template}: is of an older Ptolemy, and could only start a replica; run playbooks/gateway.yml")
    minutes = math.ceil(wish["minutes"]) + 5  # the start before the search, and the end of the servers after it
    options = [
        # Neither its name nor its comment is a replica's.
        f"--job-name={TUNING}{service.name}",
        *_asked(site, service, service.partition, 1, f"{minutes // 60:02}:{minutes % 60:02}:00", set(outside)),
        *service.sbatch_options,
    ]
    return _filled(template, site, service, options, "tune", {**spec(site, service), **wish})


def _asked(site: Site, service: Service, partition: str, gpus: int, time_limit: str, exclude: Iterable[str]) -> list[str]:
    """What any job of a service asks of Slurm."""
    return [
        f"--partition={partition}",
        "--nodes=1",
        "--ntasks=1",
        f"--gres=gpu:{gpus}",
        f"--cpus-per-task={service.cpus_per_gpu * gpus}",
        f"--mem={_times(service.memory_per_gpu, gpus)}",
        f"--time={time_limit}",
        f"--output={site.job_log}",
        "--open-mode=append",
        "--chdir=/",
        # The planner replaces what ends, at once: a requeued job would be held for two minutes. A site may still ask for --requeue.
        "--no-requeue",
        *([f"--reservation={service.reservation}"] if service.reservation else []),
        *(["--exclusive"] if service.exclusive else []),
        *([f"--exclude={','.join(sorted(exclude))}"] if exclude else []),
    ]


def _filled(template: str, site: Site, service: Service, options: Iterable[str], command: str, given: Mapping[str, Any]) -> str:
    places = {
        "service": service.name,
        "revision": service.revision,
        "lib": shlex.quote(site.lib),
        "command": command,
        "sbatch_options": "\n".join(f"#SBATCH {shlex.quote(option)}" for option in options),
        "spec": json.dumps(given, indent=1),
    }
    try:
        return Template(template).substitute(places)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{site.job_template}: unknown place {error}; known are ${', $'.join(sorted(places))}") from error


def spec(site: Site, service: Service, opportunistic: bool = False) -> dict[str, Any]:
    """What ``ptolemy replica`` reads on its standard input."""
    return {
        "service": service.name,
        "revision": service.revision,
        "opportunistic": opportunistic,
        "kind": service.kind,
        "llama_server": site.llama_server,
        "model_path": service.model_path,
        "mmproj_path": service.mmproj_path,
        "model_files": list(service.model_files),
        "comfyui": site.comfyui,
        "comfyui_dir": site.comfyui_dir,
        "comfyui_models": list(service.comfyui_models),
        # ComfyUI reads its models where they are.
        "cache_dir": "" if service.kind == COMFYUI else site.models_cache_dir,
        "cache_size": site.models_cache_size,
        "key_file": site.backend_key_file,
        "servers_per_gpu": service.servers_per_gpu,
        "slots": service.slots,
        "context": service.context,
        "flags": list(service.arguments),
        "port_first": site.port_first,
        "port_last": site.port_last,
        "start_timeout": service.start_timeout,
        "stop_grace": service.stop_grace,
    }


def _times(memory: str, gpus: int) -> str:
    """("32G", 2) -> "64G"."""
    number = memory.rstrip("KMGTkmgt")
    return f"{int(number) * gpus}{memory[len(number) :]}"

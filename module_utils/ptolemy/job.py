"""The job script: the site's template, filled in with one service."""

from __future__ import annotations

import json
import shlex
from string import Template
from typing import Any, Iterable

from .config import COMFYUI, Service, Site
from .errors import ConfigError
from .record import STARTING, Record, encode
from .slurm import job_name


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
    exclude = sorted({*avoid, *outside})
    partition = (opportunistic and service.opportunistic_partition) or service.partition
    options = [
        f"--job-name={job_name(service.name)}",
        f"--comment={encode(record)}",
        f"--partition={partition}",
        "--nodes=1",
        "--ntasks=1",
        f"--gres=gpu:{service.gpus}",
        f"--cpus-per-task={service.cpus_per_gpu * service.gpus}",
        f"--mem={_times(service.memory_per_gpu, service.gpus)}",
        f"--time={service.time_limit}",
        f"--signal=B:USR1@{service.drain_before_end}",
        f"--output={site.job_log}",
        "--open-mode=append",
        "--chdir=/",
        # The planner replaces what ends, at once: a requeued job would be held for two minutes. A site may still ask for --requeue.
        "--no-requeue",
        *([f"--reservation={service.reservation}"] if service.reservation else []),
        *(["--exclusive"] if service.exclusive else []),
        *([f"--exclude={','.join(exclude)}"] if exclude else []),
        *service.sbatch_options,
        *([f"--time-min={service.opportunistic_time_min}", *service.opportunistic_options] if opportunistic else []),
    ]
    places = {
        "service": service.name,
        "revision": service.revision,
        "lib": shlex.quote(site.lib),
        "sbatch_options": "\n".join(f"#SBATCH {shlex.quote(option)}" for option in options),
        "spec": json.dumps(spec(site, service, opportunistic), indent=1),
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

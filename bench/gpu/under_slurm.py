"""A one-node Slurm of the benchmark's own, in which a setup's servers are those of a real replica: the project's job script, run by slurmd
as an unprivileged account, with all that the runner does (NVIDIA's multi-process service, publication in the job's comment).

Needs root and Slurm's and munge's programs, as Debian's slurmctld, slurmd, slurm-client and munge have them; no systemd, no cgroups.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jinja2

from local_gateway import BACKEND_KEY, ROOT, free_port
from processes import running
from ptolemy.config import Service, Site
from ptolemy.errors import ObservationError
from ptolemy.job import script
from ptolemy.slurm import Job, Slurm

ACCOUNT = "ptolemy-bench"
PARTITION = "gpu"
TEMPLATE = ROOT / "roles" / "replica_jobs" / "templates" / "replica.sh.j2"
START_TIMEOUT, END_TIMEOUT = 90.0, 60.0  # seconds
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONF = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={base}/munge.socket
CredType=cred/munge
StateSaveLocation={base}/slurmctld
SlurmdSpoolDir={base}/slurmd
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
KillWait=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName={partition} Nodes=ALL Default=YES
"""


@contextlib.contextmanager
def replica(
    program: Path, model: Path, service: Mapping[str, object], environment: Mapping[str, str], devices: Sequence[str], base: Path
) -> Iterator[tuple[list[int], Path]]:
    """Run one replica as a job until the block ends; yields its servers' ports and the job's log.

    Args:
        program: llama-server; everybody must be able to read it.
        model: the GGUF file, too.
        service: further fields of ``ptolemy.config.Service``.
        environment: variables of the job.
        devices: device files of the GPUs; without one, a file that stands for one.
        base: for all files.

    Raises:
        RuntimeError: no replica came up, or something of it was left behind; with the job's log.
    """
    home = base / "slurm"
    # Jobs of the account reach what is theirs below it.
    home.mkdir(mode=0o755)
    (home / "slurmd").mkdir()
    with contextlib.ExitStack() as stack:
        uid = stack.enter_context(_account())
        site = _site(uid, program, home)
        stack.enter_context(_cluster(devices or ["/dev/null"], home))
        values = {"model": model.name, "model_path": str(model), "model_sha256": "", "min": 1, "max": 1, "partition": PARTITION}
        wanted = Service(**{**values, **service})  # type: ignore[arg-type]
        slurm = Slurm(uid, timeout=15.0)
        job = _submit(script(_template(environment), site, wanted), uid)
        log = Path(site.job_log.replace("%j", str(job)))
        stack.callback(_end, slurm, job, uid, log)
        found = _wait(slurm, job, log)
        assert found.record
        yield list(found.record.ports), log


@contextlib.contextmanager
def _account() -> Iterator[int]:
    with contextlib.suppress(KeyError):
        yield pwd.getpwnam(ACCOUNT).pw_uid
        return
    subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/bash", ACCOUNT], check=True)
    try:
        yield pwd.getpwnam(ACCOUNT).pw_uid
    finally:
        subprocess.run(["userdel", ACCOUNT], check=False)


def _site(uid: int, program: Path, home: Path) -> Site:
    """The control plane's own files, where the account may read them."""
    group = pwd.getpwuid(uid).pw_gid
    shutil.copytree(ROOT / "module_utils" / "ptolemy", home / "lib" / "ptolemy")
    logs, key = home / "logs", home / "backend.key"
    logs.mkdir()
    key.touch(mode=0o600)
    key.write_text(BACKEND_KEY)
    for path in (logs, key):
        os.chown(path, uid, group)
    lib, log = str(home / "lib"), f"{logs}/%j.log"
    return Site(ACCOUNT, uid, lib=lib, llama_server=str(program), backend_key_file=str(key), job_log=log)


def _template(environment: Mapping[str, str]) -> str:
    """The role's template, as Ansible writes it."""
    exports = "\n".join(f"export {name}={value}" for name, value in environment.items())
    places = {"ansible_managed": "bench/gpu", "replica_jobs_prologue": exports}
    return f"{jinja2.Template(TEMPLATE.read_text(), trim_blocks=True).render(places)}\n"


@contextlib.contextmanager
def _cluster(devices: Sequence[str], home: Path) -> Iterator[None]:
    """munged, slurmctld and slurmd; their settings stand in this process's environment meanwhile."""
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    places = {"host": host, "ports": (free_port(), free_port()), "base": home, "cpus": os.cpu_count(), "memory": memory * 9 // 10}
    (home / "slurm.conf").write_text(CONF.format(**places, gpus=len(devices), partition=PARTITION))
    (home / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
    # There may be no systemd to ask for a cgroup.
    (home / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
    (home / "munge.key").touch(mode=0o600)
    (home / "munge.key").write_bytes(os.urandom(1024))
    files = [f"--{name}-file={home}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    before = dict(os.environ)
    os.environ |= {"SLURM_CONF": str(home / "slurm.conf"), "PATH": PATH}
    try:
        with contextlib.ExitStack() as stack:
            # --force: it would rather not have its files below /tmp.
            munged = ["munged", "--foreground", "--force", f"--socket={home}/munge.socket", *files]
            for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", host]):
                stack.enter_context(running(command, home / f"{command[0]}.log"))
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _submit(text: str, uid: int) -> int:
    """Submit as the account, as soon as there is a slurmctld that takes it."""
    deadline = time.monotonic() + 60
    entry = pwd.getpwuid(uid)
    while True:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=text, capture_output=True, text=True, user=uid, group=entry.pw_gid, cwd="/", check=False
        )
        if done.returncode == 0:
            return int(done.stdout)
        if time.monotonic() > deadline:
            raise RuntimeError(f"sbatch: {done.stderr}")
        time.sleep(0.5)


def _find(slurm: Slurm, job: int) -> Job | None:
    with contextlib.suppress(ObservationError):
        return next((one for one in slurm.jobs() if one.id == job), None)
    return None


def _wait(slurm: Slurm, job: int, log: Path) -> Job:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        found = _find(slurm, job)
        if found and found.ready:
            return found
        if (found and found.ended) or time.monotonic() > deadline:
            # A job that never ran has no log.
            logs = [log] if log.exists() else sorted(log.parent.parent.glob("slurm*.log"))
            told = "".join(one.read_text(errors="replace")[-1500:] for one in logs)
            raise RuntimeError(f"job {job} is {found.state if found else 'unknown'}, {found.reason if found else ''}: {told}")
        time.sleep(0.5)


def _end(slurm: Slurm, job: int, uid: int, log: Path) -> None:
    """Cancel the job, and see that nothing of its account is left."""
    slurm.cancel([job])
    deadline = time.monotonic() + END_TIMEOUT
    while left := [entry for entry in os.listdir("/proc") if entry.isdigit() and _owner(entry) == uid]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {', '.join(left)} of job {job} are left: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.5)


def _owner(process: str) -> int:
    try:
        return os.stat(f"/proc/{process}").st_uid
    except OSError:
        return -1

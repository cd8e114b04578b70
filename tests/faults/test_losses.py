"""What breaks: only streams on the lost endpoints are cut, and whatever had not begun is answered by another one."""

from __future__ import annotations

import contextlib
import re
import time

import pytest

from cluster_host import podman

pytestmark = pytest.mark.trixie


def test_a_serving_replica_is_cancelled(cluster, faults):
    job = cluster.jobs("demo")[0]
    (server,) = [name for name in cluster.servers("demo") if name.startswith(f"j{job}r")]
    with faults.planned("scancel of a serving replica") as notes:
        cluster.run("head", "scancel", str(job))
        notes.append(f"no new request after {cluster.until(lambda: is_out(cluster, server), 'drained'):.1f} s")
        cluster.until(lambda: server not in cluster.servers("demo"), "removed")
    cluster.until_ready()


def is_out(cluster, server):
    row = cluster.servers("demo").get(server)
    return row is None or row["srv_admin_state"] != "0" or row["srv_op_state"] == "0"


def process_on(cluster, replica):
    """The process id of a replica's first llama-server on its node; empty while none listens."""
    listening = cluster.run(replica["host"], "ss", "-Hltnp", f"sport = :{replica['ports'][0]}")
    return "".join(re.findall(r"pid=(\d+)", listening)[:1])


def replica_of(cluster, service="demo"):
    """A replica and the name of its server."""
    row = cluster.service(service)["replicas"][0]
    return row, next(name for name in cluster.servers(service) if name.startswith(f"j{row['job']}r"))


def is_back(cluster, server):
    return cluster.servers("demo").get(server, {}).get("srv_op_state") == "2"


def is_replaced(cluster, row, server, pid):
    """Another process serves in the place of a replica's llama-server."""
    return process_on(cluster, row) not in ("", pid) and is_back(cluster, server)


def signalled(cluster, faults, name):
    row, server = replica_of(cluster)
    with faults.loss(f"{name} of one llama-server") as notes:
        pid = process_on(cluster, row)
        cluster.run(row["host"], "kill", f"-{name}", pid)
        seconds = cluster.until(lambda: is_replaced(cluster, row, server, pid), "it is back", 150)
        notes.append(f"served again by the same job after {seconds:.1f} s")
    cluster.until_ready()
    assert row["job"] in cluster.jobs("demo")


def test_a_llama_server_is_killed(cluster, faults):
    signalled(cluster, faults, "KILL")


def test_a_llama_server_is_terminated(cluster, faults):
    signalled(cluster, faults, "TERM")


def test_a_llama_server_freezes(cluster, faults):
    row, server = replica_of(cluster)
    with faults.loss("a llama-server freezes (STOP)") as notes:
        pid = process_on(cluster, row)
        cluster.run(row["host"], "kill", "-STOP", pid)
        notes.append(f"out after {cluster.until(lambda: is_out(cluster, server), 'its health check fails'):.1f} s")
        seconds = cluster.until(lambda: is_replaced(cluster, row, server, pid), "killed and started again")
        notes.append(f"served again after {seconds:.1f} s")
    cluster.until_ready()


def test_a_node_is_killed(cluster, faults):
    host = cluster.service("demo")["replicas"][0]["host"]
    lost = [name for service in ("demo", "demo-b") for name in servers_on(cluster, service, host)]
    name = f"{cluster.prefix}-{host}"
    with faults.loss("KILL of a whole node", endpoints=len(lost)) as notes:
        podman("kill", "--signal", "KILL", name)
        try:
            seconds = cluster.until(lambda: all_down(cluster, lost), "its servers are out")
            notes.append(f"{len(lost)} endpoints out after {seconds:.1f} s")
            cluster.ticks()  # ptolemyd has seen it
            seconds = cluster.until(lambda: all(cluster.service(s)["replicas_ready"] for s in ("demo", "demo-b")), "served elsewhere")
            notes.append(f"served elsewhere after {seconds:.0f} s")
        finally:
            podman("start", name)
    cluster.until(lambda: cluster.run("head", "sinfo", "-h", "-n", host, "-o", "%T").split()[0] in ("idle", "mixed"), "the node is back")
    cluster.until_ready()


def servers_on(cluster, service, host):
    jobs = [row["job"] for row in cluster.service(service)["replicas"] if row["host"] == host]
    return [name for name in cluster.servers(service) if any(name.startswith(f"j{job}r") for job in jobs)]


def all_down(cluster, names):
    servers = {**cluster.servers("demo"), **cluster.servers("demo-b")}
    return all(name not in servers or servers[name]["srv_op_state"] == "0" for name in names)


def test_preemption_by_a_higher_partition(cluster, faults):
    host = cluster.service("demo")["replicas"][0]["host"]
    fault = "preemption: the partition `high` takes a whole node"
    with faults.planned(fault) as notes, foreign_job(cluster, "high", host, 8) as running:
        notes.append(f"it has the node after {cluster.until(running, 'it runs'):.0f} s")
        cluster.until_ready()


@contextlib.contextmanager
def foreign_job(cluster, partition, host, gpus):
    """Somebody else's job; yields what tells whether it runs."""
    options = ["--parsable", f"--partition={partition}", f"--nodelist={host}", f"--gres=gpu:{gpus}", "--cpus-per-task=1", "--mem=4G"]
    script = "#!/bin/bash\nexec sleep 600\n"
    job = cluster.run("head", "sbatch", *options, "--chdir=/tmp", "--output=/dev/null", stdin=script).strip()
    try:
        yield lambda: cluster.run("head", "squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING"
    finally:
        cluster.run("head", "scancel", job)


def test_an_opportunistic_replica_gives_its_gpu_back(cluster, faults):
    with cluster.service_as("nap", min=3):
        cluster.until(lambda: cluster.service("nap")["replicas_ready"] == 3, "3 ready")
        (extra,) = [row for row in cluster.service("nap")["replicas"] if row["opportunistic"]]
        host, ordinary = extra["host"], ["squeue", "-h", "-t", "RUNNING", "-p", "gpu", "-w", extra["host"], "-o", "%A"]
        taken = len(cluster.run("head", *ordinary).split())
        fault = "an opportunistic replica is preempted by an ordinary job"
        with faults.planned(fault, services=("nap",)) as notes, foreign_job(cluster, "gpu", host, 8 - taken) as running:
            notes.append(f"the GPU is given back after {cluster.until(running, 'it runs'):.0f} s")
            cluster.until(lambda: extra["job"] not in cluster.jobs("nap"), "ptolemyd has seen it")
            assert cluster.service("nap")["replicas_ready"] >= 2


def test_a_requeued_replica_starts_afresh_and_at_once(cluster, faults):
    # Slurm refuses to requeue what was submitted with --no-requeue, as replicas are unless a site says otherwise.
    with cluster.service_as("demo", context=1003, sbatch_options=["--requeue"]):
        cluster.until_ready()
        job = cluster.jobs("demo")[0]
        with faults.planned("scontrol requeue of a replica, with ptolemyd away for a moment") as notes:
            cluster.run("head", "systemctl", "stop", "ptolemyd")
            cluster.run("head", "scontrol", "requeue", str(job))
            held = ["squeue", "-h", "-j", str(job), "-o", "%T %r"]
            cluster.until(lambda: cluster.run("head", *held).strip() == "PENDING BeginTime", "Slurm holds it")
            cluster.run("head", "systemctl", "start", "ptolemyd")
            notes.append(f"serves again after {cluster.until(lambda: f'j{job}r1' in str(cluster.servers('demo')), 'it serves'):.1f} s")
    cluster.until_ready()


def test_a_restart_of_haproxy(cluster, faults):
    with cluster.load(tokens=16) as load:
        cluster.run("head", "systemctl", "restart", "haproxy")
        started = time.monotonic()
        cluster.until(lambda: len(cluster.servers("demo")) == 2, "servers are back")
        seconds = time.monotonic() - started
    refused = sum(count for kind, count in load.result.errors.items() if kind.startswith("ClientConnectorError"))
    notes = [f"servers are back after {seconds:.1f} s; {refused} of the failed were refused while nobody listened"]
    row = faults.record("HAProxy is restarted (not reloaded)", "what it holds at that moment", load, notes)
    assert row.failed - refused + row.cut <= 2 * load.clients, "each had one request there, and one more while it started"

"""What operators and the controller do on purpose: no request fails, and no stream is cut."""

from __future__ import annotations

import json
import random
import time

import pytest

from cluster_host import THOROUGH

pytestmark = pytest.mark.trixie


def test_scale_out_and_in(cluster, faults):
    with faults.planned("scale out from 2 to 4, and back in") as notes:
        with cluster.service_as("demo", min=4, max=4):
            notes.append(f"4 replicas serve after {cluster.until(lambda: cluster.service('demo')['replicas_ready'] == 4, '4 ready'):.1f} s")
        cluster.until(lambda: len(cluster.jobs("demo")) == 2, "2 are left")


def test_rollover_to_a_new_revision(cluster, faults):
    before = set(cluster.jobs("demo"))
    with faults.planned("rollover to a new revision") as notes, cluster.service_as("demo", context=1000):
        notes.append(f"done after {cluster.until(lambda: handed_over(cluster, 'demo', before), 'handed over'):.1f} s")
    cluster.until_ready()


def handed_over(cluster, service, before):
    """Other replicas serve, and those of before are gone."""
    row = cluster.service(service)
    return row["replicas_ready"] == row["replicas_wanted"] and not before & set(cluster.jobs(service))


def test_handover_before_the_time_limit(cluster, faults):
    job = cluster.jobs("demo")[0]
    minutes = int(cluster.run("head", "squeue", "-h", "-j", str(job), "-o", "%M").split(":")[-2].split("-")[-1])
    with faults.planned("handover before the time limit") as notes:
        cluster.run("head", "scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")
        seconds = cluster.until(lambda: handed_over(cluster, "demo", {job}), "handed over")
        notes.append(f"{seconds:.1f} s after the limit came near")
    state = ("squeue", "-h", "--states=all", "-j", str(job), "-o", "%T")
    cluster.until(lambda: cluster.run("head", *state).strip() == "COMPLETED", "it ended by itself, before Slurm would have ended it", 20)


def test_slurms_warning(cluster, faults):
    job = cluster.jobs("demo-b")[0]
    with faults.planned("Slurm warns a replica of its end (USR1)"):
        cluster.run("head", "scancel", "--batch", "--signal=USR1", str(job))
        cluster.until(lambda: handed_over(cluster, "demo-b", {job}), "handed over")


@pytest.mark.skipif(not THOROUGH, reason="takes three minutes; PTOLEMY_TEST_THOROUGH=1")
def test_short_time_limits_one_after_the_other(cluster, faults):
    short = {"time_limit": "00:02:00", "drain_before_end": 30, "context": 1001}
    with faults.planned("time limits of two minutes, for three minutes") as notes, cluster.service_as("demo", **short):
        began, seen = time.monotonic(), set()
        while time.monotonic() - began < 180:
            seen |= set(cluster.jobs("demo"))
            time.sleep(1)
        notes.append(f"{len(seen)} replicas in turn")
        assert len(seen) >= 6
    cluster.until_ready()


def test_draining_a_node(cluster, faults):
    node = cluster.service("demo")["replicas"][0]["host"]
    with faults.planned("a node is set to DRAIN") as notes:
        cluster.run("head", "scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
        try:
            notes.append(f"empty after {cluster.until(lambda: not on_node(cluster, node), f'{node} is empty'):.1f} s")
            cluster.until_ready()
        finally:
            cluster.run("head", "scontrol", "update", f"NodeName={node}", "State=RESUME")


def on_node(cluster, node):
    return cluster.run("head", "squeue", "-h", "-w", node, "-o", "%A").split()


def test_reloads_of_haproxy(cluster, faults):
    count = 20 if THOROUGH else 4
    with faults.planned(f"HAProxy is reloaded {count} times"):
        for _ in range(count):
            process = info(cluster)
            cluster.run("head", "systemctl", "reload", "haproxy")
            cluster.until(lambda: info(cluster) != process and complete(cluster), "servers are back after a reload")  # noqa: B023


def info(cluster):
    return next(line for line in cluster.haproxy("show info").splitlines() if line.startswith("Pid:"))


def complete(cluster):
    servers = [row for service in ("demo", "demo-b") for row in cluster.servers(service).values()]
    return len(servers) == 4 and all(row["srv_admin_state"] == "0" and row["srv_op_state"] == "2" for row in servers)


def test_a_scale_in_just_after_a_reload_waits_for_streams_that_only_the_old_process_knows(cluster, faults):
    with cluster.service_as("demo", min=3, max=3):
        cluster.until(lambda: cluster.service("demo")["replicas_ready"] == 3, "3 ready")
        with faults.planned("scale-in just after a reload, long answers", tokens=60, clients=16, least=100):
            cluster.run("head", "systemctl", "reload", "haproxy")
            with cluster.service_as("demo", min=1, max=1):
                cluster.until(lambda: len(cluster.jobs("demo")) == 1, "1 is left")


def test_kills_of_ptolemyd(cluster, faults):
    count = 50 if THOROUGH else 5
    jobs = {service: set(cluster.jobs(service)) for service in ("demo", "demo-b")}
    dice = random.Random(7)
    with faults.planned(f"ptolemyd is killed {count} times at random moments"):
        for _ in range(count):
            process = main_process(cluster)
            cluster.run("head", "systemctl", "kill", "-s", "KILL", "ptolemyd")
            cluster.until(lambda: main_process(cluster) not in ("0", process), "ptolemyd is started again")  # noqa: B023
            time.sleep(dice.uniform(0, 2))  # the moment of the next kill
    cluster.ticks()
    assert {service: set(cluster.jobs(service)) for service in jobs} == jobs


def test_kills_of_ptolemyd_during_a_rollover(cluster, faults):
    before = set(cluster.jobs("demo"))
    dice = random.Random(8)
    with faults.planned("ptolemyd is killed again and again during a rollover") as notes, cluster.service_as("demo", context=1002):
        kills = 0
        while not handed_over(cluster, "demo", before):
            process = main_process(cluster)
            cluster.run("head", "systemctl", "kill", "-s", "KILL", "ptolemyd", check=False)
            cluster.until(lambda: main_process(cluster) not in ("0", process), "ptolemyd is started again")  # noqa: B023
            kills += 1
            assert kills < 60, "the rollover never ends"
            time.sleep(dice.uniform(0.2, 2))
        notes.append(f"{kills} kills")
    cluster.until_ready()


def main_process(cluster):
    return cluster.run("head", "systemctl", "show", "-p", "MainPID", "--value", "ptolemyd").strip()


def test_a_second_ptolemyd(cluster, faults):
    with faults.planned("a second ptolemyd is started"):
        account = ["runuser", "-u", "ptolemy", "--", "ptolemy", "daemon"]
        said = cluster.run("head", "sh", "-c", f"timeout 20 {' '.join(account)} 2>&1; echo status $?")
        assert "another ptolemyd runs on this host" in said
        assert "status 2" in said


SKEWED = """[Service]
ExecStart=
ExecStart=/usr/bin/python3 -c "import time, sys; real = time.time; time.time = lambda: real() + float(open('/run/ptolemy/skew').read()); \
from ptolemy.__main__ import main; sys.exit(main(['daemon']))"
"""


def test_a_clock_that_jumps(cluster, faults):
    jobs = {service: set(cluster.jobs(service)) for service in ("demo", "demo-b")}
    drop_in = "/run/systemd/system/ptolemyd.service.d/skew.conf"
    cluster.write("head", "/run/ptolemy/skew", "0")
    cluster.run("head", "mkdir", "-p", drop_in.rpartition("/")[0])
    cluster.write("head", drop_in, SKEWED)
    try:
        cluster.run("head", "sh", "-c", "systemctl daemon-reload && systemctl restart ptolemyd")
        cluster.ticks()
        with faults.planned("the clock of ptolemyd jumps by 23 h, and back by 2 days"):
            for skew in (23 * 3600, -48 * 3600):
                cluster.write("head", "/run/ptolemy/skew", str(skew))
                cluster.ticks(5)
    finally:
        cluster.run("head", "sh", "-c", f"rm {drop_in} && systemctl daemon-reload && systemctl restart ptolemyd")
    assert "the clock was set by" in cluster.run("head", "journalctl", "-n", "40", "-u", "ptolemyd")
    cluster.ticks()
    assert {service: set(cluster.jobs(service)) for service in jobs} == jobs


def test_a_service_that_is_removed_and_comes_back(cluster, faults):
    path = "/etc/ptolemy/services.json"
    before = cluster.run("head", "cat", path)
    without = json.loads(before)
    del without["services"]["demo-b"]
    with faults.planned("a service is removed beside others", services=("demo",)):
        cluster.write("head", path, json.dumps(without))
        try:
            cluster.until(lambda: "demo-b" not in cluster.run("head", "squeue", "-h", "-o", "%j"), "its jobs are gone")
        finally:
            cluster.write("head", path, before)
            cluster.ticks()
    cluster.until_ready()

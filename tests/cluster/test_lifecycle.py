"""Replicas come and go, daemons die, Slurm goes away, and no request is dropped."""

from __future__ import annotations

import re
import time

from cluster_host import OUTAGE, unharmed


def job_of(cluster, service="demo"):
    return cluster.service(service)["replicas"][0]["job"]


def process_on(cluster, replica):
    """The process id of a replica's first llama-server on its node."""
    listening = cluster.run(replica["host"], "ss", "-Hltnp", f"sport = :{replica['ports'][0]}")
    return re.search(r"pid=(\d+)", listening)[1]


def test_a_load_of_streamed_and_whole_chats_has_no_errors(cluster):
    with cluster.load() as load:
        pass
    unharmed(load)


def test_a_cancelled_replica_gets_nothing_new_within_3_s_and_no_request_is_lost(cluster):
    with cluster.load() as load:
        job = job_of(cluster)
        (server,) = [name for name in cluster.servers("demo") if name.startswith(f"j{job}r")]
        cluster.run("head", "scancel", str(job))

        def drained():
            row = cluster.servers("demo").get(server)
            return row is None or row["srv_admin_state"] != "0" or row["srv_op_state"] == "0"

        assert cluster.until(drained, f"{server} drained", 3) < 3
        total = cluster.total(server)
        cluster.until(lambda: server not in cluster.servers("demo"), f"{server} removed")
        assert total >= cluster.total(server)
    unharmed(load)
    cluster.until_ready()
    assert job_of(cluster) != job


def test_a_killed_llama_server_costs_at_most_the_streams_that_it_was_sending(cluster):
    with cluster.load() as load:
        row = cluster.service("demo")["replicas"][0]
        running = cluster.service("demo")["servers"][0]["slots"]
        cluster.run(row["host"], "kill", "-KILL", process_on(cluster, row))
    assert sum(load.result.errors.values()) <= running, load.result.errors
    cluster.until_ready()
    assert job_of(cluster) == row["job"], "the runner should have started the server again in the same job"


def test_a_frozen_llama_server_leaves_at_once_and_its_requests_do_not_hang_for_ever(cluster):
    row = cluster.service("demo")["replicas"][0]
    server = next(name for name in cluster.servers("demo") if name.startswith(f"j{row['job']}r"))
    slots = cluster.service("demo")["servers"][0]["slots"]
    with cluster.load() as load:
        pid = process_on(cluster, row)
        cluster.run(row["host"], "kill", "-STOP", pid)
        try:
            cluster.until(lambda: cluster.servers("demo")[server]["srv_op_state"] == "0", "its health check fails", 10)
            severed = lambda: f"sever svc_demo/{server}" in cluster.run("head", "journalctl", "-n", "50", "-u", "ptolemyd")  # noqa: E731
            cluster.until(severed, "what it held is cut", 60)
        finally:
            cluster.run(row["host"], "kill", "-CONT", pid)
    assert sum(load.result.errors.values()) <= slots, load.result.errors
    cluster.until_ready()


def test_a_killed_daemon_costs_nothing_and_plans_again_from_slurm_and_haproxy(cluster):
    jobs = {replica["job"] for replica in cluster.service("demo")["replicas"]}
    with cluster.load() as load:
        before = cluster.run("head", "systemctl", "show", "-p", "MainPID", "--value", "ptolemyd").strip()
        cluster.run("head", "systemctl", "kill", "-s", "KILL", "ptolemyd")
        restarted = lambda: cluster.run("head", "systemctl", "show", "-p", "MainPID", "--value", "ptolemyd").strip() not in ("0", before)  # noqa: E731
        cluster.until(restarted, "ptolemyd restarted")
    unharmed(load)
    cluster.until_ready()
    assert {replica["job"] for replica in cluster.service("demo")["replicas"]} == jobs


def test_a_restarted_haproxy_has_its_servers_back_within_2_s(cluster):
    before = set(cluster.servers("demo"))
    cluster.run("head", "systemctl", "restart", "haproxy")
    started = float(cluster.run("head", "date", "+%s.%N"))

    def back():
        servers = cluster.servers("demo")
        return set(servers) == before and all(row["srv_admin_state"] == "0" and row["srv_op_state"] == "2" for row in servers.values())

    cluster.until(back, "servers back", 5)
    assert float(cluster.run("head", "date", "+%s.%N")) - started < 2


def test_a_reloaded_haproxy_drops_no_request(cluster):
    with cluster.load() as load:
        cluster.run("head", "systemctl", "reload", "haproxy")
    unharmed(load)


def test_while_slurmctld_is_away_nothing_is_removed_and_status_says_since_when(cluster):
    servers = {service: set(cluster.servers(service)) for service in ("demo", "demo-b")}
    cluster.run("head", "systemctl", "stop", "slurmctld")
    try:
        cluster.until(lambda: cluster.status()["stale_reason"], "a stale view", 40)
        with cluster.load() as load:
            time.sleep(OUTAGE)  # the length of the outage is what is tested, not a guess
            assert {service: set(cluster.servers(service)) for service in servers} == servers
            assert "STALE: the view is stale since" in cluster.run("head", "ptolemy", "status")
        unharmed(load)
    finally:
        cluster.run("head", "systemctl", "start", "slurmctld")
    cluster.until(lambda: not cluster.status()["stale_reason"], "a fresh view", 60)
    assert {service: set(cluster.servers(service)) for service in servers} == servers


def test_a_dead_node_is_replaced_and_its_servers_leave(cluster):
    row = cluster.service("demo")["replicas"][0]
    cluster.run("head", "scontrol", "update", f"NodeName={row['host']}", "State=DOWN", "Reason=test")
    try:
        cluster.until(lambda: not [name for name in cluster.servers("demo") if name.startswith(f"j{row['job']}r")], "servers gone")
        cluster.until_ready()
    finally:
        # Refused where slurmd has brought the node back by itself already (ReturnToService=2).
        cluster.run("head", "scontrol", "update", f"NodeName={row['host']}", "State=RESUME", check=False)
    assert row["job"] not in [replica["job"] for replica in cluster.service("demo")["replicas"]]


def test_a_replica_that_asks_to_be_drained_is_replaced_before_it_ends(cluster):
    job = job_of(cluster, "demo-b")
    with cluster.load() as load:
        cluster.run("head", "scancel", "--batch", "--signal=USR1", str(job))
        cluster.until(lambda: job not in [row["job"] for row in cluster.service("demo-b")["replicas"]], "the job is gone")
    unharmed(load)
    cluster.until_ready()

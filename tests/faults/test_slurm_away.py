"""Slurm that is away, or lies: the servers stay as they are, and people are told."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest

from cluster_host import OUTAGE, in_network_of

SERVICES = ("demo", "demo-b")


@contextlib.contextmanager
def unchanged(cluster, lasting=OUTAGE):
    """The view becomes stale, nothing is removed meanwhile, and nothing has changed afterwards."""
    jobs = {service: set(cluster.jobs(service)) for service in SERVICES}
    servers = {service: set(cluster.servers(service)) for service in SERVICES}
    yield
    cluster.until(lambda: cluster.status()["stale_reason"], "a stale view")
    assert "STALE: the view is stale since" in cluster.run("head", "ptolemy", "status")
    time.sleep(lasting)  # the length of the outage is what is tested, not a guess
    assert {service: set(cluster.servers(service)) for service in SERVICES} == servers
    cluster.jobs_before = jobs


def recovered(cluster):
    cluster.until(lambda: not cluster.status()["stale_reason"], "a fresh view")
    assert {service: set(cluster.jobs(service)) for service in SERVICES} == cluster.jobs_before


def test_slurmctld_is_stopped(cluster, faults):
    with faults.planned(f"slurmctld is stopped for {OUTAGE:.0f} s"):
        try:
            with unchanged(cluster):
                cluster.run("head", "systemctl", "stop", "slurmctld")
        finally:
            cluster.run("head", "systemctl", "start", "slurmctld")
        recovered(cluster)


def firewall(cluster, *rule):
    subprocess.run(in_network_of(cluster, "head", "iptables", *rule), check=True, capture_output=True, timeout=60)


def test_the_network_to_slurmctld_is_dropped(cluster, faults):
    rule = ["INPUT", "-p", "tcp", "--dport", "6817", "-j", "DROP"]
    with faults.planned("the network to slurmctld is dropped"):
        try:
            with unchanged(cluster, lasting=5):
                firewall(cluster, "-I", *rule)
        finally:
            firewall(cluster, "-D", *rule)
        recovered(cluster)


def test_slurmd_is_restarted(cluster, faults):
    jobs = {service: set(cluster.jobs(service)) for service in SERVICES}
    with faults.planned("slurmd is restarted on every node"):
        for host in ("n1", "n2"):
            cluster.run(host, "systemctl", "restart", "slurmd")
        cluster.ticks(5)
    assert {service: set(cluster.jobs(service)) for service in SERVICES} == jobs


LIES = {
    "hangs": "exec sleep 1000",
    "prints garbage": "echo 'slurm says: nothing to see here'",
    "prints an empty list, with exit status 0": "exit 0",
    "lists only half of the jobs": '/usr/bin/squeue "$@" | head -n 2',
}


@pytest.mark.parametrize("what", LIES)
def test_squeue_lies(cluster, faults, what):
    place = "/usr/local/bin/squeue"  # before /usr/bin
    with faults.planned(f"squeue {what}"):
        try:
            with unchanged(cluster, lasting=5):
                cluster.run("head", "sh", "-c", f"cat >{place} && chmod 755 {place}", stdin=f"#!/bin/sh\n{LIES[what]}\n")
        finally:
            cluster.run("head", "rm", "-f", place)
        recovered(cluster)

"""Replicas that cannot start: the service goes on with what serves, people are told why, and the queue is left alone."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.trixie


def test_a_broken_revision_never_replaces_the_one_that_serves(cluster, faults):
    before = set(cluster.jobs("demo"))
    with faults.planned("a new revision whose llama-server does not start") as notes, cluster.service_as("demo", flags=["--no-such-flag"]):
        told = lambda: [trouble for trouble in cluster.status()["troubles"] if "keep failing" in trouble]  # noqa: E731
        seconds = cluster.until(told, "a crash loop is told")
        assert "no-such-flag" in told()[0], "the last lines of the job's log"
        alive = cluster.run("head", "squeue", "-h", "-n", "ptolemy-demo", "-o", "%A").split()
        assert before <= set(map(int, alive))
        assert len(alive) <= len(before) + 1
        notes.append(f"told with the log's last lines after {seconds:.0f} s")
        journal = "journalctl -u ptolemyd --since '-5 min' | grep -c ' demo: replicas of .*keep failing' || true"
        logged = lambda: int(cluster.run("head", "sh", "-c", journal))  # noqa: E731
        cluster.until(logged, "journald has the line, too")  # it reads the daemon's output when it comes to it
        assert logged() == 1
    cluster.until_ready()
    assert before == set(cluster.jobs("demo"))


CACHE = "/var/cache/ptolemy-models"
MODEL = "import json; print(json.load(open('/etc/ptolemy/services.json'))['services']['demo']['model_path'])"


def test_a_node_on_which_replicas_fail_is_avoided(cluster, faults):
    bad, good = "n1", "n2"
    cluster.until(lambda: not cluster.jobs("nap"), "nap sleeps, and the bad node has free GPUs")
    model = cluster.run("head", "python3", "-c", MODEL).strip()
    with faults.planned("the node that Slurm prefers has lost the model's file") as notes:
        weigh(cluster, {bad: 1, good: 100})
        cluster.run(bad, "mv", model, f"{model}.away")
        cluster.run(bad, "mv", CACHE, f"{CACHE}.away")  # else it would serve the copy that it has
        try:
            # A revision of its own: other services share the one of `demo`, and would avoid the node, too.
            with cluster.service_as("demo", min=3, max=3, context=1010):
                told = lambda: any(f"avoiding {bad}" in trouble for trouble in cluster.status()["troubles"])  # noqa: E731
                notes.append(f"told and avoided after {cluster.until(told, 'the node is avoided'):.0f} s")
                cluster.until(lambda: cluster.service("demo")["replicas_ready"] == 3, "3 serve all the same")
                new = [row for row in cluster.service("demo")["replicas"] if row["revision"] == cluster.service("demo")["revision"]]
                assert {row["host"] for row in new} == {good}
        finally:
            cluster.run(bad, "mv", f"{model}.away", model)
            cluster.run(bad, "sh", "-c", f"rm -rf {CACHE} && mv {CACHE}.away {CACHE}")
            weigh(cluster, {bad: 1, good: 1})
    cluster.until_ready()


def weigh(cluster, weights):
    """Slurm fills nodes of a smaller weight first."""
    for node, weight in weights.items():
        cluster.run("head", "scontrol", "update", f"NodeName={node}", f"Weight={weight}")

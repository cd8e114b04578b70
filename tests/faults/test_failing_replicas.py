"""Replicas that cannot start: the service goes on with what serves, people are told why, and the queue is left alone."""

from __future__ import annotations


def submissions(cluster, service):
    return cluster.run("head", "sh", "-c", f"journalctl -u ptolemyd --since '-10 min' | grep -c 'submit {service}' || true").strip()


def test_a_broken_revision_never_replaces_the_one_that_serves(cluster, faults):
    before = set(cluster.jobs("demo"))
    with faults.planned("a new revision whose llama-server does not start") as notes, cluster.service_as("demo", flags=["--no-such-flag"]):
        told = lambda: [trouble for trouble in cluster.status()["troubles"] if "keep failing" in trouble]  # noqa: E731
        seconds = cluster.until(told, "a crash loop is told", 180)
        assert "no-such-flag" in told()[0], "the last lines of the job's log"
        alive = cluster.run("head", "squeue", "-h", "-n", "ptolemy-demo", "-o", "%A").split()
        assert before <= set(map(int, alive))
        assert len(alive) <= len(before) + 1
        notes.append(f"told with the log's last lines after {seconds:.0f} s")
        logged = cluster.run("head", "sh", "-c", "journalctl -u ptolemyd --since '-5 min' | grep -c ' demo: .*keep failing' || true")
        assert int(logged) == 1
    cluster.until_ready()
    assert before == set(cluster.jobs("demo"))


def test_a_node_on_which_replicas_fail_is_avoided(cluster, faults):
    host = cluster.service("demo")["replicas"][0]["host"]
    model = cluster.run(
        "head", "python3", "-c", "import json; print(json.load(open('/etc/ptolemy/services.json'))['services']['demo']['model_path'])"
    ).strip()
    with faults.planned("a node has lost the model's file") as notes:
        cluster.run(host, "mv", model, f"{model}.away")
        try:
            with cluster.service_as("demo", min=4, max=4):
                seconds = cluster.until(lambda: cluster.service("demo")["replicas_ready"] == 4, "4 serve all the same", 180)
                notes.append(f"4 replicas serve, the new ones elsewhere, after {seconds:.0f} s")
                assert any(f"avoiding {host}" in trouble for trouble in cluster.status()["troubles"])
                new = cluster.service("demo")["replicas"][2:]
                assert {row["host"] for row in new} == {"n1", "n2"} - {host}
        finally:
            cluster.run(host, "mv", f"{model}.away", model)
    cluster.until_ready()

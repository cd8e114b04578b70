"""These tests need a cluster that is up: lab/verify runs them."""

from cluster_host import cluster, shared  # noqa: F401

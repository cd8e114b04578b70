"""These tests need a lab whose head is a login node (LAB_CLIENT=yes): lab/verify runs them there."""

from cluster_host import cluster, shared  # noqa: F401

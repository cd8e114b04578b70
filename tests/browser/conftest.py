"""These tests need a lab that is up and Chromium: make test-browser."""

from cluster_host import cluster, shared  # noqa: F401

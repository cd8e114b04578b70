"""Ptolemy's control plane: values, planners, Slurm and HAProxy adapters, daemon, replica runner.

Standard library only and relative imports only, so that one directory serves the Ansible modules (packed as
``ansible.module_utils.ptolemy``), the daemon and the replica jobs (installed as the package ``ptolemy``) and pytest.
"""

from __future__ import annotations

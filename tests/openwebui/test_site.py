"""What an administrator relies on: no look-ups outside, no leaks, a second run that changes nothing, services that come back."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import httpx2

from cluster_host import in_network_of, playbook
from openwebui_lab import ADMIN, CATEGORY, QUESTION, OpenWebUI, counted, ready

READABLE = "find /etc /opt/openwebui/*/environment /var/lib/openwebui -type f -perm /o+r -size -64k"


@contextlib.contextmanager
def nothing_but_the_lab(cluster) -> Iterator[None]:
    """Open WebUI's host reaches the lab's network alone, and each look-up and packet to elsewhere is refused and counted."""
    network = subprocess.run(
        ["podman", "network", "inspect", "--format", "{{(index .Subnets 0).Subnet}}", cluster.prefix],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    rules = [
        ["OUTPUT", "-p", "udp", "--dport", "53", "-j", "REJECT"],
        ["OUTPUT", "-p", "tcp", "--dport", "53", "-j", "REJECT"],
        ["OUTPUT", "!", "-o", "lo", "!", "-d", network, "-j", "REJECT"],
    ]
    try:
        for rule in rules:
            subprocess.run(in_network_of(cluster, "web", "iptables", "-A", *rule), check=True, capture_output=True, timeout=60)
        yield
    finally:
        for rule in rules:
            subprocess.run(in_network_of(cluster, "web", "iptables", "-D", *rule), check=False, capture_output=True, timeout=60)


def test_it_starts_and_works_without_one_look_up_outside(cluster, url, secrets):
    with nothing_but_the_lab(cluster):
        cluster.run("web", "systemctl", "restart", "openwebui")
        cluster.until(lambda: ready(url), "Open WebUI is ready")
        with OpenWebUI(url, ADMIN, secrets["openwebui_admin_password"]) as admin:
            assert admin.chat(QUESTION) == CATEGORY
            admin.upload(cluster, "notes.txt", "Nothing of this leaves the site.")
        assert counted(cluster) == 0
        # The counters do count.
        cluster.run("web", "getent", "hosts", "outside.example.org", check=False)
        assert counted(cluster) > 0


def test_no_secret_is_in_a_log_an_argument_or_a_diff(cluster, admin, secrets):
    again = playbook("openwebui", "--diff", "-v")
    assert again.changed == 0
    places = {
        "the run": again.shown,
        "web's journal": cluster.run("web", "journalctl", "--no-pager"),
        "web's processes": cluster.run("web", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        "head's journal": cluster.run("head", "journalctl", "--no-pager", "-t", "haproxy"),
        "web's files that all may read": cluster.run("web", "sh", "-c", f"{READABLE} -exec cat {{}} + | tr -cd '[:print:]\\n'"),
    }
    leaks = [(name, place) for name, secret in secrets.items() for place, text in places.items() if secret in text]
    assert leaks == []
    mode = cluster.run("web", "sh", "-c", "stat -c '%a %U' /opt/openwebui/current/environment").strip()
    assert mode == "600 root"


def test_its_processes_see_no_more_than_their_own_data(cluster):
    pid = cluster.run("web", "systemctl", "show", "--property=MainPID", "--value", "openwebui").strip()
    status = cluster.run("web", "cat", f"/proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    inside = ("nsenter", "--target", pid, "--mount", "runuser", "-u", "openwebui", "--", "sh", "-c")
    assert cluster.run("web", *inside, "touch /opt/openwebui/x /usr/x 2>&1; echo $?", check=False).strip().endswith("1")
    assert cluster.run("web", *inside, "touch /var/lib/openwebui/x && rm /var/lib/openwebui/x; echo $?").strip() == "0"


def test_people_chat_again_after_a_restart_of_postgresql_and_of_the_gateway(cluster, admin):
    for host, unit in (("web", "postgresql"), ("head", "haproxy")):
        cluster.run(host, "systemctl", "restart", unit)

        def answered() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return admin.chat(QUESTION) == CATEGORY
            return False

        cluster.until(answered, f"a chat in the same session after a restart of {unit}")

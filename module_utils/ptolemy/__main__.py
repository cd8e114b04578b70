"""The command ``ptolemy``.

``status``, ``top``, ``wait``, ``keys`` and ``usage`` are for people, ``daemon`` and ``exporter`` for systemd, ``replica``,
``quantize`` and ``tune`` for jobs, ``scrape-keys`` for Ansible.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time

from . import daemon, exporter, keys_command, quantize, replica, scrape, status, top, tune, usage_command
from .config import DEFAULT_PATH, load
from .errors import PtolemyError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="ptolemy", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    show = commands.add_parser("status", help="show services, replicas, endpoints and servers")
    show.add_argument("--json", action="store_true", help="print what the daemon wrote, as JSON")
    live = commands.add_parser("top", help="show the status page in the terminal, live; q or Ctrl-C ends")
    live.add_argument("--once", action="store_true", help="show it once; also where there is no terminal")
    live.add_argument("--url", default=top.DEFAULT_URL, help=f"where the document is (default: {top.DEFAULT_URL})")
    patience = commands.add_parser("wait", help="wait until every service has all its replicas ready")
    patience.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="give up after this time (default: 900)")
    commands.add_parser("check", help="check the services file")
    keys_command.add_arguments(commands.add_parser("keys", help="add, list, rotate and revoke the keys of clients"))
    usage_command.add_arguments(commands.add_parser("usage", help="show who used how much in a month"))
    commands.add_parser("daemon", help="run the control loop (systemd starts it)")
    metrics = commands.add_parser("exporter", help="answer Prometheus and the status page from what the daemon wrote (systemd starts it)")
    metrics.add_argument("--listen", default="127.0.0.1:9177", metavar="HOST:PORT", help="(default: 127.0.0.1:9177)")
    metrics.add_argument("--backend-key", default="", metavar="FILE", help="the key of llama-servers, to ask them for their counts")
    scraping = commands.add_parser("scrape-keys", help="give Prometheus the keys of llama-servers, a file a service (roles/monitoring)")
    scraping.add_argument("--backend-key", required=True, metavar="FILE", help="the site's key, from which they are made")
    scraping.add_argument("--into", required=True, metavar="DIR", help="where the files are to be")
    scraping.add_argument("--group", default="prometheus", help="who may read them (default: prometheus)")
    commands.add_parser("replica", help="serve one replica, its spec on standard input (the job script starts it)")
    commands.add_parser("quantize", help="quantise a model, the spec on standard input (playbooks/quantize.yml starts it as a job)")
    tuning = commands.add_parser(
        "tune", help="find the best setting of a service's servers on one GPU (playbooks/tune.yml starts it as a job)"
    )
    tuning.add_argument("spec", nargs="?", default="-", metavar="FILE", help="its spec, as JSON (default: standard input)")
    for command in (show, live, patience, metrics, scraping, *(commands.choices[name] for name in ("check", "daemon", "keys"))):
        command.add_argument("--services", default=DEFAULT_PATH, metavar="FILE", help=f"the services file (default: {DEFAULT_PATH})")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 not so, 2 wrong usage or configuration."""
    given = parser().parse_args(arguments)
    try:
        if given.command == "replica":
            return replica.main()
        if given.command == "quantize":
            return quantize.main()
        if given.command == "tune":
            return tune.main(given.spec)
        if given.command == "daemon":
            return daemon.main(given.services)
        if given.command == "usage":
            print("\n".join(usage_command.run(given, datetime.date.today())))
            return 0
        config = load(given.services)
        if given.command == "keys":
            print("\n".join(keys_command.run(given, config)))
            return 0
        if given.command == "scrape-keys":
            for line in scrape.write_keys(config.services, given.backend_key, given.into, given.group):
                print(line)
            return 0
        path = config.site.status_file
        if given.command == "check":
            return 0
        if given.command == "exporter":
            return exporter.main(given.services, given.listen, given.backend_key)
        if given.command == "top":
            return top.main(config, given.url, given.once)
        if given.command == "wait":
            return 0 if status.wait(path, given.timeout) else 1
        seen = status.read(path)
        print(json.dumps(seen, indent=2) if given.json else "\n".join(status.render(seen, time.time())))
        return 0
    except PtolemyError as error:
        print(f"ptolemy: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

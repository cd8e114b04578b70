#!/usr/bin/env bash
# What the hosts of a lab say about themselves, for a failed run: journals, jobs, job logs, HAProxy's servers.
#   lab/diagnose.sh [prefix]     (ptolemy-lab)
set -u
prefix=${1:-ptolemy-lab}

section() { printf '\n----- %s: %s\n' "$1" "$2"; }
# A host that does not answer must not hold up the rest.
on() {
  local host=$1 title=$2
  shift 2
  section "$prefix-$host" "$title"
  timeout 20 podman exec "$prefix-$host" sh -c "$*" 2>&1 || echo "(exit $?)"
}

section "$prefix" containers
podman ps --all --filter "label=io.ptolemy.lab=$prefix" --format 'table {{.Names}}  {{.Status}}  {{.Image}}'
for host in head n1 n2; do
  podman container exists "$prefix-$host" || continue
  on "$host" 'failed units' 'systemctl list-units --failed --no-legend --plain'
  on "$host" 'journal of munge, Slurm, HAProxy, ptolemyd' \
    'journalctl --no-pager -o short-precise -n 60 -u munge -u slurmctld -u slurmd -u haproxy -u ptolemyd -u prometheus'
  on "$host" 'Slurm logs' 'tail -n 30 /var/log/slurm/*.log 2>/dev/null'
done
if podman container exists "$prefix-head"; then
  on head sinfo 'sinfo -N -l'
  on head squeue 'squeue -a -o "%.8i %.20j %.10u %.12T %.10M %.6D %R %k"'
  on head 'scontrol show job' 'scontrol -o show job | tail -n 10'
  on head 'ptolemy status' 'ptolemy status'
  # Bash-free and socat-free: python3 is on every host.
  on head 'HAProxy show stat' "python3 - <<'PYTHON'
import csv, io, socket
answer = b''
with socket.socket(socket.AF_UNIX) as admin:
    admin.settimeout(5)
    admin.connect('/run/haproxy/admin.sock')
    admin.sendall(b'show stat\n')
    while piece := admin.recv(65536):
        answer += piece
names = ('pxname', 'svname', 'status', 'check_status', 'scur', 'qcur', 'stot', 'econ', 'eresp', 'wretr', 'lastchg', 'addr')
for row in csv.DictReader(io.StringIO(answer.decode().lstrip('# '))):
    print(*(row.get(name) or '-' for name in names))
PYTHON"
fi
if podman container exists "$prefix-web"; then
  on web 'failed units' 'systemctl list-units --failed --no-legend --plain'
  on web 'journal of Open WebUI and PostgreSQL' 'journalctl --no-pager -o short-precise -n 100 -u "openwebui*" -u "postgresql*"'
fi
for host in n1 n2; do
  podman container exists "$prefix-$host" || continue
  on "$host" 'job logs' 'ls -t /var/log/ptolemy/*.log 2>/dev/null | head -n 3 | xargs -r tail -n 30'
done
exit 0

"""Makes files/dashboards/*.json for Grafana; run it after a change: python roles/monitoring/dashboards/make.py.

A dashboard is its panels' queries; the rest is the same for all.
The form is Grafana's dashboard JSON model, https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

FILES = Path(__file__).parents[1] / "files" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "ptolemy"}  # as templates/grafana-datasources.yml.j2 names it
HEIGHT, WIDTH = 8, 24  # Grafana's grid
ENDPOINT = "job {{replica}}, {{node}} GPU {{gpu}}"
DCGM = "Needs NVIDIA's DCGM exporter on the compute nodes (monitoring_dcgm_port)."


def panel(title: str, unit: str, *queries: tuple[str, str], kind: str = "timeseries", words: str = "", width: int = 12) -> dict[str, Any]:
    """One panel.

    Args:
        title: stands above it.
        unit: Grafana's name of it.
        queries: PromQL and the legend, in which {{label}} is a label's value.
        kind: Grafana's name of the picture.
        words: what a reader must know of it.
        width: of the grid's 24 columns.
    """
    least = {"unit": unit} if kind == "state-timeline" else {"unit": unit, "min": 0}
    return {
        "title": title,
        "description": words,
        "type": kind,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": least, "overrides": []},
        "gridPos": {"w": width, "h": HEIGHT if width > 6 else HEIGHT // 2},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(queries)
        ],
    }


def stat(title: str, unit: str, *queries: tuple[str, str]) -> dict[str, Any]:
    """A number of today."""
    return panel(title, unit, *queries, kind="stat", width=6)


def dashboard(name: str, title: str, panels: Sequence[dict[str, Any]], of_a_service: bool = False) -> dict[str, Any]:
    """A whole dashboard, its panels placed from left to right."""
    x = y = 0
    placed: list[dict[str, Any]] = []
    for number, it in enumerate(panels, 1):
        size = it["gridPos"]
        if x + size["w"] > WIDTH:
            x, y = 0, y + placed[-1]["gridPos"]["h"]
        placed.append({"id": number, **it, "gridPos": {**size, "x": x, "y": y}})
        x += size["w"]
    variable = {
        "name": "service",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(ptolemy_slots, service)", "refId": "service"},
        "refresh": 2,
        "sort": 1,
    }
    return {
        "uid": f"ptolemy-{name}",
        "title": f"Ptolemy: {title}",
        "tags": ["ptolemy"],
        "schemaVersion": 36,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [variable] if of_a_service else []},
        "links": [{"type": "dashboards", "title": "Ptolemy", "tags": ["ptolemy"], "asDropdown": True, "keepTime": True}],
        "panels": placed,
    }


OVERVIEW = dashboard(
    "overview",
    "overview",
    [
        stat("Alerts that fire", "none", ('count(ALERTS{alertstate="firing"}) or vector(0)', "")),
        stat("Services without a server", "none", ('count(ptolemy_service_state{state="starting"} == 1) or vector(0)', "")),
        stat("Replicas", "none", ("sum(ptolemy_replicas_ready)", "ready"), ("sum(ptolemy_replicas_wanted)", "wanted")),
        stat("GPUs in use", "none", ("sum(ptolemy_gpus)", "")),
        panel("Requests", "reqps", ("service:requests:rate5m", "{{service}}")),
        panel("Tokens generated a second", "none", ("service:tokens_generated:rate5m", "{{service}}")),
        panel("Slots busy", "percentunit", ("service:slots_busy:ratio", "{{service}}")),
        panel("Oldest wait", "s", ("max by (service) (ptolemy_queue_oldest_wait_seconds)", "{{service}}")),
        panel("Replicas ready", "none", ("ptolemy_replicas_ready", "{{service}}")),
        panel(
            "To the first byte",
            "s",
            ('haproxy_backend_response_time_average_seconds{proxy=~"svc_.+"}', "{{proxy}}"),
            words="Mean of the last 1024 answers, without the wait in the queue.",
        ),
        panel("Answers with an error of the server", "percentunit", ("gateway:errors:ratio5m", "share of 5xx")),
        panel(
            "Connections of clients",
            "none",
            ('haproxy_frontend_current_sessions{proxy="api"}', "now"),
            ('haproxy_frontend_limit_sessions{proxy="api"}', "limit"),
        ),
    ],
)

SERVICE = dashboard(
    "service",
    "one service",
    [
        panel("State", "none", ('ptolemy_service_state{service="$service"} == 1', "{{state}}"), kind="state-timeline", width=24),
        panel("Replicas by state", "none", ('ptolemy_replicas{service="$service"}', "{{state}}")),
        panel(
            "Slots",
            "none",
            ('ptolemy_slots{service="$service"}', "all"),
            ('ptolemy_requests_running{service="$service"}', "busy"),
            ('ptolemy_demand_slots{service="$service"}', "demand"),
        ),
        panel("Requests that wait", "none", ('ptolemy_queue_requests{service="$service"}', "{{tier}}")),
        panel("Oldest wait", "s", ('ptolemy_queue_oldest_wait_seconds{service="$service"}', "{{tier}}")),
        panel(
            "Tokens a second",
            "none",
            ('service:tokens_generated:rate5m{service="$service"}', "generated"),
            ('service:tokens_read:rate5m{service="$service"}', "read"),
        ),
        panel(
            "Where an answer's time goes",
            "s",
            ('haproxy_backend_queue_time_average_seconds{proxy="svc_$service"}', "in the queue"),
            ('haproxy_backend_response_time_average_seconds{proxy="svc_$service"}', "to the first byte"),
            ('haproxy_backend_total_time_average_seconds{proxy="svc_$service"}', "all of it"),
        ),
        panel("Busy slots by replica", "none", ('llamacpp:requests_processing{service="$service"}', ENDPOINT)),
        panel(
            "Tokens a second by replica",
            "none",
            ('rate(llamacpp:tokens_predicted_total{service="$service"}[5m])', ENDPOINT),
        ),
        panel("Replicas that failed, and none served since", "none", ('ptolemy_replica_failures{service="$service"}', "failed")),
        panel("Replicas of an old revision", "none", ('ptolemy_replicas_outdated{service="$service"}', "old")),
    ],
    of_a_service=True,
)

TIERS = dashboard(
    "tiers",
    "batch against interactive",
    [
        panel("Requests", "reqps", ("sum by (tier) (service_tier:requests:rate5m)", "{{tier}}")),
        panel("Requests by service", "reqps", ("service_tier:requests:rate5m", "{{service}}, {{tier}}")),
        panel("Requests that wait", "none", ("sum by (tier) (ptolemy_queue_requests)", "{{tier}}")),
        panel("Oldest wait", "s", ("max by (tier) (ptolemy_queue_oldest_wait_seconds)", "{{tier}}")),
        panel(
            "Batch requests at once, of all slots",
            "none",
            ("ptolemy_batch_at_once", "{{service}}: batch"),
            ("ptolemy_slots", "{{service}}: slots"),
            words="The gate keeps slots free for people: so many batch requests are let through.",
        ),
        panel("Requests that run", "none", ("ptolemy_requests_running", "{{service}}")),
        panel("A batch request's wait at its gate", "s", ('haproxy_backend_queue_time_average_seconds{proxy=~"batch_.+"}', "{{proxy}}")),
        panel("The wait for a slot", "s", ('haproxy_backend_queue_time_average_seconds{proxy=~"svc_.+"}', "{{proxy}}")),
    ],
)

GPUS = dashboard(
    "gpus",
    "GPUs",
    [
        panel("GPUs by service", "none", ("sum by (service) (ptolemy_gpus)", "{{service}}")),
        panel("GPUs by node", "none", ("sum by (node) (ptolemy_gpus)", "{{node}}")),
        panel("Replicas that wait for a GPU", "none", ('ptolemy_replicas{state="waiting"}', "{{service}}")),
        panel("Tokens a second by node", "none", ("sum by (node) (rate(llamacpp:tokens_predicted_total[5m]))", "{{node}}")),
        panel("Busy slots by GPU", "none", ("sum by (node, gpu) (llamacpp:requests_processing)", "{{node}} GPU {{gpu}}")),
        panel("Load of the hosts", "none", ("node_load5", "{{instance}}")),
        panel(
            "Memory of the hosts in use", "percentunit", ("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{instance}}")
        ),
        panel(
            "Disks in use",
            "percentunit",
            (
                '1 - node_filesystem_avail_bytes{fstype!~"tmpfs|ramfs"} / node_filesystem_size_bytes',
                "{{instance}} {{mountpoint}}",
            ),
        ),
        panel("GPUs: utilisation", "percent", ("DCGM_FI_DEV_GPU_UTIL", "{{node}} GPU {{gpu}}"), words=DCGM),
        panel("GPUs: memory in use", "decmbytes", ("DCGM_FI_DEV_FB_USED", "{{node}} GPU {{gpu}}"), words=DCGM),
        panel("GPUs: power", "watt", ("DCGM_FI_DEV_POWER_USAGE", "{{node}} GPU {{gpu}}"), words=DCGM),
        panel("GPUs: temperature", "celsius", ("DCGM_FI_DEV_GPU_TEMP", "{{node}} GPU {{gpu}}"), words=DCGM),
    ],
)

DASHBOARDS: Mapping[str, Mapping[str, Any]] = {"overview": OVERVIEW, "service": SERVICE, "tiers": TIERS, "gpus": GPUS}


def text(of: Mapping[str, Any]) -> str:
    """The file of a dashboard: a line a panel, so that a change can be read."""
    panels = ",\n".join(f"    {json.dumps(it)}" for it in of["panels"])
    head = json.dumps({**of, "panels": []}, indent=2)
    return head.replace('"panels": []', f'"panels": [\n{panels}\n  ]') + "\n"


if __name__ == "__main__":
    for name, of in DASHBOARDS.items():
        (FILES / f"{name}.json").write_text(text(of), encoding="utf-8")

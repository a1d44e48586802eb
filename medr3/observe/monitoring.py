"""`medr3 dashboard export`: a folder that Prometheus and Grafana start from as it is.

::

    DIR/prometheus/prometheus.yml        scrapes every node of the cluster, by the list that Ray keeps of them
    DIR/prometheus/medr3_alerts.yml      alert rules; each names its section of docs/operations.md
    DIR/grafana/dashboards/medr3-*.json  made from the registry
    DIR/grafana/provisioning/            tells Grafana where both are
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from medr3.errors import UserError
from medr3.observe.alerts import rules
from medr3.observe.grafana import dashboards

ALERTS_FILE = "medr3_alerts.yml"
DISCOVERY_FILE = "prom_metrics_service_discovery.json"  # Ray's own name for it
RAY_FOLDER = Path("/tmp/ray")
SCRAPE_S = 10  # Ray's processes tell their agent as often


def export_dashboards(
    folder: Path, *, ray_folder: Path = RAY_FOLDER, prometheus: str = "http://localhost:9090", scrape_s: int = SCRAPE_S
) -> list[Path]:
    """Writes all files, over those of an earlier export, and returns them. `ray_folder` is the head node's `--temp-dir`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file: name a folder")
    texts = {
        "prometheus/prometheus.yml": _yaml(_scraping(ray_folder, scrape_s)),
        f"prometheus/{ALERTS_FILE}": _yaml(rules()),
        "grafana/provisioning/datasources/medr3.yml": _yaml(_datasource(prometheus)),
        "grafana/provisioning/dashboards/medr3.yml": _yaml(_provider(folder / "grafana" / "dashboards")),
        **{f"grafana/dashboards/{name}": json.dumps(board, indent=1) + "\n" for name, board in dashboards().items()},
    }
    written = []
    for name, text in texts.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): name a folder that may be") from None
        written.append(path)
    return written


def _scraping(ray_folder: Path, scrape_s: int) -> dict[str, Any]:
    discovered = str(ray_folder.resolve() / DISCOVERY_FILE)
    return {
        "global": {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"},
        "rule_files": [ALERTS_FILE],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [discovered], "refresh_interval": "10s"}]}],
    }


def _datasource(url: str) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "uid": "medr3-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "isDefault": True,
    }
    return {"apiVersion": 1, "datasources": [source]}


def _provider(folder: Path) -> dict[str, Any]:
    provider = {"name": "medr3", "folder": "medr3", "type": "file", "options": {"path": str(folder.resolve())}}
    return {"apiVersion": 1, "providers": [provider]}


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)

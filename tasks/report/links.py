"""Where else a run can be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.execution.run import Run
from tasks.secrets import masked

# Where `python -m flows servers` has Prefect's and MLflow's pages; it serves what runs without servers have written.
PREFECT, MLFLOW = "http://127.0.0.1:4200", "http://127.0.0.1:5000"


def links_of(run: Run, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """``text``, ``href`` and ``note`` of each page about a run, and of its file, which lies beside the page.

    Args:
        run: the run.
        summary: what it says of itself.
    """
    found = [{"text": Path(str(summary["file"])).name, "href": Path(str(summary["file"])).name, "note": ""}]
    if page := getattr(getattr(run, "tracker", None), "page", None):
        found.append({"text": "MLflow run", "href": page, "note": ""})
    elif str(summary.get("tracking_uri")).endswith("/artifacts/mlflow.db") and (place := run.tracker.place):
        found.append({"text": "MLflow run", "href": f"{MLFLOW}/{place}", "note": "while python -m flows servers runs"})
    if flow_run := summary.get("prefect_flow_run_id"):
        at = prefect_pages()
        note = "" if at else "while python -m flows servers runs"
        found.append({"text": "Prefect run", "href": f"{at or PREFECT}/runs/flow-run/{flow_run}", "note": note})
    return found


def prefect_pages() -> str | None:
    """Where Prefect's pages are; None where its server has none, as one that lives for a command."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    url = str(settings.ui_url or settings.api.url or "")
    if not url.startswith("http") or not settings.server.ui.enabled:
        return None
    return masked(url.removesuffix("/").removesuffix("/api"))

"""What Prefect's pages show of a finished run: its tags, the table of stages, the result, and links that open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.runtime import flow_run

from tasks.console import size
from tasks.execution.run import Run
from tasks.report.links import links_of
from tasks.report.outcome import outcomes_of
from tasks.report.words import compared, difference, lasted, number, percent, times


def leave_artifacts(run: Run, summary: Mapping[str, Any]) -> None:
    """Tags, table, result and, where a server has it, a link to the report; nothing outside of a flow.

    Args:
        run: the run.
        summary: what it says of itself, without secrets.
    """
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
    from prefect.client.orchestration import get_client

    if not flow_run.id:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(str(flow_run.id)), tags=tags_of(summary, list(flow_run.tags or [])))
    named = f"{run.name}, seed {run.seed}"
    create_table_artifact(key="stages", table=table_of(summary), description=named)
    create_markdown_artifact(key="result", description=compared(summary), markdown=markdown_of(run, summary))
    if page := run.tracker.page:
        create_link_artifact(
            key="report",
            link=f"{page}/artifacts/report.html",
            link_text="report.html",
            description=f"The run's whole report, served by MLflow; it lies in `{summary['folder']}` too.",
        )


def tags_of(summary: Mapping[str, Any], tags: Sequence[str]) -> list[str]:
    """The run's own tags and: the recipe's name, the seed, what the run came to, how much smaller the file is.

    Args:
        summary: of one run.
        tags: that it has already.
    """
    ours = [summary["name"], f"seed {summary['seed']}", *(one.word.lower() for one in outcomes_of(summary))]
    return list(dict.fromkeys([*tags, *ours, f"{summary['ratio']:.1f}x"]))


def table_of(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a stage with what fits Prefect's page: sizes and shares with their units."""
    metric = f"validation {summary['metric']}"
    return [
        {
            "stage": row["stage"],
            "size": size(row["size_bytes"]),
            "ratio": times(row["compression_ratio"]),
            "density": percent(row["density"], 1),
            metric: number(row["val_metric"]),
            "time": "reused" if row["cached"] else lasted(row["seconds"]),
        }
        for row in summary["stages"]
    ]


def markdown_of(run: Run, summary: Mapping[str, Any]) -> str:
    """The result as Markdown: verdict, both ends, the comparison, and links."""
    split, metric = summary["final"].get("split", "test"), summary["metric"]
    ends = [number(summary[end]["metric"]) for end in ("baseline", "final")]
    links = [f"[{one['text']}]({one['href']}){_note(one)}" for one in links_of(run, summary) if _leads_on(one["href"])]
    told = difference(summary)
    lines = [
        f"# {run.name}: {times(summary['ratio'])} smaller",
        *(f"**{one.sign} {one.word}.** {one.text}" for one in outcomes_of(summary)),
        "| | dense model | this file |\n|---|---|---|\n"
        f"| bytes | {summary['dense_bytes']:,} | {summary['file_bytes']:,} |\n"
        f"| {split} {metric} | {ends[0]} | {ends[1]} |",
        f"Compared with the dense model, sample by sample: {told}." if told else "",
        f"`{summary['file']}` was decoded in a fresh process, is bit for bit what was encoded, and was measured there.",
        " · ".join(links),
        f"MLflow run `{summary['mlflow_run_id']}` at `{summary['tracking_uri']}`",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _leads_on(href: str) -> bool:
    """A page of Prefect leads to other pages; never to itself, nor to files, which browsers do not open from there."""
    return href.startswith("http") and "/runs/flow-run/" not in href


def _note(link: Mapping[str, str]) -> str:
    return f" ({link['note']})" if link["note"] else ""

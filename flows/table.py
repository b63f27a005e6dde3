"""The closing table of a run, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.console import size


def show(summary: Mapping[str, Any]) -> None:
    """Prints one run's stages, or the mean, worst and spread of several seeds, and where the file lies."""
    console = Console(highlight=False)
    if "runs" in summary:
        _seeds(console, summary)
    else:
        _stages(console, summary)
        _verdict(console, summary)


def _stages(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table(title=f"{summary['name']}, seed {summary['seed']}", title_justify="left")
    table.add_column("stage")
    for heading in ("size", "ratio", "density", f"val {summary['metric']}", "seconds"):
        table.add_column(heading, justify="right")
    for row in summary["stages"]:
        table.add_row(
            row["stage"],
            size(row["size_bytes"]),
            f"{row['compression_ratio']:.1f}x",
            f"{row['density']:.1%}",
            f"{row['val_metric']:.4f}",
            "reused" if row["cached"] else f"{row['seconds']:.1f}",
        )
    console.print(table)


def _verdict(console: Console, summary: Mapping[str, Any]) -> None:
    baseline, final = summary["baseline"], summary["final"]
    console.print(
        f"{summary['dense_bytes']:,} -> {summary['file_bytes']:,} bytes on disk, [bold]{summary['ratio']:.1f}x[/] smaller; "
        f"decoded in a fresh process, bit for bit"
    )
    console.print(f"test {summary['metric']}: {_result(baseline)} dense -> {_result(final)} decoded file")
    console.print(f"file: {summary['file']}", soft_wrap=True)
    if summary["mlflow_run_id"]:
        console.print(f"MLflow run {summary['mlflow_run_id']} in {summary['tracking_uri']}", soft_wrap=True)


def _result(end: Mapping[str, Any]) -> str:
    if end.get("error") is None:
        return f"{end['metric']:.4f}"
    return f"{end['metric']:.2%} ({end['total'] - end['correct']} errors in {end['total']})"


def _seeds(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table(title=f"{summary['name']}, {len(summary['seeds'])} seeds", title_justify="left")
    table.add_column("seed")
    metric = summary["runs"][0]["metric"]
    for heading in ("bytes", "ratio", f"test {metric} dense", f"test {metric} file"):
        table.add_column(heading, justify="right")
    for run in summary["runs"]:
        table.add_row(
            str(run["seed"]),
            f"{run['file_bytes']:,}",
            f"{run['ratio']:.1f}x",
            _result(run["baseline"]),
            _result(run["final"]),
        )
    for which in ("mean", "worst", "spread"):
        table.add_row(
            which,
            f"{summary['file_bytes'][which]:,.0f}",
            f"{summary['ratio'][which]:.1f}x",
            f"{summary['baseline']['metric'][which]:.4f}",
            f"{summary['final']['metric'][which]:.4f}",
        )
    console.print(table)
    for run in summary["runs"]:
        console.print(f"file: {run['file']}", soft_wrap=True)

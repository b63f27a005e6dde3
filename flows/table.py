"""The closing table of a run, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.console import size
from tasks.report.words import difference
from tasks.verdict import missed, told


def show(summary: Mapping[str, Any]) -> None:
    """Prints one run's stages, or the mean, worst and spread of several seeds, and where the file lies."""
    console = Console(highlight=False)
    if "runs" in summary:
        _seeds(console, summary)
        _aims(console, summary)
    else:
        _stages(console, summary)
        _aims(console, summary)
        _result_lines(console, summary)


def _aims(console: Console, summary: Mapping[str, Any]) -> None:
    """What was asked for, and whether it was kept: nothing where nothing was asked for."""
    verdict = summary.get("verdict")
    if not verdict:
        return
    word = "[green]kept[/]" if verdict["kept"] else "[bold red]AIM MISSED[/]"
    console.print(f"{word}  {escape(verdict['text'])}", soft_wrap=True)
    if verdict["test"]:
        console.print(f"[yellow]note[/]  {escape(verdict['test'])}", soft_wrap=True)


def _stages(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table(title=f"{summary['name']}, seed {summary['seed']}", title_justify="left")
    table.add_column("stage", overflow="fold")
    for heading in ("size", "ratio", "density", "of all\nweights", f"val {summary['metric']}", "seconds"):
        table.add_column(heading, justify="right")
    for row in summary["stages"]:
        table.add_row(
            row["stage"],
            size(row["size_bytes"]),
            f"{row['compression_ratio']:.1f}x",
            f"{row['density']:.1%}",
            "" if row.get("model_density") is None else f"{row['model_density']:.1%}",
            f"{row['val_metric']:.4f}",
            "reused" if row["cached"] else f"{row['seconds']:.1f}",
        )
    console.print(table)


def _result_lines(console: Console, summary: Mapping[str, Any]) -> None:
    style = "red" if missed(summary) else "bold"
    console.print(
        f"{summary['dense_bytes']:,} -> {summary['file_bytes']:,} bytes on disk, [{style}]{summary['ratio']:.1f}x[/] "
        "smaller; the file was decoded in a fresh process, bit for bit",
        soft_wrap=True,
    )
    ends = " -> ".join(
        _result(summary[end]) + name for end, name in (("baseline", " dense"), ("final", " decoded file"))
    )
    console.print(f"{summary['final']['split']} {summary['metric']}: {ends}", soft_wrap=True)
    if told := difference(summary):
        console.print(f"compared with the dense model: {told}", soft_wrap=True)
    for one in summary.get("warnings", []):
        console.print(f"[yellow]warning:[/] {escape(one['stage'])}: {escape(one['text'])}", soft_wrap=True)
    console.print(f"file: {summary['file']}", soft_wrap=True)
    _promotion(console, summary.get("promotion"))
    if summary["mlflow_run_id"]:
        console.print(f"MLflow run {summary['mlflow_run_id']} in {summary['tracking_uri']}", soft_wrap=True)
    else:
        console.print(f"not in MLflow: {summary['tracking_uri']} was away; later: python -m flows sync", soft_wrap=True)


def _promotion(console: Console, promotion: Mapping[str, Any] | None) -> None:
    if promotion is None:
        return
    name = promotion["model"]
    if [gate["gate"] for gate in promotion["gates"]] == ["new_file"]:  # nothing was judged: it stays the champion
        console.print(f"{name}: {promotion['gates'][0]['text']}", soft_wrap=True, markup=False)
        return
    told = (
        f"version {promotion['version']} of {name} is the champion"
        if promotion["promoted"]
        else f"{name}: not promoted"
    )
    console.print(told, soft_wrap=True)
    for gate in promotion["gates"]:
        console.print(f"  {'passed' if gate['passed'] else 'FAILED'}  {gate['text']}", soft_wrap=True, markup=False)


def _result(end: Mapping[str, Any]) -> str:
    if end.get("error") is None:
        return f"{end['metric']:.4f}"
    return f"{end['metric']:.2%} ({end['total'] - end['correct']:,} errors in {end['total']:,})"


def _seeds(console: Console, summary: Mapping[str, Any]) -> None:
    metric = "error" if "error" in summary["final"] else "metric"
    shown = "{:.2%}" if metric == "error" else "{:.4f}"
    name = "error" if metric == "error" else summary["runs"][0]["metric"]
    table = Table(title=f"{summary['name']}, {len(summary['seeds'])} seeds", title_justify="left")
    table.add_column("seed")
    for heading in ("bytes", "ratio", f"test {name}, dense", f"test {name}, file"):
        table.add_column(heading, justify="right")
    rows = [
        (str(run["seed"]), run["file_bytes"], run["ratio"], run["baseline"], run["final"]) for run in summary["runs"]
    ]
    for which in ("mean", "worst", "spread"):
        ends = ({metric: summary[end][metric][which]} for end in ("baseline", "final"))
        rows.append((which, summary["file_bytes"][which], summary["ratio"][which], *ends))
    worse = {str(run["seed"]) for run in summary["runs"] if missed(run)}
    for label, count, ratio, dense, final in rows:
        cells = (f"{count:,.0f}", f"{ratio:.1f}x", shown.format(dense[metric]), shown.format(final[metric]))
        table.add_row(label, *cells, style="red" if label in worse else "")
        if label == rows[len(summary["runs"]) - 1][0]:
            table.add_section()
    console.print(table)
    for run in summary["runs"]:
        console.print(f"file: {run['file']}", soft_wrap=True)
    console.print(f"report: {summary['folder']}/report.html", soft_wrap=True)


def _of_export(summary: Mapping[str, Any], target: str) -> tuple[str, str]:
    """Bytes and milliseconds of a trial's export; nothing of what there is not."""
    one = {row["target"]: row for row in summary.get("exports") or []}.get(target, {})
    time = f"{one['latency_ms']:.3g}" if one.get("latency_ms") else ""
    return f"{one['bytes']:,}" if one.get("bytes") else "", time


def _called(trial: Mapping[str, Any]) -> Mapping[str, Any]:
    """A trial's parameters in words."""
    words: Mapping[str, Any] = trial.get("labels") or trial["parameters"]
    return words


def show_sweep(result: Mapping[str, Any]) -> None:
    """Prints a sweep's trials, smallest file first, the Pareto front marked, failures below."""
    console = Console(highlight=False)
    good = sorted((one for one in result["trials"] if not one["error"]), key=lambda one: one["summary"]["file_bytes"])
    table = Table(title=f"{result['name']}, {len(result['trials'])} trials", title_justify="left")
    for key in result["parameters"]:
        table.add_column(key.removeprefix("stages."), overflow="fold")
    targets = list(dict.fromkeys(one["target"] for trial in good for one in trial["summary"].get("exports") or []))
    exported = [heading for target in targets for heading in (f"{target} bytes", f"{target} ms")]
    for heading in ("trial", "bytes", "ratio", f"val {result['metric']}", f"test {result['metric']}", *exported):
        table.add_column(heading, justify="right")
    for one in good:
        summary, tested = one["summary"], one["test"]
        table.add_row(
            *(str(_called(one).get(key)) for key in result["parameters"]),
            f"{'* ' if one['pareto'] else ''}{one['number']}",
            f"{summary['file_bytes']:,}",
            f"{summary['ratio']:.1f}x",
            f"{summary['final']['metric']:.4f}",
            f"{tested['final']['metric']:.4f}" if tested else "",
            *(cell for target in targets for cell in _of_export(summary, target)),
            style="bold" if one["pareto"] else "",
        )
    console.print(table)
    console.print(
        f"*: Pareto front by bytes and validation (dense: {result['dense_val_metric']:.4f}); the test split was "
        "read for the chosen ones only",
        soft_wrap=True,
    )
    for one in result["trials"]:
        if one["error"]:
            console.print(f"trial {one['number']} {_called(one)} failed: {one['error']}", soft_wrap=True, markup=False)
    for one in good:
        if missed(one["summary"]):
            text = f"trial {one['number']} {told(one['summary']['verdict'])}"
            console.print(text, style="red", soft_wrap=True, markup=False)
    for one in good:
        if one["test"]:
            console.print(f"trial {one['number']}: {one['test']['folder']}/model.dcz", soft_wrap=True)
    console.print(f"picture: {result['folder']}/pareto.svg", soft_wrap=True)

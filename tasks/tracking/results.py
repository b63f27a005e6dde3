"""What MLflow has of a finished run: few results as metrics, words as tags, and the rest as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.console import size
from tasks.execution.run import Reference
from tasks.report.outcome import outcomes_of
from tasks.report.words import compared, number, times

LEFT_OUT = ("coarsened", "report")


def results_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """``file_bytes``, ``ratio``, ``test_<metric>``, ``test_difference`` (paired, of the rate of errors; else of the
    metric), ``kept`` (1 or 0, where something was asked for).

    Args:
        summary: of one run.
    """
    final, dense, verdict = summary["final"], summary["baseline"], summary.get("verdict")
    found = {"file_bytes": summary["file_bytes"], "ratio": summary["ratio"]}
    if final.get("split", "test") == "test":
        paired = summary.get("comparison")
        found[f"test_{summary['metric']}"] = final["metric"]
        found["test_difference"] = paired["difference"] if paired else final["metric"] - dense["metric"]
    return found | ({"kept": float(verdict["kept"])} if verdict else {})


def results_of_seeds(summary: Mapping[str, Any]) -> dict[str, float]:
    """The same of several seeds, under the same names: means; and beside them ``<name>_worst`` and ``<name>_spread``.

    Args:
        summary: of several seeds.
    """
    first, verdict = summary["runs"][0], summary.get("verdict")
    groups = {"file_bytes": summary["file_bytes"], "ratio": summary["ratio"]}
    if first["final"].get("split", "test") == "test":
        groups[f"test_{first['metric']}"] = summary["final"]["metric"]
    found = {name: group["mean"] for name, group in groups.items()}
    found |= {f"{name}_{which}": group[which] for name, group in groups.items() for which in ("worst", "spread")}
    return found | ({"kept": float(verdict["kept"])} if verdict else {})


def tags_of(summary: Mapping[str, Any], place: str | None) -> dict[str, str]:
    """``result`` and ``dense``, in a few words, and the text that stands first on the run's page.

    Args:
        summary: of one run.
        place: of the run at its server, as a link begins there.
    """
    split = summary["final"].get("split", "test")
    ends = {end: f"{split} {summary['metric']} {number(summary[end]['metric'])}" for end in ("baseline", "final")}
    lines = [f"**{one.sign} {one.word}** {one.text}" for one in outcomes_of(summary)]
    rows = [
        ("", "dense model", "this file"),
        ("---",) * 3,
        ("bytes", f"{summary['dense_bytes']:,}", f"**{summary['file_bytes']:,}**"),
        ("ratio", "1×", f"**{times(summary['ratio'])}**"),
        (f"{split} {summary['metric']}", *(number(summary[end]["metric"]) for end in ("baseline", "final"))),
    ]
    table = [f"| {' | '.join(row)} |" for row in rows]
    files = ("report.html", "figures/bytes.svg", "stages.json", "history.json", "model.dcz")
    links = " · ".join(f"[{name}]({place}/artifacts/{name})" for name in files) if place else ""
    return {
        "mlflow.note.content": "\n\n".join([*lines, compared(summary), "\n".join(table), links]).strip(),
        "result": f"{times(summary['ratio'])} smaller, {size(summary['file_bytes'])}, {ends['final']}",
        "dense": f"{size(summary['dense_bytes'])}, {ends['baseline']}",
    }


def stage_rows(references: Sequence[Reference], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a stage, with all of its numbers.

    Args:
        references: the stages.
        entries: as the store has them.
    """
    return [
        {
            "stage": reference.numbers["stage"],
            **{name: value for name, value in reference.numbers.items() if name not in ("stage", *LEFT_OUT)},
            **(reference.numbers.get("coarsened") or {}),
            **entry.get("figures", {}),
        }
        for reference, entry in zip(references, entries, strict=True)
    ]


def epoch_rows(references: Sequence[Reference], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each epoch of each stage that trained.

    Args:
        references: the stages.
        entries: as the store has them.
    """
    return [
        {"stage": reference.numbers["stage"], **row}
        for reference, entry in zip(references, entries, strict=True)
        for row in entry.get("history") or []
    ]


def columned(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as MLflow's pages show tables: ``columns`` and ``data``."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}

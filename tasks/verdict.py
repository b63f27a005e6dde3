"""Whether a finished run reached what was asked of it: its aims, its budget, the absolute gates of ``promote``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from deepcompression.allocation.budget import Budget, keeps, loss_of
from tasks.secrets import hidden

ABSOLUTE = ("max_metric_loss", "min_ratio")
EVENT = "deep-compression.aim-missed"


@dataclass(frozen=True)
class Aim:
    """One thing that was asked for, and whether it was reached, judged on validation.

    ``wanted`` and ``got`` are in the same unit; ``got`` is None where it is not a number. ``text``: for people.
    """

    aim: str
    kept: bool
    wanted: float
    got: float | None
    text: str


def verdict_of(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether a run kept all of its aims, as plain JSON; None where its recipe set none.

    A champion that was not beaten, or a registry that was away, is no aim: the run is then not promoted.

    Args:
        summary: of one run; ``aims``, ``budget`` and ``promotion`` in it are looked at, where present.

    Returns:
        ``kept``; ``text``, one line: what was missed, else what was kept; ``aims``; ``test``: one sentence where the
        test split says less good things than validation, by which aims are judged, else None.
    """
    aims = [*aims_in(summary), *budget_aims(summary.get("budget")), *_gates(summary.get("promotion"))]
    if not aims:
        return None
    missed = [aim for aim in aims if not aim.kept]
    text = "; ".join(aim.text for aim in missed or aims)
    return {
        "kept": not missed,
        "text": text,
        "aims": [asdict(aim) for aim in aims],
        "test": None if missed else _on_test(summary, aims),
    }


def verdict_of_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The same over runs of several seeds: kept where every one of them kept its aims."""
    known = [(one["seed"], one["verdict"]) for one in summaries if one.get("verdict")]
    if not known:
        return None
    missed = [f"seed {seed}: {verdict['text']}" for seed, verdict in known if not verdict["kept"]]
    kept = f"all {len(known)} seeds kept what was asked for"
    return {"kept": not missed, "text": "; ".join(missed) or kept, "aims": [], "test": None}


def missed(summary: Mapping[str, Any]) -> bool:
    """Whether some aim was missed; summaries of older releases have no verdict, and missed none."""
    verdict = summary.get("verdict")
    return bool(verdict) and not verdict["kept"]


def told(verdict: Mapping[str, Any]) -> str:
    """The verdict in a line, as the tag ``verdict`` of the MLflow run has it."""
    return f"{'kept' if verdict['kept'] else 'aim missed'}: {verdict['text']}"


def aims_in(summary: Mapping[str, Any]) -> list[Aim]:
    """What the recipe's ``aims`` say, as ``tasks.registry.promote.judged_aims`` judged them; none without."""
    return [Aim(**one) for one in summary.get("aims") or []]


def budget_aims(outcome: Mapping[str, Any] | None) -> list[Aim]:
    """What a budget asked for, an aim for each limit; none without a budget."""
    if outcome is None:
        return []
    step = outcome["steps"][outcome["chosen"] - 1]
    loss = [_loss_aim(outcome, step)] if outcome["metric_loss"] is not None else []
    return [*loss, *([_bytes_aim(outcome, step)] if outcome["file_bytes"] is not None else [])]


def _bytes_aim(outcome: Mapping[str, Any], step: Mapping[str, Any]) -> Aim:
    text = f"{step['file_bytes']:,} bytes, {outcome['file_bytes']:,} allowed"
    kept = outcome["kept"] or (outcome["metric_loss"] is not None and step["file_bytes"] <= outcome["file_bytes"])
    return Aim("file_bytes", kept, outcome["file_bytes"], step["file_bytes"], text)


def _loss_aim(outcome: Mapping[str, Any], step: Mapping[str, Any]) -> Aim:
    unit = "points" if outcome["in_points"] else outcome["metric"]
    text = f"{lost(step['loss'], unit)} on validation, {outcome['metric_loss']:g} allowed"
    expected = step["loss"] if step["expected_loss"] is None else step["expected_loss"]
    kept = outcome["kept"] or keeps(
        Budget(outcome["metric_loss"], None, outcome["margin"]), step["file_bytes"], step["loss"], expected
    )
    if not kept and step["loss"] <= outcome["metric_loss"]:
        text += f", but {lost(expected, unit)} expected on new samples, where {outcome['margin']:.2g} is kept back"
    return Aim("metric_loss", kept, outcome["metric_loss"], _finite(step["loss"]), text)


def lost(loss: float, unit: str) -> str:
    """A loss in words: 12.67 points lost, 0.28 points gained; never a minus zero."""
    if not math.isfinite(loss):
        return f"{unit} that are not a number lost" if unit == "points" else f"{unit} is not a number: all of it lost"
    size = f"{abs(loss):.2f}" if unit == "points" else f"{abs(loss):.4g}"
    return f"{size} {unit} {'gained' if loss < 0 and float(size) else 'lost'}"


def emit_missed(summary: Mapping[str, Any]) -> None:
    """A Prefect event for automations, ``deep-compression.aim-missed`` of the resource
    ``deep-compression.recipe.<name>``, related to the flow run; nothing outside of a flow.
    """
    from prefect.events import emit_event

    if not flow_run.id:
        return
    name, verdict = summary["name"], summary["verdict"]
    emit_event(
        event=EVENT,
        resource={"prefect.resource.id": f"deep-compression.recipe.{name}", "prefect.resource.name": name},
        related=[{"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}],
        payload=hidden(
            {
                **verdict,
                "run": Path(summary["folder"]).name,
                "file": summary["file"],
                "mlflow_run_id": summary["mlflow_run_id"],
            }
        ),
    )


def _gates(promotion: Mapping[str, Any] | None) -> list[Aim]:
    gates = promotion["gates"] if promotion else []
    return [
        Aim(gate["gate"], gate["passed"], gate["wanted"], gate["got"], gate["text"])
        for gate in gates
        if gate["gate"] in ABSOLUTE
    ]


def _on_test(summary: Mapping[str, Any], aims: Sequence[Aim]) -> str | None:
    """What is said where the test split lost more than was asked for, though validation did not."""
    limits = [aim.wanted for aim in aims if aim.aim in ("metric_loss", "max_metric_loss")]
    dense, final = summary["baseline"], summary["final"]
    if not limits or final.get("split") != "test":
        return None
    in_points = final.get("correct") is not None
    loss = loss_of(
        final["metric"], dense["metric"], higher_is_better=final.get("higher_is_better", True), in_points=in_points
    )
    if loss <= min(limits) + 1e-9:
        return None
    unit = "points" if in_points else str(summary["metric"])
    return (
        f"on the test split {lost(loss, unit)}, more than the {min(limits):g} that was asked for; what is asked for is "
        "judged on validation, so this is no missed aim"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

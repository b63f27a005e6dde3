"""What a run came to: the first that its page says, and in which colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.report.words import compared

CHAMPION = ("smaller_than_champion", "max_metric_loss_to_champion")


@dataclass(frozen=True)
class Outcome:
    """``kind``: good, doubtful or bad. ``word``: a few words; ``text``: why, in a sentence or more."""

    kind: str
    word: str
    text: str

    @property
    def sign(self) -> str:
        """What also says it without colour."""
        return {"good": "✓", "doubtful": "!", "bad": "✗"}[self.kind]


def outcomes_of(summary: Mapping[str, Any]) -> list[Outcome]:
    """Of a run's aims, and of its promotion; where it had neither, what the comparison with the dense model says.

    Args:
        summary: of one run.
    """
    found = [*_aims(summary.get("verdict")), *_promotion(summary.get("promotion"))]
    return found or [_without_aims(summary)]


def _aims(verdict: Mapping[str, Any] | None) -> Iterator[Outcome]:
    if not verdict:
        return
    if not verdict["kept"]:
        yield Outcome("bad", "Aim missed", verdict["text"])
    elif verdict.get("test"):
        yield Outcome("doubtful", "Kept", f"{verdict['text']}. {verdict['test'][:1].upper()}{verdict['test'][1:]}.")
    else:
        yield Outcome("good", "Kept", verdict["text"])


def _promotion(promotion: Mapping[str, Any] | None) -> Iterator[Outcome]:
    if not promotion:
        return
    model, failed = promotion["model"], [gate for gate in promotion["gates"] if not gate["passed"]]
    texts = "; ".join(str(gate.get("text") or gate["gate"]) for gate in failed)
    if promotion["promoted"]:
        before = promotion.get("champion")
        was = f"in place of version {before['version']}" if before else "the first one"
        yield Outcome("good", "Promoted", f"version {promotion['version']} of {model} is the champion, {was}")
    elif [gate["gate"] for gate in failed] == ["new_file"]:
        yield Outcome("good", "The champion already", f"{model}: {texts}")
    elif any(gate["gate"] in CHAMPION for gate in failed):
        yield Outcome("doubtful", "Worse than the champion", f"not promoted as {model}: {texts}")
    else:
        yield Outcome("doubtful", "Not promoted", f"{model}: {texts}")


def _without_aims(summary: Mapping[str, Any]) -> Outcome:
    found = summary.get("comparison")
    if found and found["p_value"] < 0.05:
        worse = found["broken"] > found["mended"]
        word = "Worse than the dense model" if worse else "Better than the dense model"
        return Outcome("doubtful" if worse else "good", word, f"{compared(summary)} No aim was set.")
    return Outcome("good", "Done", f"{compared(summary)} No aim was set.")

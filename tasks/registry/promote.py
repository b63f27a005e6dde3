"""Whether a finished run's file becomes the registered model's champion: gates, and the one task that applies them."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.runtime import flow_run
from prefect.states import Completed, State
from rich.markup import escape

from deepcompression.errors import RunError, one_line
from tasks.console import say
from tasks.execution.example import example_of
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK
from tasks.registry.models import Champion, Measured, Registry, package
from tasks.report import states
from tasks.secrets import hidden, know_passwords, masked, sealed
from tasks.storage.store import file_digest
from tasks.verdict import ABSOLUTE, Aim

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gate:
    """One condition and how it came out.

    ``by``: what there is to spare, or what is lacking where it has not passed, in the unit of ``wanted`` and ``got``;
    None where there is no distance. ``text``: one sentence for people.
    """

    gate: str
    passed: bool
    wanted: float | str | None
    got: float | str | None
    by: float | None
    text: str


@dataclass(frozen=True)
class Case:
    """What does not change while gates are judged.

    ``config``: the recipe's ``promote``; ``dense``: the baseline's numbers, of which ``val_metric``, ``val_correct``
    and ``val_total`` are compared; ``candidate``: the run's file; ``higher_is_better``: of the metric; ``budget``: what
    the recipe's budget and aims asked for, gates too.
    """

    config: Mapping[str, Any]
    dense: Mapping[str, Any]
    candidate: Measured
    higher_is_better: bool
    budget: Sequence[Aim] = ()

    def judge(self, champion: Champion | None) -> list[Gate]:
        """Every gate that the recipe sets, against the champion as it is now.

        Only ``new_file``, failed, where the champion is this very file.
        """
        config, file = self.config, self.candidate
        if champion and champion.measured and champion.measured.sha256 == file.sha256:
            text = f"this very file is the champion already (version {champion.version}): not registered again"
            return [Gate("new_file", False, "a file that is not the champion", file.sha256, None, text)]
        gates = self.absolute()
        if config["smaller_than_champion"]:
            gates.append(_against(champion, file, "smaller_than_champion", self._size))
        if config["max_metric_loss_to_champion"] is not None:
            gates.append(_against(champion, file, "max_metric_loss_to_champion", self._loss_to_champion))
        return gates

    def absolute(self) -> list[Gate]:
        """The gates that need no champion, and so no registry."""
        gates = [
            Gate("aims" if aim.aim in ABSOLUTE else "budget", aim.kept, aim.wanted, aim.got, None, aim.text)
            for aim in self.budget
        ]
        if (limit := self.config["max_metric_loss"]) is not None:
            gates.append(self._loss("max_metric_loss", limit, self.dense, "the dense model's"))
        if (least := self.config["min_ratio"]) is not None:
            gates.append(_ratio(least, self.candidate.ratio))
        return gates

    def _size(self, name: str, other: Measured, who: str) -> Gate:
        count, most = self.candidate.file_bytes, other.file_bytes - 1
        over = "" if count <= most else f", {count - most:,} too many"
        text = f"the file has {count:,} bytes, {who} has {most + 1:,}; fewer wanted{over}"
        return Gate(name, count <= most, most, count, abs(count - most), text)

    def _loss_to_champion(self, name: str, other: Measured, who: str) -> Gate:
        metric = self.candidate.metric
        if other.metric != metric:
            text = f"{who} was measured by {other.metric}, this run by {metric}; use the same, or another promote.model"
            return Gate(name, False, other.metric, metric, None, text)
        return self._loss(name, self.config[name], vars(other), f"that of {who}")

    def _loss(self, name: str, limit: float, before: Mapping[str, Any], than: str) -> Gate:
        lost, unit = metric_loss(before, vars(self.candidate), self.higher_is_better)
        if not math.isfinite(lost):  # passes nothing
            text = f"validation {self.candidate.metric} is not a number, here or in {than}: it cannot be compared"
            return Gate(name, False, limit, None, None, text)
        passed = lost <= limit or math.isclose(lost, limit, rel_tol=1e-9)
        worse = f"{abs(lost):.4g}{unit} {'better' if lost < 0 else 'worse'} than" if lost else "as good as"
        over = "" if passed else f", {lost - limit:.4g} too many"
        text = f"validation {self.candidate.metric} is {worse} {than}; at most {limit:g}{unit} worse allowed{over}"
        return Gate(name, passed, limit, lost, abs(limit - lost), text)


def metric_loss(before: Mapping[str, Any], after: Mapping[str, Any], higher_is_better: bool) -> tuple[float, str]:
    """How much worse ``after`` is than ``before`` on the same data (negative: better), and the words for its unit.

    Percentage points where samples are right or wrong, from the counts, so that one error in 1,000 is 0.1 exactly;
    else the metric's own unit.
    """
    sign = 1 if higher_is_better else -1
    if before["val_correct"] is not None and after["val_correct"] is not None:
        return sign * 100 * (before["val_correct"] - after["val_correct"]) / after["val_total"], " points"
    return sign * (before["val_metric"] - after["val_metric"]), ""


def _ratio(least: float, ratio: float) -> Gate:
    lacking = "" if ratio >= least else f", {least - ratio:.4g}x short"
    text = f"the file is {ratio:.1f}x smaller than the dense model; at least {least:g}x wanted{lacking}"
    return Gate("min_ratio", ratio >= least, least, ratio, abs(ratio - least), text)


def _against(
    champion: Champion | None, file: Measured, name: str, compare: Callable[[str, Measured, str], Gate]
) -> Gate:
    """What ``compare`` says, where there is a champion and it was measured on the same data."""
    if champion is None:
        return Gate(name, True, None, None, None, "there is no champion yet: the first version has none to beat")
    other, who = champion.measured, f"champion version {champion.version}"
    instead = "use another promote.model, or take the alias champion from it, and run again"
    if other is None:
        text = f"{who} was not registered by a run, so nothing is known to compare with; {instead}"
        return Gate(name, False, "a champion that a run registered", who, None, text)
    if other.data_digest != file.data_digest:
        text = f"{who} ({other.run}) was measured on other data, which does not compare; {instead}"
        return Gate(name, False, other.data_digest, file.data_digest, None, text)
    return compare(name, other, who)


@task(name="promote", **TASK)
@sealed
def promote(
    run: Run,
    label: str,
    config: dict[str, Any],
    baseline: Reference,
    encoded: Reference,
    path: str,
    aims: Sequence[Aim] = (),
) -> State[dict[str, Any]]:
    """Registers the run's file and makes it the champion if every gate passes; an event says how it came out.

    A registry that is away, or a model that MLflow cannot load, sinks no run: the result says so.

    Args:
        run: the run.
        label: the task's name.
        config: the recipe's ``promote``.
        baseline: the dense model.
        encoded: the file's stage.
        path: the file.
        aims: of the recipe, and of its budget; a file that misses one does not become the champion.

    Returns:
        Plain JSON: ``model``, ``promoted``, ``version`` (None unless promoted), ``champion`` (the one before, or
        None) and ``gates``.
    """
    run.ready()
    promotion: dict[str, Any] = hidden(_promote(run, config, baseline, encoded, Path(path), aims))
    _tell(run, promotion)
    emit_event(run, promotion)
    return Completed(message=states.promoted(promotion), data=promotion)


def judged_aims(
    run: Run, aims: Mapping[str, Any], baseline: Reference, encoded: Reference, path: str
) -> list[dict[str, Any]]:
    """The recipe's ``aims``, each as a ``tasks.verdict.Aim`` in plain JSON; a registry is not needed.

    Args:
        run: the run.
        aims: ``max_metric_loss`` and ``min_ratio``, either of them None.
        baseline: the dense model.
        encoded: the file's stage.
        path: the file.
    """
    measured = _measured(run, baseline, encoded, Path(path))
    case = Case(aims, baseline.numbers, measured, bool(run.metric_object().higher_is_better))
    return [asdict(Aim(one.gate, one.passed, one.wanted, one.got, one.text)) for one in case.absolute()]


def emit_event(run: Run, promotion: Mapping[str, Any]) -> None:
    """A Prefect event for automations; none where the champion is this very file, or outside of a flow.

    ``deep-compression.promoted`` or ``deep-compression.not-promoted`` of the resource
    ``deep-compression.model.<model>``, related to the flow run, with the promotion as payload.
    """
    from prefect.events import emit_event as emit

    if not flow_run.id or [gate["gate"] for gate in promotion["gates"]] == ["new_file"]:
        return
    model = promotion["model"]
    emit(
        event=f"deep-compression.{'promoted' if promotion['promoted'] else 'not-promoted'}",
        resource={"prefect.resource.id": f"deep-compression.model.{model}", "prefect.resource.name": model},
        related=[{"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}],
        payload={**promotion, "run": Path(run.folder).name, "mlflow_run_id": run.tracker.run_id},
    )


def _promote(
    run: Run, config: Mapping[str, Any], baseline: Reference, encoded: Reference, file: Path, aims: Sequence[Aim]
) -> dict[str, Any]:
    there, candidate = Registry(run.tracker.uri, config["model"]), _measured(run, baseline, encoded, file)
    case = Case(config, baseline.numbers, candidate, bool(run.metric_object().higher_is_better), aims)
    champion, gates, version = None, [], None
    try:
        if run.tracker.offline:
            raise RunError("it was given up earlier in this run")
        champion = there.champion()
        gates = case.judge(champion)
        with tempfile.TemporaryDirectory() as made:
            if _all_passed(gates):
                gates += _packaged(run, file, config["inputs"], Path(made))
            if _all_passed(gates):
                version, champion, gates = _crown(there, run, Path(made), case, champion)
    except Exception as error:  # whatever a server, its client or its artifact store throws, the run is finished
        gates = [*(gates or case.absolute()), _away(run.tracker.uri, error)]
    return {
        "model": config["model"],
        "promoted": version is not None,
        "version": version,
        "champion": {"version": champion.version, **_plain(champion.measured)} if champion else None,
        "gates": [asdict(gate) for gate in gates],
    }


def _crown(
    there: Registry, run: Run, folder: Path, case: Case, champion: Champion | None
) -> tuple[int | None, Champion | None, list[Gate]]:
    """Registers and moves the alias; the gates were judged against what the alias names just before."""
    run_id = run.tracker.run_id
    if run_id is None:
        raise RunError("it has not taken the run either")
    model_id = there.upload(folder / "model", run_id)
    version, gates = there.register(model_id, run_id, case.candidate), case.judge(champion)
    while (now := there.champion()) is not None and (champion is None or now.version != champion.version):
        champion, gates = now, case.judge(now)
        if not _all_passed(gates):
            there.withdraw(version, model_id)
            return None, champion, gates
    there.crown(version)
    return version, champion, gates


def _packaged(run: Run, file: Path, inputs: Sequence[str] | None, folder: Path) -> list[Gate]:
    """Nothing, or the failed gate ``model``: what a factory or a data set throws is not known in advance."""
    try:
        package(run, file, example_of(run, inputs), folder)
    except Exception as error:
        log.debug("packaging failed", exc_info=error)
        reason = one_line(error) or type(error).__name__
        text = f"the model cannot be handed to MLflow: {reason}; nothing is registered"
        return [Gate("model", False, "a model that answers by itself", reason, None, text)]
    return []


def _away(uri: str, error: Exception) -> Gate:
    log.debug("promotion failed", exc_info=error)
    know_passwords(uri)
    reason = masked(one_line(error) or type(error).__name__)[:160]
    text = (
        f"the registry at {masked(uri)} does not take this ({reason}): nothing is promoted; the same command again, "
        "once it answers, reuses all finished stages and promotes"
    )
    return Gate("registry", False, f"an answer of {masked(uri)}", reason, None, text)


def _measured(run: Run, baseline: Reference, encoded: Reference, file: Path) -> Measured:
    count = file.stat().st_size
    return Measured(
        run=Path(run.folder).name,
        sha256=file_digest(file),
        file_bytes=count,
        ratio=baseline.numbers["dense_bytes"] / count,
        metric=str(run.metric_object().name),
        **{name: encoded.numbers[name] for name in ("val_metric", "val_correct", "val_total")},
        data_digest=run.data_identity().digest,
    )


def _tell(run: Run, promotion: Mapping[str, Any]) -> None:
    """One line: the new champion, or each gate that failed; and a tag of the MLflow run."""
    model, before = promotion["model"], promotion["champion"]
    failed = [gate for gate in promotion["gates"] if not gate["passed"]]
    if promotion["promoted"]:
        was = f"before: version {before['version']}" if before else "the first one"
        say(f"promote: {model} version {promotion['version']} is the champion ({was})")
    for gate in failed:
        say(f"promote: [yellow]{model} not promoted[/], {gate['gate']}: {escape(gate['text'])}")
    outcome = f"version {promotion['version']}" if promotion["promoted"] else "not promoted"
    run.tracker.tags({"promotion": " ".join([model, outcome, *(gate["gate"] for gate in failed)])})


def _all_passed(gates: Sequence[Gate]) -> bool:
    return all(gate.passed for gate in gates)


def _plain(measured: Measured | None) -> dict[str, Any]:
    values = asdict(measured) if measured else {}
    return {name: _finite(value) if isinstance(value, float) else value for name, value in values.items()}


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None

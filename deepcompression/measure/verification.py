"""``python -m deepcompression.measure.verification``, in a new process:
is a file what was encoded, and how good is it?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcompression.codec import file
from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.edits import Edit
from deepcompression.codec.file import records
from deepcompression.formats import safetensors
from deepcompression.measure import significance

if TYPE_CHECKING:
    from deepcompression.measure.predictions import Watched


def verify(request: Mapping[str, Any]) -> dict[str, Any]:
    """Decodes a file, compares it with what went in, evaluates it and the baseline on the test split.

    Args:
        request: ``file``, ``reference`` and ``baseline`` (paths; the latter two safetensors), ``model``,
            ``data``, ``step``, ``metric`` (``{factory, kwargs}``; the last three may be None), ``compute``,
            ``threads``, ``python_path``; and ``edits``, those that went in, where there are any; ``predictions``: where
            a file of what was answered goes (``measure.predictions.write``), where it is wanted.

    Returns:
        ``identical``, ``differs`` (a tensor's name, "edits" or None), and, where there is data, ``baseline`` and
        ``final``: each ``metric``, ``loss``, ``total``, ``higher_is_better``; where scores are 0/1, ``correct``,
        ``accuracy``, ``error``; and ``comparison``: a significance.Comparison and its ``sentence``, or None.
    """
    differs = difference(file.load(request["file"], raw=True), safetensors.read(Path(request["reference"])))
    if differs is None and records(None, _edits(request["file"])) != records(None, request.get("edits")):
        differs = "edits"
    answer: dict[str, Any] = {"identical": differs is None, "differs": differs}
    return answer | _evaluations(request) if request["data"] else answer


def difference(one: Mapping[str, RawTensor], other: Mapping[str, RawTensor]) -> str | None:
    """The first tensor that differs in name, dtype, shape or a bit, or None."""
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            return name
        a, b = one[name], other[name]
        if a.dtype != b.dtype or not np.array_equal(a.bits, b.bits):
            return name
    return None


def _edits(path: str) -> list[Edit]:
    with file.File(path) as opened:
        return opened.edits


def _evaluations(request: Mapping[str, Any]) -> dict[str, Any]:
    """torch is imported here alone: comparing bits does without."""
    import torch
    from safetensors.torch import load_file

    from deepcompression import factory
    from deepcompression.data.splits import as_splits
    from deepcompression.formats import state_dict as files
    from deepcompression.measure import predictions

    sys.path[:0] = request["python_path"]
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    named = request["data"]["factory"]
    test = as_splits(factory.build(named, request["data"]["kwargs"]), named).test
    ends = {
        "baseline": (load_file(request["baseline"]), request.get("baseline_edits") or []),
        "final": (files.load(request["file"]), _edits(request["file"])),
    }
    ordered = _in_order(test)
    dense = _watched(request)
    results = {"baseline": _evaluation(request, *ends["baseline"], test, dense)}
    final = dense
    if _alike(*ends.values()):
        results["final"] = results["baseline"]
    else:
        final = _watched(request, dense if ordered else None)
        results["final"] = _evaluation(request, *ends["final"], test, final)
    if request.get("predictions"):
        predictions.write(Path(request["predictions"]), dense, final)
    found: dict[str, Any] = {name: numbers for name, (numbers, _) in results.items()}
    return found | {"comparison": _comparison(*results.values()) if ordered else None}


def _watched(request: Mapping[str, Any], before: Watched | None = None) -> Watched:
    from deepcompression.measure.predictions import Watched
    from deepcompression.training.problem import metric_of, step_of

    return Watched(step_of(request["step"]), metric_of(request["metric"]), before)


def _alike(one: tuple[Mapping[str, Any], Any], other: tuple[Mapping[str, Any], Any]) -> bool:
    """Whether two ends are the same to a bit, so that one evaluation is enough."""
    from deepcompression.formats.state_dict import to_raw_state

    states, edits = zip(one, other, strict=True)
    return list(edits[0]) == list(edits[1]) and difference(*(to_raw_state(state) for state in states)) is None


def _comparison(baseline: tuple[Mapping[str, Any], Any], final: tuple[Mapping[str, Any], Any]) -> dict[str, Any] | None:
    """The paired test of two (numbers, scores); None where scores are not whether each sample is right."""
    if any(numbers["correct"] is None or not numbers["higher_is_better"] for numbers, _ in (baseline, final)):
        return None
    compared = significance.compare(baseline[1].numpy(), final[1].numpy())
    return {**asdict(compared), "sentence": significance.sentence(compared)}


def _in_order(test: Any) -> bool:
    """Whether both models saw the samples in one order: a DataLoader of the user's may shuffle or stream."""
    from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

    if not isinstance(test, DataLoader):
        return not isinstance(test, IterableDataset)
    batches = test.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else test.sampler if batches is None else None
    return isinstance(sampler, SequentialSampler)


def _evaluation(
    request: Mapping[str, Any], state: Mapping[str, Any], edits: Sequence[Edit], test: Any, watched: Watched
) -> tuple[dict[str, Any], Any]:
    """The numbers, and the scores of each sample or None; what was answered is in ``watched``."""
    from deepcompression import factory
    from deepcompression.network import load as files
    from deepcompression.network.edits.apply import apply_all, check_values
    from deepcompression.training.device import Compute
    from deepcompression.training.evaluate import evaluate

    model = factory.build(request["model"]["factory"], request["model"]["kwargs"])
    apply_all(model, edits)
    check_values(model, edits, state)
    files.load_state(model, state, where="verify")
    result = evaluate(model, test, watched.step, watched.metric, Compute(**request["compute"]))
    found: dict[str, Any] = {name: value for name, value in asdict(result).items() if name != "scores"}
    found["higher_is_better"] = bool(watched.metric.higher_is_better)
    if result.correct is not None:
        accuracy = result.correct / result.total
        found |= {"accuracy": accuracy, "error": (result.total - result.correct) / result.total}
    return found, result.scores


if __name__ == "__main__":
    print(json.dumps(verify(json.load(sys.stdin))))

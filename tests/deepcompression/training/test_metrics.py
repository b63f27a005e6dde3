"""Metrics by kind of task, against other implementations of the same."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional

from deepcompression.errors import FactoryError
from deepcompression.training import metrics
from deepcompression.training.average_precision import average_precision, overlaps
from deepcompression.training.problem import metric_of
from tasks.execution.words import METRICS

G = torch.Generator().manual_seed(0)


def whole(metric, batches):
    metric.reset()
    for outputs, targets in batches:
        metric.update(outputs, targets)
    return float(metric.compute())


@pytest.mark.parametrize(("word", "spec"), METRICS.items(), ids=METRICS)
def test_every_word_is_a_metric(word, spec):
    """What a recipe may say exists, has a name, and says which way is better."""
    if word == "torchmetrics":
        pytest.importorskip("torchmetrics")
    kwargs = {"metric": "classification.MulticlassF1Score", "num_classes": 3} if word == "torchmetrics" else {}
    assert isinstance(metric_of({"factory": spec, "kwargs": kwargs}).higher_is_better, bool)


def test_scores_of_samples():
    """One number a sample, so that two models can be compared sample by sample."""
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3]])
    assert metrics.top_k(2)(logits, torch.tensor([1, 0])).tolist() == [True, False]
    assert metrics.squared_error()(torch.tensor([1.0, 2]), torch.tensor([1.0, 4])).tolist() == [0, 4]
    assert metrics.absolute_error()(torch.tensor([[1.0, 2]]), torch.tensor([[2.0, 4]])).tolist() == [1.5]
    with pytest.raises(FactoryError, match="k of 1 or more"):
        metrics.top_k(0)


def test_tokens_count_once_wherever_they_stand():
    """Batches of unlike numbers of tokens do not weigh alike."""
    logits, labels = torch.randn(3, 4, 5, generator=G), torch.randint(0, 5, (3, 4), generator=G)
    labels[0, 1:] = -100
    batches = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
    counted = labels != -100
    wanted = functional.cross_entropy(logits[counted], labels[counted]).exp()
    assert whole(metrics.perplexity(), batches) == pytest.approx(float(wanted), rel=1e-5)
    right = (logits.argmax(-1) == labels)[counted].double().mean()
    assert whole(metrics.token_accuracy(), batches) == pytest.approx(float(right))


def test_mean_iou_is_scikit_learns_jaccard_over_all_pixels():
    """The macro mean over the classes that occur, of all batches together; pixels to ignore are not there."""
    from sklearn.metrics import jaccard_score

    logits, pixels = torch.randn(4, 3, 6, 5, generator=G), torch.randint(0, 3, (4, 6, 5), generator=G)
    pixels[0, 0] = 255
    counted = pixels != 255
    wanted = jaccard_score(pixels[counted], logits.argmax(1)[counted], average="macro")
    assert whole(metrics.mean_iou(), [(logits[:1], pixels[:1]), (logits[1:], pixels[1:])]) == pytest.approx(wanted)


def boxes(*several):
    found = torch.tensor(several, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": found, "labels": torch.ones(len(found), dtype=torch.int64)}


def test_average_precision_by_hand():
    """Two boxes: the surest detection is right, the next covers nothing, the third the other box: (1 + 2/3) / 2."""
    wanted = [boxes((0, 0, 10, 10), (20, 20, 30, 30))]
    found = [boxes((0, 0, 10, 10), (50, 50, 60, 60), (20, 20, 30, 29))]
    found[0]["scores"] = torch.tensor([0.9, 0.8, 0.7])
    assert whole(average_precision(), [(found, wanted)]) == pytest.approx((1 + 2 / 3) / 2)
    assert whole(average_precision(0.95), [(found, wanted)]) == pytest.approx(0.5)
    twice = [boxes((0, 0, 10, 10), (0, 0, 10, 10))]
    twice[0]["scores"] = torch.tensor([0.9, 0.8])
    assert whole(average_precision(), [(twice, [boxes((0, 0, 10, 10))])]) == 1  # the second is no second hit
    assert torch.allclose(overlaps(wanted[0]["boxes"][:1], found[0]["boxes"]), torch.tensor([[1.0, 0, 0]]))
    with pytest.raises(FactoryError, match="overlap above 0"):
        average_precision(0)


def test_average_precision_is_torchmetrics_own():
    """Random boxes of three classes in ten pictures."""
    detection = pytest.importorskip("torchmetrics.detection")
    try:
        theirs = detection.MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=[i / 5000 for i in range(5001)])
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    low = torch.rand(10, 6, 2, generator=G) * 50
    corners = torch.cat([low, low + 5 + 40 * torch.rand(10, 6, 2, generator=G)], 2)
    labels, scores = torch.randint(1, 4, (10, 6), generator=G), torch.rand(10, 6, generator=G)
    wanted = [{"boxes": b + 2, "labels": k} for b, k in zip(corners[:, :3], labels[:, :3], strict=True)]
    found = [{"boxes": b, "labels": k, "scores": s} for b, k, s in zip(corners, labels, scores, strict=True)]
    theirs.update(found, wanted)
    assert whole(average_precision(), [(found, wanted)]) == pytest.approx(float(theirs.compute()["map"]), abs=2e-3)


def test_torchmetrics_that_is_missing_is_one_line(monkeypatch):
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "torchmetrics.classification", raising=False)
    with pytest.raises(FactoryError, match=r"needs torchmetrics.*: pip install 'deep-compression\[hub\]'"):
        metrics.torchmetrics("classification.MulticlassF1Score", num_classes=3)

"""The detector and the segmenter that samples are made of."""

from __future__ import annotations

import pytest
import torch

from deepcompression.data import shapes
from deepcompression.models import segmenter, ssd_lite
from deepcompression.models.detector import anchors_of, decoded, matches
from deepcompression.training.average_precision import average_precision, overlaps
from deepcompression.training.steps import detection, segmentation


@pytest.fixture(scope="module")
def batch():
    return shapes("detection", train=6, test=1).train


def boxes_of(batch):
    return [{"boxes": b[k > 0], "labels": k[k > 0]} for b, k in zip(batch["boxes"], batch["labels"], strict=True)]


def test_what_is_matched_is_decoded_again(batch):
    """Offsets of a box say the box; every box has an anchor; anchors far from all are background."""
    anchors = anchors_of(64)
    for one in boxes_of(batch):
        labels, offsets = matches(anchors, one["boxes"] / 64, one["labels"])
        found = decoded(offsets, anchors)[labels > 0] * 64
        best, of = overlaps(found, one["boxes"]).max(1)
        assert torch.allclose(best, torch.ones(len(best)), atol=1e-4)
        assert set(of.tolist()) <= set(range(len(one["boxes"]))) and 0 < len(found) < len(anchors) / 4
        assert torch.equal(labels[labels > 0], one["labels"][of])
    none = matches(anchors, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert not none[0].any() and not none[1].any()


def test_perfect_outputs_are_perfect_detections(batch):
    """Of the logits and offsets that training asks for, each box comes out once: an average precision near 1."""
    model, targets = ssd_lite(), boxes_of(batch)
    pairs = [matches(model.anchors, one["boxes"] / 64, one["labels"]) for one in targets]
    labels, offsets = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    outputs = 20 * torch.nn.functional.one_hot(labels, 4).float(), offsets
    metric = average_precision()
    metric.update(model.detections(outputs), targets)
    assert metric.compute() > 0.95
    assert float(model.loss_of(outputs, targets)) < 1e-3


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_a_few_steps_lower_the_loss(batch, kind):
    """Gradients reach every weight; in evaluation outputs are what the metric takes."""
    torch.manual_seed(0)
    detector = kind == "detector"
    model, step = (ssd_lite(width=8), detection()) if detector else (segmenter(width=4), segmentation())
    given = batch if detector else shapes("segmentation", size=24, train=6, test=1).train
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss, _, _ = step(model, given)
        optimizer.zero_grad()
        loss.backward()
        assert all(one.grad is not None for one in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    outputs = step(model.eval(), given)[1]
    assert set(outputs[0]) == {"boxes", "scores", "labels"} if detector else outputs.shape == (6, 4, 24, 24)

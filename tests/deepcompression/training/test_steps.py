"""Steps by kind of task: what goes into the model, and which loss, outputs and targets come out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepcompression.errors import FactoryError
from deepcompression.training import steps
from deepcompression.training.problem import step_of
from tasks.execution.words import STEPS


class Answer(nn.Module):
    """Gives what it was made with, and remembers what it was given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, input_ids=None, attention_mask=None):
        self.given = (input_ids, attention_mask)
        return self.answer


LOGITS, CLASSES = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("answer", [LOGITS, {"logits": LOGITS}, SimpleNamespace(logits=LOGITS), {"out": LOGITS}])
def test_classification_takes_pairs_and_mappings_and_usual_answers(answer):
    """A batch's keys that the forward does not have stay away; an answer's logits are the outputs."""
    loss, outputs, targets = steps.classification()(Answer(answer), (LOGITS, CLASSES))
    assert outputs is LOGITS and targets is CLASSES and loss == functional.cross_entropy(LOGITS, CLASSES)
    model = Answer(answer)
    batch = {"input_ids": 1, "attention_mask": 2, "token_type_ids": 3, "labels": CLASSES}
    assert steps.classification()(model, batch)[2] is CLASSES and model.given == (1, 2)


def test_regression_of_one_output_a_sample_is_not_spread_over_the_batch():
    """(n, 1) against (n,) would be compared all with all."""
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    loss, given, _ = steps.regression()(Answer(outputs), (None, targets))
    assert float(loss) == 2.0 and given.shape == (2,)
    with pytest.raises(FactoryError, match="unlike shapes"):
        steps.regression()(Answer(torch.zeros(2, 3)), (None, targets))
    with pytest.raises(FactoryError, match="expected mse, l1, huber"):
        steps.regression("mae")


def test_segmentation_leaves_pixels_out_and_counts_the_second_answer_in_training_alone():
    """As torchvision's segmenters are trained."""
    logits, pixels = torch.randn(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 255]]])
    model = Answer({"out": logits, "aux": torch.zeros(1, 2, 2, 2)})
    plain = functional.cross_entropy(logits, pixels, ignore_index=255)
    assert torch.isclose(steps.segmentation()(model, (None, pixels))[0], plain + 0.5 * torch.tensor(2.0).log())
    assert torch.isclose(steps.segmentation()(model.eval(), (None, pixels))[0], plain)


def test_language_modelling_asks_for_the_next_token():
    """Outputs and targets come out in step, so that a metric may compare them as they are."""
    logits, ids = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    loss, outputs, targets = steps.language_modelling()(Answer(logits), {"input_ids": ids, "labels": ids})
    assert torch.equal(targets, ids[:, 1:]) and torch.equal(outputs, logits[:, :-1])
    assert torch.isclose(loss, functional.cross_entropy(logits[:, :-1].reshape(-1, 7), ids[:, 1:].reshape(-1)))
    assert steps.language_modelling(shift=False)(Answer(logits), {"input_ids": ids, "labels": ids})[1] is logits
    none = torch.full((2, 5), -100)
    assert float(steps.token_classification()(Answer(logits), {"input_ids": ids, "labels": none})[0]) == 0


class Detector(nn.Module):
    """As torchvision's: losses in training, detections in evaluation."""

    def forward(self, images, targets=None):
        return {"a": torch.tensor(1.0), "b": torch.tensor(2.0)} if self.training else [{"boxes": len(images)}]


def test_detection_speaks_as_torchvisions_detectors_do():
    """Boxes with label 0 fill up a batch and go nowhere."""
    batch = {"images": torch.zeros(1, 3, 4, 4), "boxes": torch.ones(1, 3, 4), "labels": torch.tensor([[2, 0, 0]])}
    loss, _, targets = steps.detection()(Detector(), batch)
    assert float(loss) == 3 and targets[0]["boxes"].shape == (1, 4) and targets[0]["labels"].tolist() == [2]
    assert steps.detection()(Detector().eval(), batch)[1] == [{"boxes": 1}]
    with pytest.raises(FactoryError, match="expected a mapping of images, boxes and labels"):
        steps.detection()(Detector(), torch.zeros(1))


def test_what_a_step_cannot_use_is_one_line():
    """A batch without labels, an answer without logits."""
    with pytest.raises(FactoryError, match="expected labels in a batch"):
        steps.classification()(Answer(LOGITS), {"input_ids": 1})
    with pytest.raises(FactoryError, match=r"expected a tensor, or logits or out"):
        steps.classification()(Answer({"hidden": LOGITS}), (1, CLASSES))


@pytest.mark.parametrize("spec", STEPS.values(), ids=STEPS)
def test_every_word_is_a_step(spec):
    """What a recipe may say exists, and is made without arguments."""
    assert callable(step_of({"factory": spec, "kwargs": {}}))

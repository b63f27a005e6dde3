"""Importance of weights by what reaches them: magnitude times the size of a weight's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcompression.pruning.inputs import mean_inputs
from deepcompression.training.method import Context


class Wanda:
    """``score(name, weight)``: each weight's magnitude times the root mean square of its input on some samples.

    A weight whose input is mostly zero matters less than its magnitude says; adaptive optimizers make such weights as
    large as others. Inputs are measured by ``refresh``, in eval mode, on the first samples of the training split; a
    tensor whose inputs are not known (embeddings, biases) is scored by magnitude alone.

    Sun, Liu, Bair, Kolter (2023), arXiv 2306.11695, without its comparison by output.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.norms: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Scores in the weight's shape."""
        norms = self.norms.get(name)
        magnitude = weight.detach().abs()
        return magnitude if norms is None else magnitude * norms.to(weight.device)

    def refresh(self, model: nn.Module) -> None:
        """Measures the inputs anew, with the model's present weights."""
        means = mean_inputs(model, self.context, "criterion wanda", torch.square)
        self.norms = {name: mean.sqrt() for name, mean in means.items()}

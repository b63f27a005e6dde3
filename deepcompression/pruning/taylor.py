"""Importance of weights by what the loss would change without them, to first order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcompression.network.names import parameters
from deepcompression.training.method import Context

SAMPLES = 512


class Taylor:
    """``score(name, weight)``: magnitude of each weight times its gradient, the mean over batches of some samples.

    Gradients are those of the training's loss on samples from all of the training split, measured by ``refresh`` in
    eval mode; a tensor that the loss does not depend on is worth 0 throughout.

    Molchanov, Mallya, Tyree, Frosio, Kautz (2019), arXiv 1906.10771, equation 8, of single weights.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.gradients: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Scores in the weight's shape."""
        mean = self.gradients.get(name)
        magnitude = weight.detach().abs()
        return torch.zeros_like(magnitude) if mean is None else magnitude * mean.to(weight.device)

    def refresh(self, model: nn.Module) -> None:
        """Measures gradients anew, with the model's present weights; those that an optimizer works with stay.

        Raises:
            StructureError: there are no samples, or no loss is known.
        """
        mode = model.training
        self.context.compute.place(model).eval()
        named = {name: one for name, one in parameters(model).items() if one.requires_grad}
        sums, count = {name: torch.zeros_like(one) for name, one in named.items()}, 0
        for batch in self.context.batches("criterion taylor", SAMPLES, drawn=True):
            loss = self.context.lost("criterion taylor", model, batch)
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for total, one in zip(sums.values(), found, strict=True):
                total += 0 if one is None else one.abs()
            count += 1
        model.train(mode)
        self.gradients = {name: total / max(count, 1) for name, total in sums.items()}

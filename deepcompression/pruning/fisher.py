"""Importance of channels by what the loss would change without them, to second order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data.batch import portion, samples_in
from deepcompression.errors import DataError
from deepcompression.network.names import parameters
from deepcompression.network.resizing import Group, Member
from deepcompression.pruning.worth import channels_of, mean_over
from deepcompression.training.method import Context

SAMPLES, TOGETHER = 256, 4  # samples, and how many have one gradient


class Fisher:
    """Squares of what the loss would change if a channel were scaled, the mean over some samples, a few at a time.

    That a filter is scaled is seen by the sum of its weights times their gradients; gradients are those of the
    training's loss in eval mode. Unlike the sum of their magnitudes it knows that what one weight of a filter adds
    another takes away.

    Theis, Korshunova, Tejani, Huszar (2018), "Faster gaze prediction with dense networks and Fisher pruning", arXiv
    1801.05787, 2.1; Molchanov et al. (2019), arXiv 1906.10771, equation 10.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sums: dict[tuple[str, int], Tensor] = {}

    def refresh(self, model: nn.Module) -> None:
        """Measures anew, with the model's present weights.

        Raises:
            StructureError: there are no samples, or no loss is known.
        """
        mode = model.training
        self.context.compute.place(model).eval()
        named = {name: one for name, one in parameters(model).items() if one.requires_grad and one.ndim > 1}
        found: dict[tuple[str, int], list[Tensor]] = {(name, axis): [] for name in named for axis in (0, 1)}
        for batch in self.context.batches("criterion fisher", SAMPLES, drawn=True):
            for piece in _pieces(batch):
                loss = self.context.lost("criterion fisher", model, piece)
                gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
                for (name, weight), gradient in zip(named.items(), gradients, strict=True):
                    for axis in (0, 1):
                        found[name, axis].append(_along(weight.detach(), gradient, axis))
        model.train(mode)
        self.sums = {key: torch.stack(some) for key, some in found.items() if some}  # (gradients, places)

    def __call__(self, group: Group, state: Mapping[str, Tensor]) -> Tensor:
        """(channels,)."""
        known = [one for one in group.makers if (one.tensor, one.axis) in self.sums]
        return mean_over(group, {one: self._of(one) for one in known})

    def _of(self, member: Member) -> Tensor:
        sums, index = self.sums[member.tensor, member.axis].double(), torch.tensor(member.index)
        of_channels = [sums[:, index == one].sum(1) for one in channels_of(member).tolist()]
        return torch.stack(of_channels).square().mean(1)


def _along(weight: Tensor, gradient: Tensor | None, axis: int) -> Tensor:
    """What the loss changes with each place on an axis, to first order."""
    if gradient is None:
        return torch.zeros(weight.shape[axis])
    return (weight.float() * gradient.float()).movedim(axis, 0).flatten(1).sum(1).cpu()


def _pieces(batch: Any) -> Iterator[Any]:
    """A few samples of a batch at a time; all of one that cannot be cut."""
    total = samples_in(batch)
    for start in range(0, total, TOGETHER):
        try:
            piece = portion(batch, slice(start, min(start + TOGETHER, total)), total)
        except DataError:
            yield batch
            return
        yield piece

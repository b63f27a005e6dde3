"""Hints: a student's layer learns to foretell a layer of its teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.distillation.layers import Features, Layers, Pair, Watched
from deepcompression.errors import StructureError
from deepcompression.training.method import Context, Method, Now

WIDEST = 7  # of a regressor's kernel; where places differ by more, they are averaged first
CONVOLUTIONS: Sequence[Any] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS: Sequence[Any] = (
    nn.functional.adaptive_avg_pool1d, nn.functional.adaptive_avg_pool2d, nn.functional.adaptive_avg_pool3d,
)  # fmt: skip


class Regressor(nn.Module):
    """Makes the teacher's shape of what a student's layer gives; a convolution, of (batch, units) a linear layer.

    Args:
        features: an example, from which its sizes are taken.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        own, other = features.student.shape, features.teacher.shape
        self.places = tuple(other[2:])
        kernel = [one - two + 1 for one, two in zip(own[2:], other[2:], strict=True)]
        self.pools = any(not 1 <= one <= WIDEST for one in kernel)
        axes = len(kernel)
        self.layer: nn.Module = nn.Linear(own[1], other[1])
        if axes:
            self.layer = CONVOLUTIONS[axes - 1](own[1], other[1], 1 if self.pools else tuple(kernel))

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """What it foretells, and what it should: float32, alike in shape."""
        own, other = features.student.float(), features.teacher.float()
        if self.pools:
            pool = POOLS[len(self.places) - 1]
            size = [min(pair) for pair in zip(own.shape[2:], other.shape[2:], strict=True)]
            own, other = pool(own, size), pool(other, size)
        return self.layer(own), other


@dataclass(eq=False)
class Hints(Method):
    """The loss grows by weight x half the squared difference of what regressors foretell and the teacher gives.

    It counts as a part of the teacher's own squares, which the paper does not do: so one weight fits layers of any
    magnitude, and a regressor that gives zeros costs half a weight.

    Regressors are trained beside the model and forgotten with the training. With ``until``, hints alone are learnt in
    that first part of the training, the labels alone afterwards, as in the paper's two stages; what stands before
    hints in a list of methods then adds nothing to the loss of the first part.

    Args:
        layers: the student's to the teacher's, by names or patterns; or names that are the same in both.
        weight: above 0.
        until: None, or the part of the training, between 0 and 1, in which hints alone are learnt.
        axis: of channels, -1 where tokens come first.

    Romero et al. (2015), arXiv 1412.6550, section 2.2, equations 3 and 4.
    """

    name: ClassVar[str] = "hints"
    learns: ClassVar[bool] = True
    layers: Layers = ()
    weight: float = 10.0
    until: float | None = None
    axis: int = 1

    @property
    def settled(self) -> float:
        """Before labels are learnt no state is the best."""
        return self.until or 0.0

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Finds the layers, and makes a regressor for each pair.

        Raises:
            StructureError: impossible numbers, no teacher, a layer that is not there, or shapes that do not fit.
        """
        if not 0 < self.weight < math.inf:
            raise StructureError(f"hints: expected a weight above 0, got {self.weight}")
        if self.until is not None and not 0 < self.until < 1:
            raise StructureError(f"hints: until is a part of the training between 0 and 1, got {self.until}")
        self._alone, self._sum, self._count = self.until is not None, torch.zeros(()), 0
        self._watched = Watched(model, context, self.layers, self.axis, self.name)
        tried = self._watched.tried(model, context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            found = [_regressor(*both) for both in zip(self._watched.pairs, tried, strict=True)]
        self._regressors = nn.ModuleList(found).to(tried[0].student.device)
        return [{"params": list(self._regressors.parameters())}]

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Looks which part of the training it is."""
        self._alone = self.until is not None and now.fraction < self.until

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and how far off the regressors are; these alone in the first part, where there are parts."""
        if self.until is not None and not self._alone:
            return loss
        pairs = zip(self._regressors, self._watched.take(batch), strict=True)
        off = torch.stack([_missed(*regressor(features)) for regressor, features in pairs]).sum()
        self._sum, self._count = self._sum.to(off.device) + off.detach(), self._count + 1
        return (0 if self._alone else 1) * loss + self.weight * off.to(loss.device)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The mean loss of the hints since the last epoch, not weighted; none once they are not learnt any more."""
        mean, count = float(self._sum) / max(self._count, 1), self._count
        self._sum, self._count = torch.zeros(()), 0
        return {"loss": mean} if count else {}

    def close(self, model: nn.Module) -> None:
        """Takes hooks away."""
        if hasattr(self, "_watched"):
            self._watched.close()

    def state_dict(self) -> dict[str, Any]:
        """The regressors."""
        return {"regressors": self._regressors.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with them."""
        self._regressors.load_state_dict(state["regressors"])


def _missed(foretold: Tensor, given: Tensor) -> Tensor:
    """Half of what is missed, of what there is; a layer that gives zeros alone counts as it is."""
    whole = given.square().mean()
    return nn.functional.mse_loss(foretold, given) / 2 / torch.where(whole > 0, whole, 1)


def _regressor(pair: Pair, features: Features) -> Regressor:
    shapes = [tuple(one.shape) for one in features]
    if len(shapes[0]) != len(shapes[1]) or len(shapes[0]) > 5:
        raise StructureError(
            f"hints: {pair.student} gives {shapes[0]}, the teacher's {pair.teacher} {shapes[1]}; name layers with as "
            "many axes, five at most"
        )
    return Regressor(features)

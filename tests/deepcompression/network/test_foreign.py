"""Subclasses with a forward of their own: what is proven to do as the known layer does, and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.network.foreign import keeps_constants
from deepcompression.network.kinds import KNOWN, Elementwise, Kinds, Normalising
from deepcompression.network.trace import chains, shapes


class Same(nn.Conv2d):
    """Padding by the input's size, as TensorFlow has it: tests in forward that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        sides = [(-size) % step + kernel - 1 for size, step, kernel in self._sizes(x)]
        if any(sides):
            x = F.pad(x, [part for side in reversed(sides) for part in (side // 2, side - side // 2)])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _sizes(self, x: Tensor) -> list[tuple[int, int, int]]:
        return list(zip(x.shape[2:], self.stride, self.kernel_size, strict=True))


class Standardised(nn.Conv2d):
    """The weights are normalised on the way: an empty column takes its channel in."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class Shuffled(nn.Conv2d):
    """Output channels have another order than rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class Gained(nn.Conv2d):
    """A factor a channel that nobody would turn with the rows."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Activated(nn.Linear):
    """An empty row gives another constant than its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class Logged(nn.Linear):
    """Does something beside, and the same."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2
        return F.linear(x, self.weight, self.bias)


class NormAct(nn.BatchNorm2d):
    """An activation in the BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class NormMixed(nn.BatchNorm2d):
    """Channels see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Swish(nn.Module):
    """An activation out of tests that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid() if x.numel() else x


class Shift(nn.Module):
    """Elements are moved."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, -1)


class SamePool(nn.MaxPool2d):
    """A pool with zeros around, which are more than what is negative."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, [1, 1, 1, 1]), 3, 1)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Same(3, 4, 3, stride=2), nn.Conv2d),
        (Same(4, 4, 3, groups=4, bias=False), nn.Conv2d),
        (Logged(5, 3), nn.Linear),
        (Standardised(3, 4, 3), None),
        (Shuffled(3, 4, 3), None),
        (Gained(3, 4, 3), None),
        (Activated(3, 4), None),
        (Same(4, 4, 3, groups=2), None),
        (NormAct(4), Normalising),
        (NormMixed(4), None),
        (Swish(), Elementwise),
        (Shift(), None),
        (SamePool(3), nn.MaxPool2d),
    ],
)
def test_a_forward_of_ones_own_is_believed_where_it_is_proven(module: nn.Module, kind: type | None) -> None:
    """Padding, activations and notes beside do no harm; other orders, norms of weights and mixing do."""
    found = Kinds(module)(module)
    assert found is (kind or type(module)) and (found in KNOWN) == (kind is not None)


def test_proving_changes_neither_the_module_nor_what_is_drawn() -> None:
    """It runs on copies, and randomness goes on as if it had not run."""
    module, state = Same(3, 4, 3), torch.get_rng_state()
    before = [one.clone() for one in module.parameters()]
    assert Kinds(module)(module) is nn.Conv2d and module.training
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


class Fixed(nn.Conv2d):
    """Padding for one size of image: of a stride of two, on one side, which odd sizes never reach."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [0, 1, 0, 1]))


def test_padding_inside_a_forward_is_seen() -> None:
    """A constant that goes in comes out as another one at the borders, so that it cannot be in a bias."""
    assert not keeps_constants(Same(3, 4, 3), nn.Conv2d) and keeps_constants(Same(3, 4, 1), nn.Conv2d)
    assert keeps_constants(Logged(3, 4), nn.Linear) and not keeps_constants(Fixed(3, 4, 3, stride=2), nn.Conv2d)


class Block(nn.Module):
    """An inverted residual of other people's layers: expand, depthwise, project."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.expand, self.norm, self.act = Same(3, 8, 1, bias=False), norm(8), Swish()
        self.deep, self.deep_norm = Same(8, 8, 3, stride=2, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project, self.head = Same(8, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.expand(x)))
        x = self.project(self.act(self.deep_norm(self.deep(x))))
        return self.head(x.mean((2, 3)))


def test_depthwise_layers_are_a_step_of_a_chain() -> None:
    """Their channels are those of the layer before: removed and turned with it."""
    model = Block()
    found, left = chains(model, shapes(model, lambda one: one(torch.zeros(2, 3, 6, 6))))
    assert [(one.producer, one.through, one.consumer) for one in found] == [
        ("expand", ("deep.weight",), "project"), ("project", (), "head")
    ]  # fmt: skip
    assert left == {"head": "its units are the model's outputs"}
    assert "deep_norm.running_var" in found[0].rows and "deep.weight" in found[0].rows


def test_modules_called_with_more_than_was_tried_are_left_alone() -> None:
    """With another argument a forward may be another function."""

    class Scaled(nn.Linear):
        def forward(self, x: Tensor, by: float = 1.0) -> Tensor:
            return super().forward(x) * by

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Scaled(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x, 2.0))

    assert chains(Net())[1]["one"] == "it is called with more than its input"

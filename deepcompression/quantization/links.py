"""Where a channel can have any scale: between layers that make it and layers that take it in; and before a BatchNorm.

A link is exact where all between its ends is positively homogeneous, f(s x) = s f(x): ReLU, pools, sums, concatenation,
flattening, padding with zeros. It is not read off names of operations but tried: each channel is scaled by another
power of two, up to 4,096 either way, and what the model gives must stay as it was. ReLU6, SiLU or a sigmoid between do
not pass, nor does an activation that is on a grid. Before a BatchNorm it is enough that its statistics go along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.network.channels import channel_groups
from deepcompression.network.resizing import Group, Member
from deepcompression.network.state import plain_state
from deepcompression.network.trace import resting

FARTHEST = 12  # a power of two
TOLERANCE = 1e-4  # of the outputs' norm

Run = Callable[[nn.Module], Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Maker:
    """A weight that makes channels, the bias beside it, and the BatchNorm that they go through next, with its parts."""

    weight: Member
    bias: Member | None
    norm: str | None
    parts: tuple[Member, ...] = ()  # of the BatchNorm

    @property
    def scaled(self) -> tuple[Member, ...]:
        """What a factor of the channels multiplies."""
        if self.norm is None:
            return (self.weight, *([self.bias] if self.bias else []))
        return tuple(one for one in self.parts if one.tensor.rpartition(".")[2] in ("weight", "bias"))

    def part(self, name: str) -> Member | None:
        """That of the BatchNorm which is called so."""
        return next((one for one in self.parts if one.tensor == f"{self.norm}.{name}"), None)


@dataclass(frozen=True)
class Link:
    """Channels on their way from the makers to the takers."""

    channels: int
    makers: tuple[Maker, ...]
    takers: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The layers at its ends."""
        ends = [one.weight for one in self.makers], self.takers
        first, last = (" and ".join(dict.fromkeys(one.module or "the model" for one in end)) for end in ends)
        return f"{first} to {last}"


def by_place(member: Member, factors: Tensor, tensor: Tensor) -> Tensor:
    """Factors as they lie on a member's axis, to multiply its tensor by; 1 where there is no channel.

    Args:
        member: where the channels lie.
        factors: (channels,).
        tensor: the member's, for its number of axes.
    """
    index = torch.tensor(member.index)
    spread = torch.where(index < 0, 1.0, factors[index.clamp(min=0)])
    return spread.reshape([-1 if axis == member.axis else 1 for axis in range(tensor.ndim)])


def scaled(state: State, link: Link, factors: Tensor) -> dict[str, Tensor]:
    """The tensors of a link, changed: its channels are divided by factors, and multiplied back where they are taken.

    Args:
        state: tensors by name.
        link: of a model.
        factors: above 0, (channels,).
    """
    found: dict[str, Tensor] = {}
    members = [(one, 1 / factors) for maker in link.makers for one in maker.scaled]
    for member, by in [*members, *((one, factors) for one in link.takers)]:
        tensor = found.get(member.tensor, state[member.tensor])
        found[member.tensor] = (tensor.double() * by_place(member, by, tensor)).to(tensor.dtype)
    return found


def before_norm(model: nn.Module, state: State, maker: Maker, factors: Tensor) -> dict[str, Tensor]:
    """The tensors of a weight with channels multiplied by factors (channels,), and of the BatchNorm that undoes it.

    Args:
        model: for the BatchNorm's epsilon.
        state: tensors by name.
        maker: with a BatchNorm that has running statistics.
        factors: 1 or more, else there might be no variance that does it.
    """
    mean, variance = maker.part("running_mean"), maker.part("running_var")
    assert maker.norm is not None and mean is not None and variance is not None
    members = (maker.weight, mean, *([maker.bias] if maker.bias else []))
    found = {
        one.tensor: (state[one.tensor].double() * by_place(one, factors, state[one.tensor])).to(state[one.tensor].dtype)
        for one in members
    }
    old, eps = state[variance.tensor], float(model.get_submodule(maker.norm).eps)  # type: ignore[arg-type]
    wide = by_place(variance, factors, old).square() * (old.double() + eps) - eps
    return {**found, variance.tensor: wide.to(old.dtype)}


@dataclass(frozen=True)
class Found:
    """The exact links of a model, in its order; weights before a BatchNorm; why other layers are neither, by name."""

    links: list[Link]
    normed: list[Maker]
    left: dict[str, str]


def find(model: nn.Module, run: Run) -> Found:
    """Where channels of a model can have any scale.

    Args:
        model: not changed; a copy of it runs, in eval mode.
        run: what a model gives for a few samples, a tensor.
    """
    groups, left = channel_groups(model, run)
    calls = _calls(model, run)
    tried: list[Link] = []
    makers: list[Maker] = []
    for group in groups:
        makers += [_maker(model, group, one, calls) for one in group.makers if one.module in calls]
        made = _links(model, group, calls)
        if isinstance(made, str):
            left |= {one.module: made for one in group.makers}
        else:
            tried += made
    trial = _Trial(model, run)
    links = trial.exact(tried, _of_link)
    normed = trial.exact([one for one in makers if one.part("running_mean") and one.part("running_var")], _of_norm)
    for link in tried:
        if link not in links:
            left |= {maker.weight.module: "something between minds the scale of its channels" for maker in link.makers}
    return Found(links, normed, left)


def _calls(model: nn.Module, run: Run) -> dict[str, int]:
    """When each module is called first, by name."""
    order: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            order.setdefault(name, len(order))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in model.named_modules()]
    try:
        _given(model, run)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _links(model: nn.Module, group: Group, calls: Mapping[str, int]) -> list[Link] | str:
    """The links of a group: from its makers to the depthwise layers, one behind the other, and to its takers."""
    if any(one.module not in calls for one in group.members if one.role != "along"):
        return "the model does not call its layer as a module"
    members = sorted(group.members, key=lambda one: calls.get(one.module, len(calls)))
    first = [one for one in members if one.role == "out"]
    between = [one for one in members if one.role == "depthwise"]
    last = tuple(one for one in members if one.role == "in")
    if between and len(first) != 1:
        return f"{len(first)} layers make channels that depthwise ones change"
    if not first or not last:
        return "its channels have no two ends"
    ends = [tuple(first), *((one,) for one in between)]
    made = [tuple(_maker(model, group, one, calls) for one in makers) for makers in ends]
    takers = [*((one,) for one in between), last]
    return [Link(group.channels, one, other) for one, other in zip(made, takers, strict=True)]


def _maker(model: nn.Module, group: Group, weight: Member, calls: Mapping[str, int]) -> Maker:
    """With the BatchNorm that is called before any other layer of the group."""
    along = [one for one in group.members if one.role == "along"]
    bias = next((one for one in along if one.module == weight.module), None)
    later = [one for one in group.members if calls.get(one.module, -1) > calls[weight.module]]
    following = min(later, key=lambda one: calls[one.module], default=None)
    norm = following.module if following is not None else None
    if norm is None or not isinstance(model.get_submodule(norm), _BatchNorm):
        return Maker(weight, bias, None)
    return Maker(weight, bias, norm, tuple(one for one in along if one.module == norm))


T = TypeVar("T")
Change = Callable[[nn.Module, State, T, torch.Generator], "dict[str, Tensor] | None"]


def _of_link(model: nn.Module, state: State, link: Link, random: torch.Generator) -> dict[str, Tensor] | None:
    """A link with other scales; None where a BatchNorm has nothing that could be scaled."""
    powers = torch.randint(-FARTHEST, FARTHEST + 1, (link.channels,), generator=random)
    return scaled(state, link, torch.exp2(powers.double())) if all(one.scaled for one in link.makers) else None


def _of_norm(model: nn.Module, state: State, maker: Maker, random: torch.Generator) -> dict[str, Tensor]:
    powers = torch.randint(0, FARTHEST + 1, (max(maker.weight.index) + 1,), generator=random)
    return before_norm(model, state, maker, torch.exp2(powers.double()))


class _Trial:
    """A copy of a model, and what it has to give."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.run, self.double, self.state = run, copy.deepcopy(model), plain_state(model)
        self.expected = _given(self.double, run)

    def exact(self, all_of: Sequence[T], change: Change[T]) -> list[T]:
        """Those of some changes that leave what the model gives; all together, or one by one where that fails."""
        return list(all_of) if self._holds(all_of, change) else [one for one in all_of if self._holds([one], change)]

    def _holds(self, some: Sequence[T], change: Change[T]) -> bool:
        random, tried = torch.Generator().manual_seed(0), dict(self.state)
        for one in some:
            made = change(self.double, tried, one, random)
            if made is None:
                return False
            tried |= made
        self.double.load_state_dict(tried)
        return alike(_given(self.double, self.run), self.expected)


def alike(came: Tensor, expected: Tensor) -> bool:
    """Whether outputs are the same, but for rounding."""
    return bool((came - expected).norm() <= TOLERANCE * expected.norm())


def _given(model: nn.Module, run: Run) -> Tensor:
    with resting(model), torch.no_grad():
        given: Tensor = run(model).double()
    return given

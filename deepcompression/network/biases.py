"""What takes up a constant that is added to a layer's outputs: its bias, or the BatchNorm that alone follows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.network.names import join, memory


@dataclass
class Followers:
    """Of each BatchNorm, whose outputs it takes, "" of something else; by what has been seen."""

    takes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def norm_of(self, name: str) -> str | None:
        """The only BatchNorm that takes a layer's outputs, if it takes nothing else."""
        found = [norm for norm, givers in self.takes.items() if name in givers]
        return found[0] if len(found) == 1 and self.takes[found[0]] == {name} else None


@contextmanager
def followed(model: nn.Module, layers: Iterable[str], followers: Followers) -> Iterator[None]:
    """While it lasts, what takes the outputs of some layers is seen in forwards of a model.

    Args:
        model: in which the layers are.
        layers: names of modules.
        followers: gets what is seen.
    """
    given: dict[tuple[int, int], tuple[str, Tensor]] = {}  # outputs, unchanged, alive until it ends

    def give(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
            given[id(output), output._version] = (name, output)

        return hook

    def take(norm: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            key = (id(inputs[0]), inputs[0]._version) if inputs else None
            followers.takes[norm].add(given[key][0] if key in given else "")

        return hook

    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_hook(give(name)).remove)
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                stack.callback(module.register_forward_pre_hook(take(name)).remove)
        yield


def place_of(model: nn.Module, name: str, norm: str | None, channels: int) -> tuple[str, str]:
    """The tensor that takes up a constant of each output channel of a layer: its bias, or a running mean, which takes
    it with the other sign; or "" and why there is none.

    Args:
        model: in which the layer is.
        name: of the layer's module.
        norm: the only BatchNorm that takes its outputs.
        channels: of the outputs.
    """
    module: Any = model.get_submodule(name)
    if module.bias is not None:
        return join(name, "bias"), _used_elsewhere(model, module.bias)
    if norm is None:
        return "", "it has no bias, and no BatchNorm of its own follows that could take it up"
    own: Any = model.get_submodule(norm)
    if own.running_mean is None or own.num_features != channels:
        return "", f"it has no bias, and {norm} no running mean of its channels"
    return join(norm, "running_mean"), ""


def _used_elsewhere(model: nn.Module, bias: Tensor) -> str:
    place = memory(bias)
    uses = [name for name, one in model.named_parameters(remove_duplicate=False) if memory(one) == place]
    return f"its bias is that of others too: {', '.join(uses[:3])}" if len(uses) > 1 else ""

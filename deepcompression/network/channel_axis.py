"""Which axis of a tensor its output channels are on, by the module that has it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from deepcompression.errors import StructureError
from deepcompression.network.names import is_conv1d, join, memory, parameters

OTHERWISE = "per: tensor, or leave it out"


def channel_axis(model: nn.Module, name: str, otherwise: str = OTHERWISE) -> int | None:
    """The axis of a parameter's output channels; None for what has fewer than two axes, and so no channels.

    It is 1 of transposed convolutions and of the Conv1D of transformers, whose weights are (in, out), and else 0: of
    embeddings that is a row for each input. What a module that is not torch's does with its tensors nobody can see; its
    channels are taken to be on axis 0.

    Args:
        model: with ordinary parameters.
        name: of one of them.
        otherwise: what the one who asks for channels can do without them, for messages: a key of its own.

    Raises:
        StructureError: a transposed convolution has groups, whose channels lie on two axes together; or the tensor is
            tied, and its uses have their channels on unlike axes.
    """
    weight = parameters(model)[name]
    if weight.ndim < 2:
        return None
    axes = {used: _axis(used, module, weight, otherwise) for used, module in _uses(model, weight).items()}
    if len(set(axes.values())) > 1:
        told = " and ".join(f"on axis {axis} as {used}" for used, axis in axes.items())
        raise StructureError(f"{name}: is tied, and has its channels {told}; {otherwise}")
    return next(iter(axes.values()), 0)


def _uses(model: nn.Module, weight: Tensor) -> dict[str, nn.Module]:
    """The modules that have a parameter, by the name that it has there."""
    return {
        join(prefix, own): module
        for prefix, module in model.named_modules(remove_duplicate=False)
        for own, parameter in module.named_parameters(recurse=False)
        if memory(parameter) == memory(weight)
    }


def _axis(name: str, module: nn.Module, weight: Tensor, otherwise: str) -> int:
    if isinstance(module, _ConvTransposeNd) and weight is not module.bias:
        if module.groups > 1:
            raise StructureError(
                f"{name}: is of a transposed convolution with {module.groups} groups, whose output channels are on no "
                f"axis of their own; {otherwise}"
            )
        return 1
    return 1 if is_conv1d(module) else 0

"""Structure in the values of a state_dict: what has it, how much, and whether a stage kept it.

A pruned weight is the bit pattern +0.0, weights that share are equal; there are no masks and codebooks beside
the weights. ``selection`` says which tensors are meant, ``holding`` keeps structure while a model trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network.names import memory, refuse_overlaps

PIECE = 1 << 20  # elements that are looked at together, where all would take memory
INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_zero(tensor: Tensor) -> Tensor:
    """Where a tensor holds the bit pattern +0.0, as bool of its shape."""
    return bits_of(tensor) == 0


def bits_of(tensor: Tensor) -> Tensor:
    """The tensor's bit patterns as integers of the same width and shape."""
    return tensor.detach().contiguous().view(INTEGER_OF_SIZE[tensor.element_size()])


def normalised(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """A copy of ``state`` in which -0.0 is +0.0 in the tensors ``names``.

    Raises:
        StructureError: one of them is missing, not floating-point, or holds NaN or infinity.
    """
    changed = {}
    for name in names:
        if name not in state or not state[name].is_floating_point():
            raise StructureError(f"{name}: no floating-point tensor of this name to prune or share")
        pieces = torch.split(state[name].detach().reshape(-1), PIECE)
        bad = sum(len(piece) - int(torch.isfinite(piece).sum()) for piece in pieces)
        if bad:
            raise ValuesError(f"{name}: {bad} values are NaN or infinite; pruning and sharing need finite weights")
        changed[name] = state[name] + 0.0  # which is +0.0 for -0.0, and nothing else is changed
    return replaced(state, changed)


def replaced(state: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the ``changed`` tensors, under all names of the same object: tied tensors stay tied."""
    by_object = {id(state[name]): tensor for name, tensor in changed.items()}
    return {name: by_object.get(id(tensor), tensor) for name, tensor in state.items()}


def density(state: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """The fraction of the weights in the tensors ``names`` that are not +0.0; 1.0 where there are none."""
    zeros = [is_zero(state[name]) for name in names]
    total = sum(one.numel() for one in zeros)
    return 1 - sum(int(one.sum()) for one in zeros) / total if total else 1.0


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all persistent state_dict tensors: tied ones once, floats at most 4 bytes an element."""
    state = model.state_dict(keep_vars=True).values()
    tensors = {memory(tensor): tensor for tensor in state if isinstance(tensor, Tensor)}
    return sum(map(stored_bytes, tensors.values()))


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a dense tensor: floats count at most 4 an element."""
    width = tensor.element_size()
    return tensor.numel() * (min(width, 4) if tensor.is_floating_point() else width)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict as contiguous copies on the CPU; a tied tensor is one object under all of its names.

    Raises:
        StructureError: two tensors are unlike views of the same memory.
    """
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    refuse_overlaps(own)
    copies = {memory(tensor): tensor for tensor in own.values()}
    copies = {
        place: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for place, tensor in copies.items()
    }
    return {name: copies[memory(tensor)] for name, tensor in own.items()}

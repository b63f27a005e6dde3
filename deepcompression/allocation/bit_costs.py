"""What so many bits of a tensor cost: operations times bits, bytes in the file, or milliseconds that were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.allocation.pricing import BLOCK
from deepcompression.codec import encoder
from deepcompression.codec.dtypes import unsigned
from deepcompression.errors import StructureError
from deepcompression.network.names import first_names, is_layer, join


def coded_bytes(weights: Tensor, coder: str, *, whole: bool = False) -> int:
    """Bytes of a tensor in a file; of more than 4 million weights its middle rows are coded, and scaled up.

    Args:
        weights: any shape and floating dtype.
        coder: as of ``encode``.
        whole: all of it is coded.
    """
    part = weights.detach().cpu() if whole else _middle(weights.detach().cpu())
    name = str(part.dtype).removeprefix("torch.")
    width = unsigned(name)
    integers = part.contiguous().reshape(-1).view(getattr(torch, f"int{8 * width.itemsize}"))
    size = len(
        encoder.encode_tensor(
            integers.numpy().view(width), name, tuple(part.shape), encoder.settled(coder, weights.numel())
        )
    )
    return round(size * weights.numel() / part.numel()) if part.numel() else 0


def _middle(weights: Tensor) -> Tensor:
    rows = max(1, 4 * BLOCK * len(weights) // weights.numel()) if weights.numel() > 4 * BLOCK else 0
    first = (len(weights) - rows) // 2 if rows else 0
    return weights[first : first + rows] if rows else weights


def operations(model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], Any]) -> dict[str, int]:
    """Floating-point operations of the layers that have each tensor as their weight, in one forward.

    Args:
        model: put into eval mode meanwhile.
        names: of tensors.
        run: a forward.

    Raises:
        StructureError: a tensor is no weight of a layer that the forward calls.
    """
    from torch.utils.flop_counter import FlopCounterMode

    first, mode = first_names(model), model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(model)
    finally:
        model.train(mode)
    counted = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root, found = type(model).__name__, dict.fromkeys(names, 0)
    for prefix, module in model.named_modules():
        name = first.get(join(prefix, "weight")) if is_layer(module) else None
        if name in found:
            found[name] += counted.get(f"{root}.{prefix}" if prefix else root, 0)
    for name, count in found.items():
        if not count:
            raise StructureError(
                f"{name}: the forward calls no Linear or Conv layer with this weight, so its operations are not known; "
                "leave it out of bits, or take cost: file_bytes"
            )
    return found


def milliseconds(
    table: Mapping[str, Mapping[int, float]], choices: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, float]]:
    """The rows of a measured table that are asked for.

    Args:
        table: tensor name -> bits -> milliseconds.
        choices: bits by tensor name.

    Raises:
        StructureError: the table lacks a tensor, or bits of one.
    """
    found = {}
    for name, bits in choices.items():
        own = table.get(name) or table.get(name.removesuffix(".weight"))
        if own is None:
            raise StructureError(f"latency: the table has no row of {name}; measure it, or leave it out of bits")
        if missing := [one for one in bits if one not in own]:
            known = ", ".join(map(str, sorted(own))) or "none"
            raise StructureError(f"latency: {name}: the table has no {missing[0]} bits, it has {known}")
        found[name] = {one: float(own[one]) for one in bits}
    return found

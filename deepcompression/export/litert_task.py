"""What LiteRT's worker takes beside the program: integers of weights, and what values have which grids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.codec import grids
from deepcompression.export.exported import Array
from deepcompression.export.pt2 import first, program_of
from deepcompression.network.edits.integers import levels
from deepcompression.network.edits.quantize_values import After, Before, OnGrid, Quantizer, quantizers
from deepcompression.network.trace import resting

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
MOST = 127  # of an integer of LiteRT's weights, either way


@dataclass(frozen=True)
class _Recording(Quantizer):
    values: list[Tensor] = field(default_factory=list)

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value as it is."""
        self.values.append(value.detach())
        return value


@dataclass(frozen=True)
class _RecordedInput(_Recording, Before):
    kind = "quantize_values"


@dataclass(frozen=True)
class _RecordedOutput(_Recording, After):
    kind = "quantize_values"


def rounds(model: nn.Module) -> bool:
    """Whether it rounds values at all."""
    return any(quantizers(module) for module in model.modules())


def on_grids(model: nn.Module) -> bool:
    """Whether all that a model rounds is on static grids of 8 bits, which LiteRT's integer kernels take."""
    hooks = [hook for module in model.modules() for hook in quantizers(module)]
    return bool(hooks) and all(isinstance(one, OnGrid) and one.range == "static" and one.bits == 8 for one in hooks)


def float_program(model: nn.Module, sample: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The model without its rounding.

    Args:
        model: on the CPU.
        sample: what its forward takes by position.
    """
    with _recorded(model):
        return program_of("litert", model, sample)


def task_of(model: nn.Module, sample: Sequence[Tensor]) -> dict[str, Array]:
    """The arrays of the worker's ``task.npz``.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...).
    """
    arrays: dict[str, Array] = {f"input_{place}": one.numpy() for place, one in enumerate(sample)}
    codes = {name: found for name, module in model.named_modules() if (found := _codes(module)) is not None}
    arrays |= {"names": np.array(list(codes), str), **{f"codes_{i}": one for i, one in enumerate(codes.values())}}
    if on_grids(model):
        for place, (values, grid) in enumerate(_sites(model, sample)):
            arrays |= {f"site_{place}": values.numpy(), f"grid_{place}": np.array(grid, np.float64)}
    return arrays


def _codes(module: nn.Module) -> Array | None:
    """A layer's weights as int8 with a scale for each output; None where they are none."""
    if not isinstance(module, LAYERS) or module.weight.dtype != torch.float32 or not module.weight.numel():
        return None
    weight = module.weight.detach().contiguous().numpy() + np.float32(0)  # -0.0 is 0
    found = grids.recognise(weight.reshape(len(weight), -1).view(np.uint32), "float32")
    if found is None or int(np.abs(found[1]).max()) > MOST:
        return None
    return found[1].astype(np.int8).reshape(weight.shape)


def _sites(model: nn.Module, sample: Sequence[Tensor]) -> list[tuple[Tensor, tuple[float, int]]]:
    """What comes to each site, an element of the sample after the other, and its scale and zero point as int8."""
    found: list[tuple[Tensor, tuple[float, int]]] = []
    count = max((len(one) for one in sample if one.ndim), default=1)
    with _recorded(model) as held, resting(model), torch.no_grad():
        for place in range(count):
            model(*first(sample, place))
        for recorder, grid in held:
            times = len(recorder.values) // count
            found += [(torch.stack(recorder.values[turn::times]), grid) for turn in range(times)]
    return found


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[list[tuple[_Recording, tuple[float, int]]]]:
    """The model's hooks keep values instead of rounding them, while the block runs."""
    held: list[tuple[Any, int, Any]] = []
    made: list[tuple[_Recording, tuple[float, int]]] = []
    for module in model.modules():
        hooks: list[Any] = [module._forward_pre_hooks, module._forward_hooks]
        for some in hooks:
            for key, hook in list(some.items()):
                if isinstance(hook, OnGrid):
                    held.append((some, key, hook))
                    some[key] = (_RecordedInput if isinstance(hook, Before) else _RecordedOutput)(hook.site)
                    made.append((some[key], _grid(module, hook)))
    try:
        yield made
    finally:
        for some, key, hook in held:
            some[key] = hook


def _grid(module: nn.Module, hook: OnGrid) -> tuple[float, int]:
    """Scale, and the zero point of signed integers."""
    scale, zero = (getattr(module, hook.site.tensor(what), 0) for what in ("scale", "zero_point"))
    return float(scale), int(zero) - 128 - levels(hook.bits, hook.scheme)[0]

"""A Linear or Conv layer that multiplies by codes in place of a dense weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from deepcompression.errors import InputError
from deepcompression.runtime.ways import Form

_is_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
DENSE = "load the file with deepcompression.torch.load_into"


class NotInMemory(AttributeError):
    """Somebody else than the layer's forward reads its weight."""

    def __init__(self, layer: str) -> None:
        super().__init__(
            f"{layer}.weight is not in memory: the layer runs from its codes; where other code reads the weight, "
            f'run it with form={{"{layer}": "dense"}}'
        )
        self.layer = layer


class Coded(nn.Module):
    """The forward of a layer that runs from its codes; what else the layer is, its own class says."""

    form: Form
    where: str

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise NotInMemory(self.where)
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs of float32 inputs on the CPU, as the dense layer gives them but for rounding."""
        if input.dtype is not torch.float32 or not input.is_cpu or input.requires_grad or _followed():
            input = self._taken(input)
        return self._outputs(input)

    def _outputs(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _taken(self, value: Tensor) -> Tensor:
        """The input, if it can be multiplied from codes."""
        if value.dtype != torch.float32 or value.device.type != "cpu":
            kind = f"{str(value.dtype).removeprefix('torch.')} on {value.device}"
            raise InputError(f"{self.where}: runs from its codes, and takes float32 on the CPU, not {kind}; {DENSE}")
        if _followed():
            raise InputError(f"{self.where}: runs from its codes, and can be neither traced nor compiled; {DENSE}")
        if torch.is_grad_enabled():
            raise InputError(f"{self.where}: runs from its codes, which have no gradients; {DENSE}")
        return value.detach()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        moved = fn(torch.zeros(1))
        if moved.dtype != torch.float32 or moved.device.type != "cpu":
            raise InputError(f"{self.where}: runs from its codes, in float32 on the CPU alone; {DENSE}")
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Any:
        """Inference alone is offered."""
        if mode:
            raise InputError(f"{self.where}: runs from its codes, which are not trained; {DENSE}")
        return super().train(mode)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise not_copied(self.where)

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        raise InputError(f"{self.where}: runs from its codes, and has no state_dict; that is in the file; {DENSE}")

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        raise InputError(f"{self.where}: runs from its codes, and takes no state_dict; save it to a file and run that")


def _followed() -> bool:
    """Whether a tracer or a compiler is in the place of the caller."""
    return torch.compiler.is_compiling() or bool(_is_tracing())


def not_copied(where: str) -> InputError:
    """Said where somebody copies or pickles what runs."""
    return InputError(f"{where}: runs from codes in memory, and can be neither copied nor pickled; run the file again")


class CodedLinear(Coded):
    """Of an nn.Linear."""

    in_features: int
    out_features: int

    def _outputs(self, value: Tensor) -> Tensor:
        shape = value.shape
        if len(shape) == 2 and shape[1] == self.in_features and shape[0]:
            return torch.from_numpy(self.form(value.contiguous().numpy()))
        if not shape or shape[-1] != self.in_features:
            raise InputError(f"{self.where}: takes (..., {self.in_features}), not {tuple(shape)}")
        made = (*shape[:-1], self.out_features)
        if not value.numel():
            return value.new_zeros(made)
        return self._outputs(value.reshape(-1, self.in_features)).reshape(made)


class CodedConv(Coded):
    """Of an nn.Conv1d or nn.Conv2d."""

    in_channels: int
    kernel_size: tuple[int, ...]
    out_channels: int

    def _outputs(self, value: Tensor) -> Tensor:
        dimensions = len(self.kernel_size)
        if value.ndim == dimensions + 1:
            return self._outputs(value[None])[0]
        if value.ndim != dimensions + 2 or value.shape[1] != self.in_channels:
            sizes = "length" if dimensions == 1 else "height, width"
            raise InputError(f"{self.where}: takes (n, {self.in_channels}, {sizes}), not {tuple(value.shape)}")
        images = value.contiguous() if dimensions == 2 else value.contiguous()[:, :, None]
        try:
            made = torch.from_numpy(self.form(images.numpy()))
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None
        return made if dimensions == 2 else made[:, :, 0]


@cache
def coded_class(kind: Any) -> Any:
    """The class of a layer of this class that runs from codes: a subclass, so that it is still called what it is."""
    base = CodedLinear if issubclass(kind, nn.Linear) else CodedConv
    return type(kind.__name__, (base, kind), {"__module__": __name__})

"""A model that runs from a file's codes, and what each of its layers does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from deepcompression.errors import InputError
from deepcompression.runtime.coded import DENSE, Coded, not_copied
from deepcompression.runtime.table import Layer, table


class Running(nn.Module):
    """``model``, whose layers run as ``layers`` says. Inference alone: no gradients, copies or pickles."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.model = model
        self._rows = tuple(layers)
        self.eval().requires_grad_(False)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Each Linear and Conv layer, in the model's order, with its bytes as they are now."""
        return tuple(map(self._now, self._rows))

    def _now(self, row: Layer) -> Layer:
        module = self.model.get_submodule(row.name)
        if not isinstance(module, Coded):
            return row
        return Layer(**{**vars(row), "bytes": module.form.nbytes})

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights of all layers in ``layers`` that are in memory."""
        return sum(one.bytes for one in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same weights in a dense model."""
        return sum(one.dense_bytes for one in self.layers)

    def forward(self, *values: Any, **named: Any) -> Any:
        """What the model gives, without gradients."""
        if torch.is_grad_enabled() and any(
            isinstance(one, Tensor) and one.requires_grad for one in (*values, *named.values())
        ):
            raise InputError(f"a model that runs from codes has no gradients; {DENSE}")
        return self.model(*values, **named)

    def report(self) -> str:
        """A table of how each layer runs, what it weighs in memory, what was measured, and why."""
        return table(self.layers)

    def train(self, mode: bool = True) -> Any:
        """Inference alone is offered."""
        if mode:
            raise InputError(f"a model that runs from codes is not trained; {DENSE}")
        return super().train(mode)

    def state_dict(self, *_: Any, **__: Any) -> NoReturn:
        """There is none: the file is it."""
        raise InputError(f"a model that runs from codes has no state_dict; that is in the file; {DENSE}")

    def load_state_dict(self, *_: Any, **__: Any) -> NoReturn:
        """There is none."""
        raise InputError("a model that runs from codes takes no state_dict; save it to a file and run that")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        moved = fn(torch.zeros(1))
        if moved.dtype != torch.float32 or moved.device.type != "cpu":
            raise InputError(f"a model that runs from codes is in float32 on the CPU alone; {DENSE}")
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise not_copied("a model")

"""Multiplications and additions of a model, layer by layer; those with a weight that is zero counted apart.

Convolutions, matrix products and attention are counted, as PyTorch sees them: of a bias, an activation, a norm or a
pooling nothing, and of a padded border as much as of the picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deepcompression.network.trace import resting

LOOKUPS = (nn.Embedding, nn.EmbeddingBag)  # have weights, and multiply nothing


@dataclass(frozen=True)
class Layer:
    """A module in whose own forward something was counted.

    ``macs``: multiplications with an addition. ``nonzero``: those with a weight that is not zero; where two activations
    are multiplied, all.
    """

    name: str
    kind: str
    macs: int
    nonzero: int

    @property
    def density(self) -> float:
        """The share that is not a multiplication with zero."""
        return self.nonzero / self.macs if self.macs else 0.0


@dataclass(frozen=True)
class Flops:
    """What one forward takes. ``left_out``: name -> kind of modules with weights in which nothing could be counted."""

    layers: Sequence[Layer] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiplications with an addition, over all layers."""
        return sum(one.macs for one in self.layers)

    @property
    def nonzero(self) -> int:
        """Those with a weight that is not zero."""
        return sum(one.nonzero for one in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations: two a multiplication with an addition."""
        return 2 * self.macs


def count(model: nn.Module, inputs: Sequence[Tensor]) -> Flops:
    """Runs ``model`` once, in eval mode, and counts; for a sample's count give a batch of one.

    Args:
        model: on any device.
        inputs: what its forward takes by position.
    """
    return count_in(model, lambda one: one(*inputs))


def count_in(model: nn.Module, run: Callable[[nn.Module], object]) -> Flops:
    """Counts what ``model`` does, in eval mode, while something runs it.

    Args:
        model: on any device.
        run: calls its forward.
    """
    counting = _Counting()
    with resting(model), torch.no_grad(), _in_the_open(), _followed(model, counting), counting:
        run(model)
    modules = dict(model.named_modules())
    layers = [Layer(name, type(modules[name]).__name__, *macs) for name, macs in counting.macs.items()]
    return Flops(layers, {name: type(modules[name]).__name__ for name in _left_out(modules, counting)})


def macs_in(model: nn.Module, run: Callable[[nn.Module], object]) -> int:
    """The multiplications of ``count_in``.

    Args:
        model: on any device.
        run: calls its forward.
    """
    return count_in(model, run).macs


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every op below autograd: ``macs`` by the module whose forward runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self.known: Mapping[Any, Any] = flop_registry
        self.within = [""]
        self.called = dict[str, None]()
        self.macs = dict[str, tuple[int, int]]()
        self.weights = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in self.known:
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        macs = int(self.known[func._overloadpacket](*args, **kwargs, out_val=out)) // 2
        total, nonzero = self.macs.get(self.within[-1], (0, 0))
        self.macs[self.within[-1]] = total + macs, nonzero + _used(macs, self._weight(func, args))
        return out

    def _weight(self, func: Any, args: Sequence[Any]) -> Tensor | None:
        """The operand that holds weights: each of them is used as often as any other."""
        if "conv" in func._overloadpacket.__name__:
            return args[1] if isinstance(args[1], Tensor) else None
        factors = [one for one in args if isinstance(one, Tensor)][-2:]
        return next((one for one in factors if _place(one) in self.weights), None)


def _used(macs: int, weight: Tensor | None) -> int:
    return macs if weight is None else round(macs * int(weight.count_nonzero()) / max(weight.numel(), 1))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _left_out(modules: Mapping[str, nn.Module], counting: _Counting) -> Iterator[str]:
    """Modules that ran, have a matrix of their own, and no count, they or what is in them."""
    counted = [f"{name}." for name in counting.macs]
    for name in counting.called:
        own = any(one.ndim > 1 for one in modules[name].parameters(recurse=False))
        below = any(one.startswith(f"{name}.") for one in counted)
        if own and not below and not isinstance(modules[name], LOOKUPS):
            yield name


@contextmanager
def _followed(model: nn.Module, counting: _Counting) -> Iterator[None]:
    """``counting`` knows whose forward runs, and which tensors are weights."""
    counting.weights = {_place(one) for one in (*model.parameters(), *model.buffers())}

    def watch(name: str) -> tuple[Any, Any]:
        def enter(*_: object) -> None:
            counting.within.append(name)
            counting.called[name] = None

        def leave(*_: object) -> None:
            counting.within.pop()

        return enter, leave

    with ExitStack() as stack:
        for name, module in model.named_modules():
            enter, leave = watch(name)
            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


@contextmanager
def _in_the_open() -> Iterator[None]:
    """Attention and recurrent layers as the matrix products that they are made of, not as one op."""
    from torch.backends import mha, mkldnn
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Intel's GPUs, whenever the flags are set
            with mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        mha.set_fastpath_enabled(fast)

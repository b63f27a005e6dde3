"""Which known layer a module is: its class, the one whose forward it has, or one that it was found to be like."""

from __future__ import annotations

from torch import fx, nn

from deepcompression.network import foreign
from deepcompression.network.nodes import ELEMENTWISE, POOLS, RESTING

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_DECIDE = ("forward", "_conv_forward", "__call__")  # what a subclass that is the layer itself has not of its own


class Elementwise(nn.Module):
    """Stands for what goes element by element, and is nobody's known layer."""


class Normalising(nn.Module):
    """Stands for a BatchNorm with more in its forward, an activation say, that keeps channels apart."""


KNOWN = (*WEIGHTED, *NORMS, *RESTING, *ELEMENTWISE, *POOLS, nn.Flatten, Elementwise, Normalising)


class Kinds:
    """The kind of each module of a model: found beforehand, for nothing can be tried while torch.fx traces."""

    def __init__(self, model: nn.Module) -> None:
        self._found = {one: _kind(one) for one in model.modules() if type(one) not in KNOWN}

    def __call__(self, module: nn.Module | None) -> type | None:
        """One of ``KNOWN``, or the module's own class."""
        return None if module is None else self._found.get(module, type(module))


def _kind(module: nn.Module) -> type:
    own = type(module)
    kind = next((one for one in own.__mro__ if one in KNOWN and _inherits(own, one)), None)
    if kind is not None:
        computed = kind in WEIGHTED and "weight" not in module._parameters  # by a parametrization, or a property
        return own if computed else kind
    return own if own.__module__.startswith("torch.") else _like(module) or own


def _inherits(own: type, kind: type) -> bool:
    return all(getattr(own, one, None) is getattr(kind, one, None) for one in _DECIDE)


def _like(module: nn.Module) -> type | None:
    """What a module with a forward of its own was found to be like."""
    known = next((one for one in type(module).__mro__ if one in (*WEIGHTED, *NORMS, *POOLS)), None)
    if known in WEIGHTED:
        return known if foreign.is_weighted(module, known) else None
    if known in NORMS:
        return Normalising if foreign.is_normalising(module) else None
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    if known in POOLS:
        return known if foreign.is_by_channel(module) else None
    alone = next(module.children(), None) is None
    return Elementwise if alone and foreign.is_elementwise(module) else None


class Tracer(fx.Tracer):
    """Does not look into what is of a known kind."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self.kinds = kinds

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        return self.kinds(m) in KNOWN or super().is_leaf_module(m, module_qualified_name)

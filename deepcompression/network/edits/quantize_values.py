"""``{"kind": "quantize_values", "sites": [...], "range": ..., "bits": ..., "scheme": ...}``: values on a grid.

A site is ``module:input[i]`` or ``module:output[i]``; the sites of one record carry the same value and share one grid.
Of a recurrent module ``module:layer[i]`` is what goes into its layer i, from 1 on, and ``module:hidden[i]`` the hidden
state that each step multiplies, numbered as in the module's second output; their ranges are by the values of a call.
``range`` is ``static`` (scale and zero point are tensors of the state_dict, below the module's own name, such as
``conv1.input_0_scale``), ``dynamic`` (by the values of each call), ``dynamic_row`` (of each sample of the first
dimension) or ``dynamic_token`` (of each vector along the last). ``scheme`` is ``symmetric`` (integers from
-2^(bits-1) on, 0 is 0) or ``asymmetric`` (from 0 on, the zero point is an integer: 0 is exact here too).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from deepcompression.errors import EditError
from deepcompression.network.edits import recurrent
from deepcompression.network.edits.integers import levels, on_grid, range_of
from deepcompression.network.edits.record import Record, add_tensor, check_keys, misfit, module_of, text, whole
from deepcompression.network.names import join

RANGES = ("static", "dynamic", "dynamic_row", "dynamic_token")
SCHEMES = ("symmetric", "asymmetric")
MOST_BITS = 16
INSIDE = (recurrent.LAYER, recurrent.HIDDEN)  # sides of a recurrent module's own
_SITE = re.compile(r"(.*):(input|output|layer|hidden)\[(0|[1-9][0-9]{0,3})\]")


class Site(NamedTuple):
    """An input or output of a module, or what a recurrent one computes inside: ``side`` and number."""

    module: str
    side: str
    number: int

    def __str__(self) -> str:
        return f"{self.module}:{self.side}[{self.number}]"

    def tensor(self, what: str) -> str:
        """What the module calls its ``scale``, its ``zero_point``, or the mark of a dynamic one (``edit``)."""
        return f"{self.side}_{self.number}_{what}"


def read_site(site: str) -> Site | None:
    """``module:input[i]``, or another side of the module; None where it is none."""
    found = _SITE.fullmatch(site)
    return Site(found[1], found[2], int(found[3])) if found else None


@dataclass(frozen=True)
class AtSite:
    """A hook that changes one input or output of the module it is called for."""

    kind: ClassVar[str]  # of edit
    site: Site

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value, of at least one element, as it is used."""
        raise NotImplementedError

    def rounded(self, module: nn.Module, value: object) -> Any:
        """The value as it is used; EditError where it is none."""
        if isinstance(value, PackedSequence):
            return value._replace(data=self.rounded(module, value.data))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise EditError(f"edit {self.kind}: {self.site} is no floating-point tensor, but {_kind(value)}")
        return self.changed(module, value) if value.numel() else value

    def replaced(self, module: nn.Module, values: Any) -> Any:
        """The values, this site's one changed, in a sequence of the same type."""
        if len(values) <= self.site.number:
            raise EditError(
                f"edit {self.kind}: {self.site} is not there: {len(values)} values come by position; "
                "what comes by keyword is no site"
            )
        changed = list(values)
        changed[self.site.number] = self.rounded(module, changed[self.site.number])
        return type(values)(*changed) if hasattr(values, "_fields") else type(values)(changed)


@dataclass(frozen=True)
class Before(AtSite):
    """Before a forward."""

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """The arguments, one of them changed."""
        return self.replaced(module, arguments)


@dataclass(frozen=True)
class After(AtSite):
    """After a forward."""

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """The output, it or one of its parts changed."""
        if isinstance(output, tuple | list):
            return self.replaced(module, output)
        return self.replaced(module, (output,))[0]


@dataclass(frozen=True)
class Quantizer(AtSite):
    """A hook by which values become one of few."""

    def beyond(self, module: nn.Module, value: Tensor) -> tuple[int, int]:
        """How many of the values lie beyond the ends of what they can become; and how many there are."""
        raise NotImplementedError


@dataclass(frozen=True)
class OnGrid(Quantizer):
    """By the grid that the module holds."""

    kind = "quantize_values"
    range: str
    bits: int
    scheme: str

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value on its grid; float16 and bfloat16 are divided as float32."""
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        scale, zero = self._grid(module, exact)
        return on_grid(exact, scale, zero, *levels(self.bits, self.scheme)).to(value.dtype)

    def _grid(self, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor | int]:
        if self.range != "static":
            return range_of(value, self.bits, self.scheme, self.range)
        scale: Tensor = getattr(module, self.site.tensor("scale"))
        return scale, getattr(module, self.site.tensor("zero_point"), 0)

    def beyond(self, module: nn.Module, value: Tensor) -> tuple[int, int]:
        """How many of the values lie beyond the ends of the grid, by more than rounding; and how many there are."""
        exact = value.detach().to(torch.promote_types(value.dtype, torch.float32))
        if not value.numel():
            return 0, 0
        scale, zero = self._grid(module, exact)
        low, high = levels(self.bits, self.scheme)
        steps = (exact / scale).round() + zero
        return int(((steps < low) | (steps > high)).sum()), value.numel()


@dataclass(frozen=True)
class InputQuantizer(Before, OnGrid):
    """Before a forward."""


@dataclass(frozen=True)
class OutputQuantizer(After, OnGrid):
    """After a forward."""


@dataclass(frozen=True)
class InsideQuantizer(OnGrid):
    """In a forward of a recurrent module, which asks for it."""

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Nothing yet."""


def _step_by_step(module: nn.RNNBase | nn.RNNCellBase, input: Any, hx: Any = None) -> Any:
    """The forward of a recurrent module that has sites inside."""
    found = {(one.site.side, one.site.number): one for one in quantizers(module)}

    def rounded(side: str, number: int, value: Tensor) -> Tensor:
        one = found.get((side, number))
        return value if one is None else one.changed(module, value)

    return recurrent.forward(module, input, hx, rounded)


def apply(model: nn.Module, record: Record) -> None:
    """Register hooks, and the tensors that they read, at each site.

    Raises:
        EditError: no such module, a module that is never called as one, no known range or scheme, impossible bits, or
            a site that is quantized already.
    """
    check_keys(record, "sites", "range", "bits", "scheme")
    sites = sites_of(record)
    for key, known in (("range", RANGES), ("scheme", SCHEMES)):
        if text(record, key) not in known:
            since = f"; it needs deep-compression {record['since']}" if record.get("since") else ""
            raise misfit(record, f"{key} is one of {', '.join(known)}, not {record[key]!r}{since}"[:200])
    if not 2 <= whole(record, "bits", record["bits"]) <= MOST_BITS:
        raise misfit(record, f"bits are from 2 to {MOST_BITS}, not {record['bits']}")
    inside = [site for site in sites if site.side in INSIDE]
    if inside and record["range"] == "static":
        raise misfit(record, f"range of {inside[0]} is static; what a recurrent layer computes has a dynamic one")
    hooks = {"input": InputQuantizer, "output": OutputQuantizer, **dict.fromkeys(INSIDE, InsideQuantizer)}
    made = [hooks[site.side](site, record["range"], record["bits"], record["scheme"]) for site in sites]
    install(model, record, made, _tensors(record))


def install(model: nn.Module, record: Record, hooks: Sequence[AtSite], tensors: Mapping[str, Tensor]) -> None:
    """Register hooks at their sites, and the tensors that they read, the same objects at each site.

    Args:
        model: in which the sites are.
        record: for messages.
        hooks: each at its site.
        tensors: by what they are (``scale``), with their first values.

    Raises:
        EditError: there is no such module, it is never called as one, or has such a tensor.
    """
    modules = [module_of(model, record, hook.site.module) for hook in hooks]
    for hook in hooks:
        why = uncalled(model, hook.site)
        if why:
            raise misfit(record, f"{hook.site} cannot be quantized: {why}")
    for hook, module in zip(hooks, modules, strict=True):
        for what, value in tensors.items():
            add_tensor(module, record, hook.site.module, hook.site.tensor(what), value)
        called: Any = hook
        (module.register_forward_hook if hook.site.side == "output" else module.register_forward_pre_hook)(called)
        if hook.site.side in INSIDE:
            module.forward = MethodType(_step_by_step, module)


def check_values(model: nn.Module, record: Record, state: Mapping[str, Tensor]) -> None:
    """Raise EditError where a scale in ``state`` is not finite and above 0, or a zero point not of the grid.

    Args:
        model: with the edit applied.
        record: of the edit.
        state: tensors that are to be loaded.

    Raises:
        EditError: the first such site.
    """
    low, high = levels(record["bits"], record["scheme"])
    for site in sites_of(record):
        scale, zero = (state.get(join(site.module, site.tensor(what))) for what in ("scale", "zero_point"))
        if scale is not None and not bool((scale.isfinite() & (scale > 0)).all()):
            raise misfit(record, f"the scale of {site} must be finite and above 0, not {scale.tolist()}"[:200])
        if zero is not None and not bool(((zero >= low) & (zero <= high)).all()):
            raise misfit(record, f"the zero point of {site} must be from {low} to {high}, not {zero.tolist()}"[:200])


def state_names(record: Record) -> list[str]:
    """What the tensors are called that a record has in the state_dict.

    Args:
        record: of the edit.

    Raises:
        EditError: it is not of this kind.
    """
    check_keys(record, "sites", "range", "bits", "scheme")
    return [join(site.module, site.tensor(what)) for site in sites_of(record) for what in _tensors(record)]


def quantizers(module: nn.Module) -> list[Quantizer]:
    """The hooks of a module by which values become one of few."""
    return [hook for hook in at_sites(module) if isinstance(hook, Quantizer)]


def at_sites(module: nn.Module) -> list[AtSite]:
    """The hooks of a module by which edits change values."""
    hooks: list[Any] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if isinstance(hook, AtSite)]


def sites_of(record: Record) -> list[Site]:
    """The sites that a record lists, at least one; EditError where it lists none."""
    given = record["sites"]
    if not isinstance(given, list | tuple) or not given:
        raise misfit(record, f"sites are a list of at least one, not {given!r}"[:200])
    found = [read_site(site) if isinstance(site, str) else None for site in given]
    for site, one in zip(given, found, strict=True):
        if one is None:
            raise misfit(record, f"a site is module:input[i] or module:output[i], layer or hidden, not {site!r}"[:200])
    return [one for one in found if one is not None]


def _tensors(record: Record) -> dict[str, Tensor]:
    """What the state_dict has of a record, by what it is; values come from there."""
    if record["range"] != "static":
        return {"edit": torch.zeros((), dtype=torch.uint8)}
    zero = {"zero_point": torch.zeros((), dtype=torch.int32)} if record["scheme"] == "asymmetric" else {}
    return {"scale": torch.ones(()), **zero}


def uncalled(model: nn.Module, site: Site) -> str:
    """Why hooks of a module would never be called, as far as that is known; else empty."""
    module, parent = (model.get_submodule(name) for name in (site.module, site.module.rpartition(".")[0]))
    if site.side in INSIDE and (why := _no_such(module, site)):
        return why
    if isinstance(module, torch.jit.ScriptModule):
        return "it is in a TorchScript module"
    if isinstance(parent, nn.MultiheadAttention) and module is not parent:
        return f"the attention {site.module.rpartition('.')[0]} takes its projections' weights and never calls them"
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return f"a {type(module).__name__} is never called"
    return ""


def _no_such(module: nn.Module, site: Site) -> str:
    """Why a module has no such layer, or hidden state; else empty."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"a {type(module).__name__} is no recurrent layer"
    layers, ways = (module.num_layers, 1 + module.bidirectional) if isinstance(module, nn.RNNBase) else (1, 1)
    known = range(1, layers) if site.side == recurrent.LAYER else range(layers * ways)
    return "" if site.number in known else f"it has {layers} layers of {ways} directions"


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__

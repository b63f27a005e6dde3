"""A model as a chain: a layer takes what the one before makes; all else is done to its output, plane by plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.errors import ExportError, in_one_line
from deepcompression.export.c_network import NONE, ONE, Clamp, Grid, Network, Norm, Op, Pair, Pool, Shape, Step
from deepcompression.network.edits.integers import levels
from deepcompression.network.edits.quantize_values import OnGrid
from deepcompression.network.nodes import DROPOUT_CALLS, RESTING
from deepcompression.network.trace import resting


def chain_of(model: nn.Module, sample: Sequence[Tensor]) -> Network:
    """The chain that a model is.

    Args:
        model: on the CPU; it is called with the sample, in eval mode.
        sample: what its forward takes by position: one batch.

    Raises:
        ExportError: it is no chain, or has an operation that is not written.
    """
    if len(sample) != 1 or sample[0].ndim < 2 or sample[0].dtype != torch.float32:
        told = ", ".join(f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}" for one in sample)
        raise ExportError(f"export c: it takes {told}; one batch of float32 is written")
    batch = sample[0] if len(sample[0]) > 1 else torch.cat([sample[0]] * 2)
    whole = _Whole(model)
    with resting(whole), torch.no_grad():
        with in_one_line("export c: torch.fx cannot trace the model", ExportError):
            graph = _traced(whole)
        seen = _Seen(fx.GraphModule(whole, graph))
        with in_one_line("export c: the model cannot be run on its sample", ExportError):
            seen.run(batch)
        return _Walk(whole, seen.shapes, len(batch)).through(graph)


class _Whole(nn.Module):
    """The model as a module of its own: hooks and all of the outermost one are seen too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Any:
        return self.model(batch)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        hooked = bool(m._forward_hooks or m._forward_pre_hooks)
        return hooked or super().is_leaf_module(m, module_qualified_name)


def _traced(whole: _Whole) -> fx.Graph:
    own = {name: set(vars(module)) for name, module in whole.named_modules()}
    graph = _Tracer().trace(whole)
    for name, module in whole.named_modules():
        for left in set(vars(module)) - own.get(name, set(vars(module))):  # constants that the tracer leaves behind
            delattr(module, left)
    return graph


class _Seen(fx.Interpreter):
    """Runs a graph, and keeps the shape of each tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            self.shapes[n.name] = tuple(found.shape)
        return found


def _name(target: object) -> str:
    return str(target).removeprefix("model").removeprefix(".")


def _pair(value: Any, dimensions: int, other: int) -> Pair:
    """Rows and columns; of one dimension it is that of columns, beside one row."""
    given = tuple(value) if isinstance(value, tuple | list) else (value,) * dimensions
    return cast(Pair, (other,) * (2 - len(given)) + given)


class _Walk:
    """From node to node, making steps."""

    def __init__(self, whole: nn.Module, shapes: dict[str, tuple[int, ...]], batch: int) -> None:
        self.modules = dict(whole.named_modules())
        self.shapes, self.batch = shapes, batch
        self.steps: list[Step] = []
        self.shape: Shape = (0, 0, 0)

    def through(self, graph: fx.Graph) -> Network:
        current: fx.Node | None = None
        takes: tuple[int, ...] = ()
        for node in graph.nodes:
            if node.op == "placeholder":
                current, takes = node, self.shapes[node.name][1:]
                self.shape = self._shape(node)
            elif node.op == "output":
                if node.all_input_nodes != [current]:
                    raise ExportError("export c: it has several outputs; a chain, which ends in one, is written")
            elif node.name in self.shapes:
                taken = [one for one in node.all_input_nodes if one.name in self.shapes]
                if node.op == "get_attr":
                    raise self._refused(node, "is read by forward itself; layers are written that are modules")
                if taken != [current]:
                    raise self._refused(node, "joins tensors; only a chain is written, each layer on the one before")
                self._step(node)
                self.shape, current = self._shape(node), node
        assert current is not None
        if not self.steps:
            raise ExportError("export c: it has no layer")
        return Network(self.steps, takes, self.shapes[current.name][1:])

    def _shape(self, node: fx.Node) -> Shape:
        """The shape of a sample as channels, rows and columns."""
        shape = self.shapes[node.name]
        if not shape or shape[0] != self.batch:
            raise self._refused(node, f"gives {shape} of a batch of {self.batch}: samples do not stay apart")
        sizes = shape[1:]
        if len(sizes) == 3:
            return sizes
        return (sizes[0], 1, sizes[1]) if len(sizes) == 2 else (math.prod(sizes), 1, 1)

    def _step(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        else:
            self._call(node)

    def _module(self, node: fx.Node, module: Any) -> None:
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        for hook in hooks:
            if not isinstance(hook, OnGrid) or hook.site.number:
                raise self._refused(node, "has hooks")
        for hook in hooks:
            if hook.site.side == "input":
                self._grid(hook, module)
        self._inside(node, module)
        for hook in hooks:
            if hook.site.side == "output":
                self.shape = self._shape(node)
                self._grid(hook, module)

    def _inside(self, node: fx.Node, module: Any) -> None:
        kind = type(module)
        if kind in (nn.Linear, nn.Conv1d, nn.Conv2d):
            self.steps.append(self._layer(node, module))
        elif isinstance(module, _BatchNorm):
            self._norm(node, module)
        elif kind in (nn.ReLU, nn.ReLU6, nn.Hardtanh):
            low, high = (0.0, math.inf) if kind is nn.ReLU else (module.min_val, module.max_val)
            self._add(Clamp(float(low), float(high)))
        elif kind in (nn.MaxPool1d, nn.MaxPool2d):
            self._pool(node, module.kernel_size, module.stride, module.padding, module.dilation, module.return_indices)
        elif kind in (nn.AvgPool1d, nn.AvgPool2d):
            divisor = getattr(module, "divisor_override", None)
            self._mean(node, module.kernel_size, module.stride, module.padding, module.ceil_mode,
                       module.count_include_pad, divisor)  # fmt: skip
        elif kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d):
            self._adaptive(node, mean="Avg" in kind.__name__)
        elif kind not in (*RESTING, nn.Flatten, nn.Unflatten):
            raise self._refused(node, "is not written")

    def _call(self, node: fx.Node) -> None:
        target, given = node.target, node.args[1:]
        if target in ("relu", "relu_", torch.relu, torch.relu_, F.relu, F.relu_):
            self._add(Clamp(0.0, math.inf))
        elif target is F.relu6:
            self._add(Clamp(0.0, 6.0))
        elif target in (F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d):
            read = self._arguments(node, ("kernel", "stride", "padding", "dilation", "ceil_mode", "return_indices"))
            self._pool(node, read["kernel"], read.get("stride"), read.get("padding", 0), read.get("dilation", 1),
                       read.get("return_indices", False))  # fmt: skip
        elif target in (F.avg_pool1d, F.avg_pool2d):
            names = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            read = self._arguments(node, names)
            self._mean(node, read["kernel"], read.get("stride"), read.get("padding", 0), read.get("ceil_mode", False),
                       read.get("count_include_pad", True), read.get("divisor_override"))  # fmt: skip
        elif target in (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d):
            self._adaptive(node, mean=target in (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d))
        elif target in ("mean", torch.mean):
            self._over_all(node, given)
        elif target in DROPOUT_CALLS and node.kwargs.get("training", True) is False:
            return
        elif target not in (
            *("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "contiguous", "clone", "float"),
            *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
        ):
            raise self._refused(node, "is not written")

    def _arguments(self, node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
        named = {key.removesuffix("_size"): value for key, value in node.kwargs.items() if key != "input"}
        return {**dict(zip(names, node.args[1:], strict=False)), **named}

    def _layer(self, node: fx.Node, module: Any) -> Step:
        name, weight = _name(node.target), module.weight.detach()
        if weight.dtype != torch.float32 or not weight.numel():
            raise self._refused(node, f"has {weight.numel()} weights of {str(weight.dtype).removeprefix('torch.')}")
        bias = None if module.bias is None else module.bias.detach()
        if isinstance(module, nn.Linear):
            if len(self.shapes[node.name]) != 2:
                raise self._refused(node, f"is applied to {self.shapes[node.name]}; vectors are written")
            into: Shape = (module.in_features, 1, 1)
            return Step(name, into, (module.out_features, 1, 1), weight[:, :, None, None], bias)
        if module.padding_mode != "zeros":
            raise self._refused(node, f"pads by {module.padding_mode}; zeros are written")
        dimensions = weight.ndim - 2
        kernel = _pair(module.kernel_size, dimensions, 1)
        dilation = _pair(module.dilation, dimensions, 1)
        if isinstance(module.padding, str):
            around = [d * (k - 1) if module.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
            padding: Pair = (around[0] // 2, around[1] // 2)
        else:
            padding = _pair(module.padding, dimensions, 0)
        out = self._shape(node)
        return Step(
            name, self.shape, out, weight.reshape(*weight.shape[:2], *kernel), bias, module.groups,
            _pair(module.stride, dimensions, 1), padding, dilation,
        )  # fmt: skip

    def _norm(self, node: fx.Node, module: _BatchNorm) -> None:
        if module.running_mean is None or module.running_var is None:
            raise self._refused(node, "has no running statistics")
        scale = 1 / np.sqrt(module.running_var.double().numpy() + module.eps)
        shift = -module.running_mean.double().numpy() * scale
        if module.affine:
            weight, bias = (one.detach().double().numpy() for one in (module.weight, module.bias))
            scale, shift = scale * weight, shift * weight + bias
        self._add(Norm(_name(node.target), scale, shift))

    def _pool(self, node: fx.Node, kernel: Any, stride: Any, padding: Any, dilation: Any, places: bool) -> None:
        rank = len(self.shapes[node.name]) - 2
        if places or _pair(dilation, rank, 1) != ONE:
            raise self._refused(node, "has dilation, or gives places too, which is not written")
        self._window(node, False, kernel, stride, padding, False)

    def _mean(
        self, node: fx.Node, kernel: Any, stride: Any, padding: Any, ceil: bool, whole: bool, divisor: Any
    ) -> None:
        if ceil or divisor is not None:
            raise self._refused(node, "has ceil_mode or divisor_override, which is not written")
        self._window(node, True, kernel, stride, padding, whole)

    def _window(self, node: fx.Node, mean: bool, kernel: Any, stride: Any, padding: Any, whole: bool) -> None:
        rank = len(self.shapes[node.name]) - 2
        size = _pair(kernel, rank, 1)
        step = size if stride is None or stride == [] else _pair(stride, rank, 1)
        out = self._shape(node)
        self._add(Pool(mean, size, step, _pair(padding, rank, 0), out[1:], whole))

    def _adaptive(self, node: fx.Node, mean: bool) -> None:
        """Windows of one size, where there are such."""
        (_, rows, columns), (_, *out) = self.shape, self._shape(node)
        if rows % out[0] or columns % out[1]:
            raise self._refused(node, f"makes {tuple(out)} of {(rows, columns)}: windows of several sizes")
        size = (rows // out[0], columns // out[1])
        self._add(Pool(mean, size, size, NONE, (out[0], out[1])))

    def _over_all(self, node: fx.Node, given: tuple[Any, ...]) -> None:
        """A mean over all places of each channel."""
        over: Any = node.kwargs.get("dim", given[0] if given else None)
        rank = len(self.shapes[node.all_input_nodes[0].name])
        axes = {axis % rank for axis in ([over] if isinstance(over, int) else over or [])}
        if axes != set(range(2, rank)) or not axes:
            raise self._refused(node, "is no mean over all places of each channel")
        self._add(Pool(True, self.shape[1:], self.shape[1:], NONE, ONE))

    def _grid(self, hook: OnGrid, module: nn.Module) -> None:
        if hook.range != "static":
            raise ExportError(
                f"export c: {hook.site} has the range {hook.range}, of values that are not known before; "
                "static ones are written"
            )
        scale, zero = hook._grid(module, torch.zeros(1))
        low, high = levels(hook.bits, hook.scheme)
        found = Grid(str(hook.site), float(scale), low - int(zero), high - int(zero), hook.bits)
        self._add(found)

    def _add(self, op: Op) -> None:
        """To the last step; to a copy where planes are others than the step's."""
        if not self.steps or (isinstance(op, Norm | Pool) and self.steps[-1].made != self.shape):
            self.steps.append(Step("", self.shape, self.shape))
        self.steps[-1].ops.append(op)

    def _refused(self, node: fx.Node, why: str) -> ExportError:
        what = _name(getattr(node.target, "__name__", node.target))
        if node.op == "call_module":
            what = f"{_name(node.target) or 'the model'} ({type(self.modules[str(node.target)]).__name__})"
        return ExportError(f"export c: {what} {why}")

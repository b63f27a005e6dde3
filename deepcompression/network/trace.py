"""Units: chains of two layers in which the output channels of one are the input channels of the next, by the graph."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.network.chains import WHOLE, Chain, Step
from deepcompression.network.foreign import keeps_constants, of_constants
from deepcompression.network.kinds import Elementwise, Kinds, Normalising, Tracer
from deepcompression.network.names import join, memory, prunable
from deepcompression.network.nodes import (
    DROPOUT_CALLS,
    ELEMENTWISE,
    ELEMENTWISE_CALLS,
    MEAN_CALLS,
    POOL_CALLS,
    POOLS,
    RESHAPE_CALLS,
    RESTING,
    UnitPath,
    depthwise,
    flattens,
    guesses,
    hooked,
    is_batch,
    mean,
    normalised,
    pads,
    pool,
    reads_shape,
    taken_alone,
)

_DIMENSIONS: dict[type | None, int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2}


Seen = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def shapes(model: nn.Module, run: Callable[[nn.Module], Any]) -> Seen:
    """Shapes of what goes into, and comes out of, the modules that ``run(model)`` calls, by name; the first call's."""
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen.setdefault(name, (tuple(inputs[0].shape), tuple(output.shape)))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with resting(model), torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def chains(model: nn.Module, seen: Seen | None = None) -> tuple[list[Chain], dict[str, str]]:
    """The chains of units that ``model``'s graph has, in its order; and of each other layer why it begins none.

    A chain leads from a Linear, Conv1d or Conv2d by element-wise operations, BatchNorm, pools, flattening and depthwise
    convolutions to the one layer that takes its output. Layers with other groups, with tied or computed weights, with
    hooks, or used more than once are in no chain. Subclasses with a forward of their own are tried (``foreign``).

    Args:
        model: with ordinary parameters; not changed. Its samples are batches: the first axis counts them.
        seen: of ``shapes``, for some samples. Without it, a chain is left out where only the shape of samples tells
            what an axis is: a BatchNorm behind a Linear whose inputs may be sequences, a ``view(-1, n)`` of a map.

    Returns:
        The chains, and reasons by the name of the layer (``WHOLE`` where torch.fx cannot trace the model).
    """
    names = [name.removesuffix("weight").removesuffix(".") for name in prunable(model)]
    try:
        graph = _Graph(model, seen or {})
    except Exception as error:  # a model's forward is anybody's code, traced with stand-ins for tensors
        lines = str(error).splitlines() or [type(error).__name__]
        return [], {WHOLE: f"torch.fx cannot trace it: {lines[0][:120]}"}
    found: list[Chain] = []
    left = {}
    for name in names:
        one = graph.chain(name)
        if isinstance(one, Chain):
            found.append(one)
        else:
            left[name or WHOLE] = one
    between = {weight.removesuffix(".weight") for one in found for weight in one.through}
    left = {name: reason for name, reason in left.items() if name not in between}
    order = {node.target: place for place, node in enumerate(graph.nodes) if node.op == "call_module"}
    return sorted(found, key=lambda chain: order[chain.producer]), left


@contextlib.contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode while the block runs, then in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Graph:
    """A model's graph and what its modules are; raises whatever tracing raises."""

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        self.seen, self.kinds = seen, Kinds(model)
        own = set(vars(model))
        with resting(model):
            self.nodes = list(Tracer(self.kinds).trace(model).nodes)
        for name in set(vars(model)) - own:  # constants that the tracer leaves behind
            delattr(model, name)
        self.modules = dict(model.named_modules())
        self.calls = {str(node.target): node for node in self.nodes if node.op == "call_module"}
        self.uses = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        # What forward reads by itself, beside the module's own call, counts as one more.
        read = [str(node.target) for node in self.nodes if node.op == "get_attr"]
        self.tensors = Counter(memory(parameters[name]) for name in [*parameters, *read] if name in parameters)

    def chain(self, name: str) -> Chain | str:
        """The chain that begins at a layer, or why there is none."""
        reason = self._unfit(name)
        if reason:
            return reason
        layer: Any = self.modules[name]
        dimensions = _DIMENSIONS[self.kinds(layer)]
        node = self.calls[name]
        path = UnitPath(len(layer.weight), dimensions, flat=False, rank=self._rank(node))
        if dimensions and name in self.seen and len(self.seen[name][1]) != dimensions + 2:
            return "its input has no axis that counts samples"
        while True:
            users = [user for user in node.users if not reads_shape(user)]
            if len(users) != 1:
                return f"its output goes to {len(users)} places" if users else "nothing takes its output"
            user = users[0]
            if user.op == "output":
                return "its units are the model's outputs"
            if user.args[:1] != (node,) or any(one is not node and not is_batch(one) for one in user.all_input_nodes):
                return f"{self._told(user)} joins its output with other tensors"
            module = self.modules.get(str(user.target)) if user.op == "call_module" else None
            layer = self.kinds(module) in _DIMENSIONS
            if layer and not depthwise(module):
                return self._joined(name, str(user.target), path)
            step = self._depthwise(str(user.target), path) if layer else self._step(user, path)
            if isinstance(step, str):
                return step
            path.steps += [step]
            node = user

    def _joined(self, name: str, consumer: str, path: UnitPath) -> Chain | str:
        """The chain of two layers, if units arrive at the second as its input channels."""
        reason = self._unfit(consumer)
        if reason:
            return f"{consumer} takes its output: {reason}"
        first: Any
        second: Any
        first, second = self.modules[name], self.modules[consumer]
        inputs = second.weight.shape[1]
        if isinstance(second, nn.Linear):
            # Behind a flattening every unit is as many columns as it has places.
            fits = inputs % path.units == 0 if path.flat and _DIMENSIONS[self.kinds(first)] else inputs == path.units
            fits &= path.flat or not path.dimensions
        else:
            fits = not path.flat and path.dimensions == _DIMENSIONS[self.kinds(second)] and inputs == path.units
        if path.rewrapped and not self._whole_samples(name, consumer):
            return f"whether a row that {consumer} gets is one sample, only shapes of samples tell, or they deny it"
        if not fits:
            return f"its units do not reach {consumer} as input channels"
        return Chain(
            name,
            consumer,
            path.units,
            _DIMENSIONS[self.kinds(first)],
            (*self._own_rows(name), *path.rows),
            join(consumer, "weight"),
            None if second.bias is None else join(consumer, "bias"),
            self._pads(second),
            tuple(path.steps),
            tuple(path.through),
        )

    def _own_rows(self, name: str) -> list[str]:
        """A layer's tensors that have a place a unit."""
        layer: Any = self.modules[name]
        return [join(name, part) for part in ("weight", "bias") if getattr(layer, part) is not None]

    def _pads(self, layer: Any) -> bool:
        """Whether a constant that goes into a layer may come to another one at the borders."""
        kind = self.kinds(layer)
        own = type(layer) is kind or type(layer).forward is kind.forward  # type: ignore[union-attr]
        return pads(layer) if own else not keeps_constants(layer, kind)  # type: ignore[arg-type]

    def _depthwise(self, name: str, path: UnitPath) -> Step | str:
        """A convolution that takes each unit by itself: its places go and turn with the units."""
        layer: Any = self.modules[name]
        reason = self._unfit(name, groups=len(layer.weight))
        if reason:
            return f"{name} takes its output: {reason}"
        if path.flat or path.dimensions != _DIMENSIONS[self.kinds(layer)] or len(layer.weight) != path.units:
            return f"its units do not reach {name} as channels"
        path.rows += self._own_rows(name)
        path.through.append(join(name, "weight"))
        padded = self._pads(layer)
        return Step(lambda value: taken_alone(layer, value, padded))

    def _step(self, node: fx.Node, path: UnitPath) -> Step | str:
        """What a node between two layers does to constants, or why units are lost in it."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        kind = self.kinds(module)
        target = node.target
        if module is not None and hooked(module):
            return f"{self._told(node)} has hooks"
        if self._with_more(node):
            return f"{self._told(node)} is called with more than its input"
        if isinstance(module, _BatchNorm):
            return self._norm(str(target), module, path)
        if kind in RESTING or (target in DROPOUT_CALLS and node.kwargs.get("training", True) is False):
            return Step(lambda value: value)
        if kind in (*ELEMENTWISE, Elementwise) or target in ELEMENTWISE_CALLS:
            return Step(self._callable(node))
        if kind in POOLS or target in POOL_CALLS:
            return pool(self._callable(node), path) or f"{self._told(node)} mixes its units"
        if target in MEAN_CALLS:
            return mean(node, path) or f"{self._told(node)} mixes its units"
        if flattens(node, module):
            path.rewrapped |= bool(path.dimensions) and not path.flat and node.target in RESHAPE_CALLS and guesses(node)
            path.flat, path.rank = True, 2
            return Step(lambda value: value)
        return f"{self._told(node)} follows, through which units cannot be followed"

    def _norm(self, name: str, module: _BatchNorm, path: UnitPath) -> Step | str:
        if module.running_mean is None or module.running_var is None:
            return f"{name} has no running statistics"
        if not path.dimensions and path.rank is not None and path.rank > 2:
            # Of tokens, each with its own statistics: units stay apart, but a constant is another one at each token.
            return Step(lambda value: torch.full_like(value, torch.nan))
        if module.num_features != path.units:
            return f"{name} does not normalise its units"
        if not path.dimensions and path.rank != 2:
            what = "its input may have more than two axes (sequences)"
            return f"{name} normalises the second axis, units are the last, and {what}"
        if self.uses[name] > 1 or any(self.tensors[memory(one)] > 1 for one in module.parameters()):
            return f"{name} is used more than once"
        path.rows += [f"{name}.{part}" for part in ("weight", "bias") if getattr(module, part) is not None]
        path.rows += [f"{name}.running_mean", f"{name}.running_var"]
        if self.kinds(module) is Normalising:
            return Step(lambda value: of_constants(module, value))
        return Step(lambda value: normalised(module, value))

    def _whole_samples(self, name: str, consumer: str) -> bool:
        """Whether samples were seen to come to a layer one in a row, as they left another."""
        return {name, consumer} <= set(self.seen) and self.seen[name][1][0] == self.seen[consumer][0][0]

    def _rank(self, node: fx.Node) -> int | None:
        """How many axes a node's output has, where samples were seen or the graph tells."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if module is not None and node.target in self.seen:
            return len(self.seen[str(node.target)][1])
        if flattens(node, module):
            return 2
        same = (*RESTING, *ELEMENTWISE, Elementwise, nn.Linear, nn.BatchNorm1d)
        if self.kinds(module) in same or node.target in ELEMENTWISE_CALLS or node.target in DROPOUT_CALLS:
            before = node.args[0] if node.args else None
            return self._rank(before) if isinstance(before, fx.Node) else None
        return None

    def _callable(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """A node as a function of its one tensor."""
        if node.op == "call_module":
            module: Callable[[Tensor], Tensor] = self.modules[str(node.target)]
            return module
        if node.op == "call_method":
            return lambda value: getattr(value, str(node.target))(*node.args[1:], **node.kwargs)
        target: Callable[..., Tensor] = node.target  # type: ignore[assignment]
        return lambda value: target(value, *node.args[1:], **node.kwargs)

    def _with_more(self, node: fx.Node) -> bool:
        """Whether a module that was tried with its input alone is called with more than that."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        tried = module is not None and type(module) is not self.kinds(module)
        return tried and (len(node.args) != 1 or bool(node.kwargs))

    def _unfit(self, name: str, groups: int = 1) -> str:
        """Why a layer can be in no chain; empty if it can. ``groups``: those that it is to have."""
        module: Any = self.modules.get(name)
        if self.kinds(module) not in _DIMENSIONS:
            return f"it is no Linear, Conv1d or Conv2d, but {type(module).__name__}"
        if name not in self.calls:
            return "the graph does not call it as a module"
        if not module.weight.numel():
            return "it has no weights"
        if self.uses[name] > 1:
            return f"it is used {self.uses[name]} times"
        if any(self.tensors[memory(one)] > 1 for one in module.parameters()):
            return "its parameters are used elsewhere too"
        if getattr(module, "groups", 1) != groups:
            return f"it has {module.groups} groups"
        if self._with_more(self.calls[name]):
            return "it is called with more than its input"
        return "it has hooks" if hooked(module) else ""

    def _told(self, node: fx.Node) -> str:
        """A node, for people."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        return str(getattr(node.target, "__name__", node.target))

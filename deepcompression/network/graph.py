"""What a model computes, as it can be drawn: its layers and operations in order, and whose output each one takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from deepcompression.network.trace import resting

# Operations that compute nothing: what takes their output takes that of whatever they were given.
SILENT = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "contiguous",
        "clone",
        "detach",
        "to",
        "float",
        "half",
        "type_as",
        "expand",
        "expand_as",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "unbind",
        "getitem",
        "narrow",
        "select",
        "dropout",
        "dropout2d",
        "get",
        "set",
        "alias",
        "movedim",
        "swapaxes",
        "broadcast_to",
        "data",
    }
)


@dataclass
class Node:
    """A layer or an operation: ``module``, the layer's name in the model (empty of an operation), its ``kind``, the
    shape of its first output without the axis of samples, and the places of the nodes whose outputs it takes."""

    module: str
    kind: str
    shape: tuple[int, ...] = ()
    inputs: list[int] = field(default_factory=list)


def graph(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Node]:
    """Nodes in the order in which they are computed; the first is the input.

    A layer is a module whose weights, if it has any, are all its own; it is followed from the outside alone. A module
    that is called twice is two nodes. An operation that takes weights of a module bears that module's name.

    Args:
        model: put into eval mode meanwhile.
        run: calls its forward, with any samples.
    """
    watch = _Watch(model)
    with resting(model), torch.no_grad(), _followed(model, watch), watch:
        run(model)
    return watch.nodes


class _Watch(TorchFunctionMode):
    """Notes which node made each tensor: by the tensor itself, all of which are kept until the end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes = [Node("", "input")]
        self.owners = {id(one): name.rpartition(".")[0] for name, one in model.named_parameters(remove_duplicate=False)}
        self.made: dict[int, tuple[list[int], Tensor]] = {}
        self.within = 0
        self.open = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's own result."""
        result = func(*args, **(kwargs or {}))
        given = [] if self.within or not self.open else list(_tensors((args, kwargs)))
        if given and any(True for _ in _tensors(result)):
            sources, name = self.sources(given), _name(func).strip("_")
            if sources and name not in SILENT:
                owner = next((self.owners[id(one)] for one in given if id(one) in self.owners), "")
                sources = [self.add(Node(owner, name, _shape(result), sources))]
            self.mark(result, sources)
        return result

    def add(self, node: Node) -> int:
        """The place of a new node."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def sources(self, given: Sequence[Tensor]) -> list[int]:
        """The nodes that made some of these tensors; weights have none."""
        return list(dict.fromkeys(place for one in given for place in self.made.get(id(one), ([], one))[0]))

    def mark(self, result: Any, sources: list[int]) -> None:
        """Notes who made the tensors of a result."""
        for one in _tensors(result):
            self.made[id(one)] = sources, one


@contextmanager
def _followed(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """The model's input is node 0, and each layer that is called a node."""

    def begin(_: nn.Module, arguments: Any, named: Any) -> None:
        if not watch.open:
            watch.mark((arguments, named), [0])
            watch.nodes[0].shape = _shape((arguments, named))
        watch.open += 1

    def end(*_: Any) -> None:
        watch.open -= 1

    def enter(*_: Any) -> None:
        watch.within += 1

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
            watch.within -= 1
            if watch.within:
                return
            sources = watch.sources(list(_tensors((arguments, named))))
            node = Node(name, type(module).__name__, _shape(output), sources)
            watch.mark(output, sources if _is_silent(module) else [watch.add(node)])

        return hook

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True).remove)
        for name, module in model.named_modules():
            if _is_layer(module):
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave(name), with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(end).remove)
        yield


def _is_layer(module: nn.Module) -> bool:
    """One whose weights, if any, are its own, or one of torch's own that computes by itself, though it holds others."""
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return True
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    inside = [one for name, one in module.named_children() if name != "parametrizations"]
    own = next(module.parameters(recurse=False), None) is not None or hasattr(module, "parametrizations")
    return not inside or (own and not any(True for one in inside for _ in one.parameters()))


def _is_silent(module: nn.Module) -> bool:
    """Whether it gives what it is given, in eval mode."""
    return isinstance(module, nn.Flatten | nn.modules.dropout._DropoutNd) or type(module).__name__ == "Identity"


def _tensors(value: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(value) if isinstance(one, Tensor))


def _shape(value: Any) -> tuple[int, ...]:
    first = next(_tensors(value), None)
    return () if first is None else tuple(first.shape[1:])


def _name(func: Any) -> str:
    """add, relu, scaled_dot_product_attention."""
    return str(getattr(func, "__name__", "operation"))

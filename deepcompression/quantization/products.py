"""Products of values that a forward computes by functions: no input of a module, so that no grid reaches them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deepcompression.network import names

NAMED = 3  # modules that a sentence names
WHOLE = (nn.RNNBase, nn.RNNCellBase)  # modules that multiply by their own weights
FUNCTIONS: Mapping[Any, str] = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__), "matmul"),
    **dict.fromkeys((torch.mm, Tensor.mm), "mm"),
    **dict.fromkeys((torch.bmm, Tensor.bmm), "bmm"),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), "baddbmm"),
    **dict.fromkeys((torch.addmm, Tensor.addmm), "addmm"),
    **{getattr(F, name): name for name in ("linear", "bilinear", "conv1d", "conv2d", "conv3d")},
    **{getattr(F, name): name for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")},
    torch.einsum: "einsum",
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.multi_head_attention_forward: "multi_head_attention_forward",
}
Products = dict[str, dict[str, int]]  # function -> module -> calls


@contextmanager
def counted(model: nn.Module, found: Products) -> Iterator[None]:
    """While it lasts, functions that multiply are counted, each by the module whose forward calls it; what a layer does
    with its own weight is not.

    Args:
        model: which runs.
        found: gets them.
    """
    running: list[tuple[str, nn.Module]] = [("", model)]

    def enter(name: str) -> Callable[..., None]:
        return lambda module, *_: running.append((name, module))

    def leave(*_: object) -> None:
        running.pop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks, and calls no functions of Python's
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(_Counting(found, running))
        yield


class _Counting(TorchFunctionMode):
    def __init__(self, found: Products, running: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.found, self.running = found, running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, module = self.running[-1]
        if func in FUNCTIONS and not names.is_layer(module) and not isinstance(module, WHOLE):
            calls = self.found.setdefault(FUNCTIONS[func], defaultdict(int))
            calls[name] += 1
        return func(*args, **(kwargs or {}))


def told(found: Products) -> list[str]:
    """A sentence a function.

    Args:
        found: of ``counted``, in one forward.
    """
    return [f"{function} stays float, {_times(calls)}: {WHY}" for function, calls in found.items()]


WHY = "it multiplies what no module takes in, and only inputs of modules have a grid"


def _times(calls: Mapping[str, int]) -> str:
    number, places = sum(calls.values()), [name or "the model's own forward" for name in calls]
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return f"{number} {'call' if number == 1 else 'calls'} a forward in {', '.join(places[:NAMED])}{more}"

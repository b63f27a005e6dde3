"""Recurrent layers, and cells, step by step: what their fused kernels compute inside, so that it can be rounded there.

The same as ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` but for the order of sums. The module's own forward runs, with its
checks and layouts; only the kernel that it calls is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LAYER, HIDDEN = "layer", "hidden"
Rounding = Callable[[str, int, Tensor], Tensor]  # of LAYER or HIDDEN and its number: the value as it is multiplied
State = tuple[Tensor, ...]  # hidden, and of an LSTM the cell's; each (samples, units)
Step = Callable[[Tensor, Tensor, State], State]  # weighted input, weighted hidden state, state before -> after


def forward(module: nn.RNNBase | nn.RNNCellBase, value: Any, state: Any, rounded: Rounding) -> Any:
    """What the module gives for ``value``.

    Args:
        module: of any number of layers and directions, or a cell.
        value: as the module takes it, a PackedSequence too.
        state: before the first step, as the module takes it.
        rounded: what happens to the input of each layer but the first (LAYER, its number), and to the hidden state that
            each step multiplies (HIDDEN, its number as in the module's second output).
    """
    kind: Any = type(module)
    with _StepByStep(rounded):
        return kind.forward(module, value, state)


class _StepByStep(TorchFunctionMode):
    """Takes the place of the fused kernels."""

    def __init__(self, rounded: Rounding) -> None:
        super().__init__()
        self.rounded = rounded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CELLS:
            return _stepped(_CELLS[func], partial(self.rounded, HIDDEN, 0), *args)
        if func not in _STEPS:
            return func(*args, **(kwargs or {}))
        packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()
        series = _Series(args[0], args[1].tolist()) if packed else _series(args[0], batch_first=args[8])
        return _stacked(series, _STEPS[func], self.rounded, *(args[2:9] if packed else args[1:8]))


def _stepped(
    step: Step, of_hidden: Callable[[Tensor], Tensor], value: Tensor, state: Any, *weights: Tensor | None
) -> Tensor | State:
    """What a cell's kernel gives; arguments as it takes them."""
    of_input, of_state, *biases = weights
    before: State = (state,) if isinstance(state, Tensor) else tuple(state)
    inputs: Any = F.linear(value, of_input, biases[0])  # type: ignore[arg-type]
    after = step(inputs, F.linear(of_hidden(before[0]), of_state, biases[1]), before)  # type: ignore[arg-type]
    return after[0] if isinstance(state, Tensor) else after


@dataclass(frozen=True)
class _Series:
    """The steps of some series one after the other, (sum of sizes, features), and how many series have each step."""

    data: Tensor
    sizes: Sequence[int]
    batch_first: bool | None = None  # of the tensor that they are, or will be; None of packed ones

    def laid(self) -> Tensor:
        """As the module takes and gives it."""
        if self.batch_first is None:
            return self.data
        steps = self.data.reshape(len(self.sizes), self.sizes[0], -1)
        return steps.transpose(0, 1) if self.batch_first else steps

    def again(self, value: Tensor) -> _Series:
        """Other values of the same series, laid as the module's."""
        return _Series(value, self.sizes) if self.batch_first is None else _series(value, self.batch_first)


def _series(value: Tensor, batch_first: bool) -> _Series:
    steps = value.transpose(0, 1) if batch_first else value
    return _Series(steps.flatten(0, 1), [steps.shape[1]] * len(steps), batch_first)


def _stacked(
    series: _Series,
    step: Step,
    rounded: Rounding,
    state: Any,
    weights: Sequence[Tensor],
    bias: bool,
    layers: int,
    dropout: float,
    training: bool,
    both: bool,
) -> tuple[Tensor, ...]:
    """What all layers give, and the states after the last step; arguments as PyTorch's kernels take them."""
    before = [state] if isinstance(state, Tensor) else list(state)
    per = len(weights) // (layers * (1 + both))
    after: list[State] = []
    for layer in range(layers):
        if layer:
            dropped = F.dropout(series.laid(), dropout, training)
            series = series.again(rounded(LAYER, layer, dropped))
        given = []
        for backward in range(1 + both):
            number = len(after)
            of_hidden = partial(rounded, HIDDEN, number)
            cell = _Cell(step, of_hidden, bias, weights[number * per : (number + 1) * per])
            output, last = cell.run(series, tuple(one[number] for one in before), bool(backward))
            given.append(output)
            after.append(last)
        series = replace(series, data=torch.cat(given, 1))
    return series.laid(), *map(torch.stack, zip(*after, strict=True))


@dataclass(frozen=True)
class _Cell:
    """One direction of one layer; its weights as PyTorch lists them: of input and hidden state, biases, projection."""

    step: Step
    of_hidden: Callable[[Tensor], Tensor]
    bias: bool
    weights: Sequence[Tensor]

    def run(self, series: _Series, state: State, backward: bool) -> tuple[Tensor, State]:
        """The hidden state after each step, in the order of the series, and the state after the last."""
        of_input, of_hidden, *rest = self.weights
        biases = rest[:2] if self.bias else (None, None)
        projection = rest[-1] if len(rest) % 2 else None
        parts = torch.split(F.linear(series.data, of_input, biases[0]), list(series.sizes))
        given: list[Tensor] = [state[0]] * len(parts)
        for number in reversed(range(len(parts))) if backward else range(len(parts)):
            count = len(parts[number])
            present = tuple(one[:count] for one in state)
            made = self.step(parts[number], F.linear(self.of_hidden(present[0]), of_hidden, biases[1]), present)
            made = made if projection is None else (F.linear(made[0], projection), *made[1:])
            whole = count == len(state[0])
            state = (
                made if whole else tuple(torch.cat([new, old[count:]]) for new, old in zip(made, state, strict=True))
            )
            given[number] = made[0]
        return torch.cat(given), state


def _lstm(value: Tensor, hidden: Tensor, state: State) -> State:
    taken, forgotten, new, shown = (value + hidden).chunk(4, 1)
    cell = forgotten.sigmoid() * state[1] + taken.sigmoid() * new.tanh()
    return shown.sigmoid() * cell.tanh(), cell


def _gru(value: Tensor, hidden: Tensor, state: State) -> State:
    (reset, kept, new), (reset_, kept_, new_) = value.chunk(3, 1), hidden.chunk(3, 1)
    made = (new + (reset + reset_).sigmoid() * new_).tanh()
    return (made + (kept + kept_).sigmoid() * (state[0] - made),)


def _tanh(value: Tensor, hidden: Tensor, state: State) -> State:
    return ((value + hidden).tanh(),)


def _relu(value: Tensor, hidden: Tensor, state: State) -> State:
    return ((value + hidden).relu(),)


_VF: Any = torch._VF
_CELLS: dict[Any, Step] = {
    **{_VF.lstm_cell: _lstm, _VF.gru_cell: _gru},
    **{_VF.rnn_tanh_cell: _tanh, _VF.rnn_relu_cell: _relu},
}
_STEPS: dict[Any, Step] = {_VF.lstm: _lstm, _VF.gru: _gru, _VF.rnn_tanh: _tanh, _VF.rnn_relu: _relu}

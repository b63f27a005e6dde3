"""A quantized training step beside a float one, on ResNet-20 (batch 128, 1 x 28 x 28), one thread: time and memory.

`python tests/benchmarks/bench_qat.py`. Weights and inputs of layers have 4 bits, first by LSQ as here, then by torch's
own torch.fake_quantize_per_tensor_affine with fixed scales. Steps alternate in one process, and the least CPU time of
each counts; memory is the peak of a process of its own, less what it had when all was imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepcompression.models import resnet20
from deepcompression.network.names import is_layer
from deepcompression.quantization.in_training import QuantizedTraining
from deepcompression.training.session import attach

KINDS = ("float", "lsq", "torch fake_quantize")
STEPS_OF_MEMORY = 3


class Fake(nn.Module):
    """What torch has for it: rounding with a scale that stands still."""

    def __init__(self, scale: float, low: int, high: int) -> None:
        super().__init__()
        self.scale, self.low, self.high = scale, low, high

    def forward(self, values: Tensor) -> Tensor:
        """The values, rounded."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, 0, self.low, self.high)


def put_fakes(model: nn.Module) -> None:
    """Before each layer, and over its weight."""
    for module in [one for one in model.modules() if is_layer(one)]:
        parametrize.register_parametrization(module, "weight", Fake(0.05, -7, 7))
        module.register_forward_pre_hook(partial(_put, Fake(0.2, 0, 15)))


def _put(fake: Fake, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (fake(inputs[0].float()),)


def stepper(kind: str, bfloat16: bool) -> Callable[[], None]:
    """One step of training."""
    torch.manual_seed(0)
    model = resnet20().to(memory_format=torch.channels_last)
    images, labels = torch.randn(128, 1, 28, 28).to(memory_format=torch.channels_last), torch.randint(10, (128,))
    methods = [QuantizedTraining(4, 4)] if kind == "lsq" else []
    session = attach(model, methods, 1 << 30, samples=[images])
    if kind == KINDS[2]:
        put_fakes(model)
    optimizer = torch.optim.SGD(session.parameters(lr=0.01), momentum=0.9, nesterov=True, fused=True)
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.step()

    return step


def seconds(bfloat16: bool, rounds: int) -> dict[str, float]:
    """CPU seconds a step, of each kind."""
    steps = {kind: stepper(kind, bfloat16) for kind in KINDS}
    best = dict.fromkeys(KINDS, float("inf"))
    for step in steps.values():
        step()
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.process_time()
            step()
            best[kind] = min(best[kind], time.process_time() - start)
    return best


def resident(what: str) -> int:
    """Kilobytes of this process, by Linux: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def megabytes(kind: str, bfloat16: bool) -> float:
    """The peak of a few steps in this process, less what it has now."""
    before = resident("VmRSS")
    step = stepper(kind, bfloat16)
    for _ in range(STEPS_OF_MEMORY):
        step()
    return (resident("VmHWM") - before) / 1024


def apart(kind: str, bfloat16: bool) -> float:
    """``megabytes`` in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", kind, *(["--bfloat16"] if bfloat16 else [])]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def told(name: str, by_kind: dict[str, float], unit: str) -> None:
    """A line for each kind."""
    for kind, value in by_kind.items():
        print(f"{name:9} {kind:20} {value:8.1f} {unit}  {value / by_kind['float']:.2f}x float")


def main() -> None:
    """Both precisions."""
    parser: Any = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-of", choices=KINDS)
    parser.add_argument("--bfloat16", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory_of:
        print(json.dumps(megabytes(given.memory_of, given.bfloat16)))
        return
    for bfloat16 in (True, False):
        name = "bfloat16" if bfloat16 else "float32"
        told(name, {kind: 1e3 * value for kind, value in seconds(bfloat16, given.rounds).items()}, "ms")
        told(name, {kind: apart(kind, bfloat16) for kind in KINDS}, "MB")


if __name__ == "__main__":
    main()

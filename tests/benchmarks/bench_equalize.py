"""Weights on grids after training, on a depthwise net for digits: with and without corrections and equalization.

`python tests/benchmarks/bench_equalize.py`, a minute on one core. The table has points of
test accuracy, and the mean KL divergence of the outputs from those of the float net.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.data.small_images import digits
from deepcompression.network.state import plain_state
from deepcompression.quantization.equalize import equalize
from deepcompression.quantization.linear import quantize, table

ACTIVATIONS = {"ReLU": nn.ReLU, "ReLU6": nn.ReLU6}


def block(inputs: int, outputs: int, kernel: int, groups: int, act: Any) -> nn.Sequential:
    """A convolution without bias, BatchNorm, and an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class Inverted(nn.Module):
    """Three inverted bottlenecks with residuals (MobileNetV2's) on images (n, 1, 8, 8)."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.stem = block(1, 16, 3, 1, act)
        self.body = nn.ModuleList(
            nn.Sequential(block(16, 64, 1, 1, act), block(64, 64, 3, 64, act), block(64, 16, 1, 1, nn.Identity))
            for _ in range(3)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10)."""
        maps = self.stem(images)
        for one in self.body:
            maps = maps + one(maps)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def trained(act: Any, epochs: int, seed: int) -> nn.Module:
    """The net after its training, in eval mode."""
    images, labels = digits().train
    torch.manual_seed(seed)
    model = Inverted(act)
    optimizer = torch.optim.AdamW(model.parameters())
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def judged(model: nn.Module, state: Mapping[str, Tensor], expected: Tensor) -> str:
    """Accuracy, and divergence from what was expected."""
    images, labels = digits().test
    model.load_state_dict(dict(state))
    given = model(images)
    right = float((given.argmax(1) == labels).float().mean()) * 100
    gap = float(F.kl_div(given.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True))
    return f"{right:6.2f} {gap:8.2g}"


def compare(act: str, epochs: int, seed: int) -> None:
    """Prints a row for each number of bits, layout and range."""
    model = trained(ACTIVATIONS[act], epochs, seed)
    plain, samples, expected = plain_state(model), digits().train[0][:64], model(digits().test[0])
    even = equalize(model, lambda one: one(samples)).state
    print(f"\n{act}, float {judged(model, plain, expected)}")
    print("bits per     range    plain           corrected       equalized       both")
    pers: tuple[Literal["tensor", "channel"], ...] = ("tensor", "channel")
    ranges: tuple[Literal["minmax", "mse"], ...] = ("minmax", "mse")
    for bits, per, how in ((bits, per, how) for bits in (8, 6, 4, 3) for per in pers for how in ranges):
        plan = table(model, {"default": bits}, per=per, range=how)
        cells = [
            judged(model, quantize(state, plan, correct=correct).state, expected)
            for state in (plain, even)
            for correct in (False, True)
        ]
        print(f"{bits:4} {per:7} {how:7}", *cells)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ACTIVATIONS:
        compare(name, given.epochs, given.seed)

"""Layers and nets from their codes beside PyTorch's dense ones, on one thread.

    python tests/benchmarks/bench_runtime.py [--only fc6] [--rounds 15] [--json runtime.json]

Both are called by turns, in rounds; a round calls each for 0.2 ms at least. Shown are medians of the rounds: wall time,
and the processor's, which other programs on the machine change less. The layers have random weights of the density and
the number of values that the table of the paper has for them; a net of the paper is pruned and shared so, untrained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import torch as bridge
from deepcompression.models import lenet5, lenet_300_100

LINEAR = {
    "AlexNet fc6": (9216, 4096, 0.09, 32),
    "AlexNet fc7": (4096, 4096, 0.09, 32),
    "AlexNet fc8": (4096, 1000, 0.25, 32),
    "VGG-16 fc6": (25088, 4096, 0.04, 32),
    "VGG-16 fc7": (4096, 4096, 0.04, 32),
    "VGG-16 fc8": (4096, 1000, 0.23, 32),
}
CONVOLUTIONS = {
    "conv 256-256 3x3, 14x14": (256, 256, 3, 14, 0.1),
    "conv 64-64 3x3, 56x56": (64, 64, 3, 56, 0.1),
    "conv 512-512 3x3, 7x7": (512, 512, 3, 7, 0.1),
    "conv 256-1024 1x1, 14x14": (256, 1024, 1, 14, 0.1),
    "conv 256-256 3x3, 14x14, 35 %": (256, 256, 3, 14, 0.35),
}
# Density and values of the weights of each layer (Han et al. 2016, tables 2 and 3).
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[float, int]]]] = {
    "LeNet-300-100": (lenet_300_100, {"fc1": (0.08, 64), "fc2": (0.09, 64), "fc3": (0.26, 64)}),
    "LeNet-5": (lenet5, {"conv1": (0.66, 256), "conv2": (0.12, 256), "fc1": (0.08, 32), "fc2": (0.19, 32)}),
}


def main() -> None:
    """Prints a table, one row after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("what | batch | form | wall us, dense / codes | CPU us, dense / codes | times as fast, wall / CPU | bytes")
    rows = []
    for name, make in cases():
        if given.only in name:
            for row in make(given.rounds):
                rows.append({"what": name, **row})
                print(line(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def cases() -> Iterator[tuple[str, Callable[[int], list[dict[str, Any]]]]]:
    """Each row of the table, made when it is called with a number of rounds."""
    for name, (inputs, outputs, density, values) in LINEAR.items():
        layer = lambda i=inputs, o=outputs, d=density, v=values: pruned(nn.Linear(i, o), d, v)  # noqa: E731
        yield name, lambda n, make=layer, i=inputs: [side_by_side(make(), torch.randn(b, i), n) for b in (1, 8, 64)]
    for name, (inputs, outputs, kernel, size, density) in CONVOLUTIONS.items():
        conv = lambda i=inputs, o=outputs, k=kernel: nn.Conv2d(i, o, k, padding=k // 2)  # noqa: E731
        images = lambda i=inputs, s=size: torch.randn(1, i, s, s)  # noqa: E731
        yield (
            name,
            lambda n, make=conv, x=images, d=density: [
                side_by_side(pruned(make(), d, 32), x(), n, form) for form in ("codes", "auto")
            ],
        )
    yield "binary Linear 4096-4096", lambda n: [side_by_side(binary(), torch.randn(b, 4096).sign(), n) for b in (1, 64)]
    yield "Linear 4096-4096, integers of 8 bits", lambda n: [side_by_side(integers(), torch.randn(1, 4096), n)]
    yield "Linear 4096-4096, 16 values", lambda n: [side_by_side(pruned(square(), 1, 16), torch.randn(1, 4096), n)]
    for name, (make, how) in NETS.items():
        yield name, lambda n, make=make, how=how: [net(make, how, n, form) for form in ("auto", "codes")]


def square() -> nn.Linear:
    """A large layer."""
    return nn.Linear(4096, 4096)


def pruned(layer: Any, density: float, values: int) -> nn.Module:
    """A layer with so many weights left, of so many values."""
    made = torch.Generator().manual_seed(0)
    weight = layer.weight.data
    book = weight.std() * torch.randn(values, generator=made)
    weight.copy_(book[torch.randint(values, weight.shape, generator=made)])
    weight.mul_(torch.rand(weight.shape, generator=made) < density)
    return layer


def binary() -> nn.Module:
    """A layer of a scale of each output, or minus it."""
    layer = square()
    weight = layer.weight.data
    scale = weight.abs().mean(1, keepdim=True)
    layer.weight.data = torch.where(weight < 0, -scale, scale)
    return layer


def integers() -> nn.Module:
    """A layer on a grid of 255 points for each output."""
    layer = square()
    scale = layer.weight.data.abs().amax(1, keepdim=True) / 127
    layer.weight.data = (layer.weight.data / scale).round() * scale
    return layer


def side_by_side(layer: nn.Module, value: Tensor, rounds: int, form: str = "codes") -> dict[str, Any]:
    """One layer: dense, and from codes."""
    dense = nn.Sequential(layer).eval().requires_grad_(False)
    blank = nn.Sequential(type(layer)(*_arguments(layer)))
    with TemporaryDirectory() as folder:
        bridge.save(dense.state_dict(), Path(folder, "m.dcz"), coder="packed")
        running = bridge.run(blank, Path(folder, "m.dcz"), value, form=form, threads=1)
    return measured(dense[0], running.model[0], running, value, rounds)


def _arguments(layer: Any) -> tuple[Any, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding


def net(make: Callable[[], nn.Module], how: dict[str, tuple[float, int]], rounds: int, form: str) -> dict[str, Any]:
    """A whole net on one image: PyTorch's, and from codes."""
    dense, image = make().eval().requires_grad_(False), torch.randn(1, 1, 28, 28)
    for name, (density, values) in how.items():
        pruned(dense.get_submodule(name), density, values)
    with TemporaryDirectory() as folder:
        bridge.save(dense.state_dict(), Path(folder, "m.dcz"))
        running = bridge.run(make(), Path(folder, "m.dcz"), image, form=form, threads=1)
    coded = sum(one.dense_bytes for one in running.layers if one.from_codes) / running.dense_bytes
    return {**measured(dense, running, running, image, rounds), "weights_from_codes": coded}


def measured(dense: nn.Module, coded: nn.Module, running: Any, value: Tensor, rounds: int) -> dict[str, Any]:
    """Times of both, bytes, and the largest difference of outputs."""
    with torch.inference_mode():
        first, second = dense(value), coded(value)
        difference = float((first - second).abs().max() / first.abs().max())
        wall, cpu = medians([lambda: dense(value), lambda: coded(value)], rounds)
    forms = sorted({one.form for one in running.layers})
    return {
        "batch": len(value),
        "form": ", ".join(forms),
        "wall_us": wall,
        "cpu_us": cpu,
        "bytes": running.resident_bytes,
        "dense_bytes": running.dense_bytes,
        "largest_difference": difference,
    }


def medians(ways: list[Callable[[], Any]], rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of a call, wall and CPU, medians of rounds by turns."""
    calls = [max(1, min(200, int(2e-4 / once(way, 1)[0]))) for way in ways for _ in [way()]]
    took: list[list[tuple[float, float]]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, many, found in zip(ways, calls, took, strict=True):
            found.append(once(way, many))
    return tuple([1e6 * statistics.median(one[clock] for one in found) for found in took] for clock in (0, 1))  # type: ignore[return-value]


def once(way: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Seconds of a call, wall and CPU."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        way()
    return (time.perf_counter() - wall) / calls, (time.thread_time() - cpu) / calls


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    wall, cpu = row["wall_us"], row["cpu_us"]
    part = f", {row['weights_from_codes']:.0%} from codes" if "weights_from_codes" in row else ""
    return (
        f"{row['what']} | {row['batch']} | {row['form']}{part} | {wall[0]:,.0f} / {wall[1]:,.0f} | "
        f"{cpu[0]:,.0f} / {cpu[1]:,.0f} | {wall[0] / wall[1]:.2f} / {cpu[0] / cpu[1]:.2f} | "
        f"1/{row['dense_bytes'] / row['bytes']:.1f}"
    )


if __name__ == "__main__":
    main()

"""What a network takes on a microcontroller by the export to C: RAM, flash, and milliseconds a sample on this machine.

    python tests/benchmarks/bench_c.py                                    random weights, of the recipes' densities
    python tests/benchmarks/bench_c.py --file RUN/model.dcz --net lenet_300_100 --shape 1 28 28     of a finished run

Code is net.c by -Os: of this machine and, where there is clang, of a Cortex-M4 and a Cortex-M0. Times are medians of 7
interleaved rounds, of the program (one sample after the other) and of PyTorch's dense model (one thread, batch 1).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from deepcompression import models
from deepcompression.export import c
from deepcompression.torch import load_into

NETS = {
    "lenet_300_100": ((1, 28, 28), {"fc1": (0.06, 16), "fc2": (0.12, 32), "fc3": (0.4, 32)}),
    "lenet5": ((1, 28, 28), {"conv1": (0.5, 32), "conv2": (0.1, 32), "fc1": (0.05, 16), "fc2": (0.2, 16)}),
    "digits_net": ((1, 8, 8), {"conv1": (0.5, 32), "conv2": (0.15, 32), "fc1": (0.15, 16), "fc2": (0.15, 16)}),
}
TIMED = 200  # samples
ROUNDS = 7


def main() -> None:
    """Prints a line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file")
    parser.add_argument("--net", default="lenet_300_100")
    parser.add_argument("--shape", type=int, nargs="+")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if given.file:
        shape = tuple(given.shape or NETS[given.net][0])
        told(given.net, load_into(getattr(models, given.net)(), given.file), shape)
        return
    for name, (shape, layers) in NETS.items():
        net = getattr(models, name)()
        for layer, (density, values) in layers.items():
            share(getattr(net, layer).weight, density, values)
        told(name, net, shape)


def share(weight: Tensor, density: float, values: int) -> None:
    """Keeps the largest weights, each the nearest of some values."""
    least = weight.detach().abs().flatten().kthvalue(int(weight.numel() * (1 - density))).values
    book = torch.linspace(-1, 1, values).mul(weight.detach().abs().max()).half().float()
    nearest = torch.bucketize(weight.detach(), (book[1:] + book[:-1]) / 2)
    weight.data = torch.where(weight.detach().abs() > least, book[nearest], 0.0)


def told(name: str, net: nn.Module, shape: tuple[int, ...]) -> None:
    """One network's line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        made = c.export(net.eval(), [torch.rand(4, *shape)], path)
        times = timed(net, path, torch.rand(TIMED, *shape))
        print(f"{name}: {'; '.join(made.notes)}")
        print(f"  code: {', '.join(f'{machine} {size:,}' for machine, size in code(path).items())} bytes")
        print(f"  ms a sample: {', '.join(f'{way} {value:.3f}' for way, value in times.items())}")


def code(path: Path) -> dict[str, int]:
    """Bytes of net.c by machine."""
    arm = ("clang", "-ffreestanding")
    ways = {
        "this machine": ["cc"],
        "Cortex-M4": [*arm, "--target=thumbv7em-none-eabi", "-mcpu=cortex-m4"],
        "Cortex-M0": [*arm, "--target=thumbv6m-none-eabi", "-mcpu=cortex-m0"],
    }
    found = {}
    for machine, command in ways.items():
        if shutil.which(command[0]) and shutil.which("size"):
            built = subprocess.run([*command, "-std=c99", "-Os", "-c", "-o", "net.o", "net.c"], cwd=path, check=False)
            if built.returncode == 0:
                lines = subprocess.run(["size", "net.o"], cwd=path, capture_output=True, text=True, check=True).stdout
                found[machine] = sum(map(int, lines.splitlines()[-1].split()[:2]))
    return found


def timed(net: nn.Module, path: Path, samples: Tensor) -> dict[str, float]:
    """Milliseconds a sample, without the start of the program."""
    session = c.load(path, 1)
    assert session is not None
    rounds: dict[str, list[float]] = {"C": [], "PyTorch": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        session([samples[:1].numpy()])
        start = time.perf_counter() - started
        started = time.perf_counter()
        session([samples.numpy()])
        rounds["C"].append((time.perf_counter() - started - start) / (TIMED - 1))
        started = time.perf_counter()
        with torch.inference_mode():
            for sample in samples:
                net(sample[None])
        rounds["PyTorch"].append((time.perf_counter() - started) / TIMED)
    return {way: 1000 * statistics.median(values) for way, values in rounds.items()}


if __name__ == "__main__":
    main()

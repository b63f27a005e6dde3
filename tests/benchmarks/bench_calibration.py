"""What calibrating activations costs: seconds against forward passes over the same samples, and peak memory.

    python tests/benchmarks/bench_calibration.py                      ResNet-20, 28x28, every observer, N and 4N samples
    python tests/benchmarks/bench_calibration.py PICTURES [OBSERVER]  EfficientNet-Lite0 on the sample of ImageNet

Each row is a process of its own, with one thread. `passes` is the whole time in forward passes, `beyond` what is more
than the ones that it makes (1, of auto 1 and a quarter); `peak` is the process's, `forward` that of a forward alone.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

BATCH, SAMPLES = 32, 128
FORWARD = "forward"  # no observer: the passes themselves


def _resnet(samples: int) -> tuple[nn.Module, Any]:
    """The net, and what gives a batch by its number: made when it is asked for, so that data take no memory."""
    from deepcompression.models import resnet20

    torch.manual_seed(0)

    def batch(number: int) -> Tensor:
        return torch.randn(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(number))

    return resnet20(), batch


def _efficientnet(folder: str, samples: int) -> tuple[nn.Module, Any]:
    from imagenet_sample import data, model, weights

    images, net = data(folder).train[0], model()
    net.load_state_dict(torch.load(weights(), weights_only=True))
    return net, lambda number: images[number * BATCH :][:BATCH]


def _measured(folder: str, observer: str, scheme: str, samples: int) -> dict[str, float]:
    """One row: seconds of one pass, seconds of all, megabytes."""
    from deepcompression.quantization.calibrate import Plan, calibrate
    from deepcompression.quantization.inputs import inputs_of
    from deepcompression.training.device import Compute
    from deepcompression.training.method import Context

    torch.set_num_threads(1)
    make = partial(_efficientnet, folder) if folder else _resnet
    net, batch = make(samples)

    def batches(count: int) -> Iterator[Tensor]:
        return (batch(number) for number in range(count // BATCH))

    net.eval()
    with torch.no_grad():
        net(batch(0))
        started = time.perf_counter()
        for one in batches(samples):
            net(one)
    forward, peak = time.perf_counter() - started, _peak()
    started = time.perf_counter()
    if observer != FORWARD:
        context = Context(batches, lambda one, value: one(value), compute=Compute("cpu"))
        sites = inputs_of(net, 8).sites
        calibrate(net, context, sites, Plan(scheme, observer=observer, samples=samples))
    return {"forward": forward, "seconds": time.perf_counter() - started, "before": peak, "peak": _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _row(folder: str, observer: str, scheme: str, samples: int) -> None:
    words = [sys.executable, __file__, "--one", folder, observer, scheme, str(samples)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    passes = 1.25 if observer == "auto" else 1.0
    beyond = found["seconds"] - passes * found["forward"]
    print(
        f"{observer:15} {scheme:11} {samples:5} samples  forward {found['forward']:6.1f} s  "
        f"calibration {found['seconds']:6.1f} s = {found['seconds'] / found['forward']:5.2f} passes, "
        f"beyond {beyond:6.1f} s  "
        f"peak {found['peak']:6.0f} MB, forward {found['before']:6.0f} MB",
        flush=True,
    )


def main(words: list[str]) -> None:
    """Prints the rows."""
    from deepcompression.quantization.observers import OBSERVERS

    if words[:1] == ["--one"]:
        folder, observer, scheme, samples = words[1:]
        print(json.dumps(_measured(folder, observer, scheme, int(samples))))
        return
    folder = words[0] if words else ""
    observers = words[1:] or ([*OBSERVERS, "auto"] if not folder else ["mse", "auto"])
    for observer in observers:
        for scheme in ("symmetric", "asymmetric"):
            for samples in (SAMPLES,) if folder else (SAMPLES, 4 * SAMPLES):
                _row(folder, observer, scheme, samples)


if __name__ == "__main__":
    main(sys.argv[1:])

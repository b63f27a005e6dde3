"""Mixed 2, 4 and 8 bits after training, by Hessian traces, beside 4 bits everywhere and random bits of the same bytes.

`python tests/benchmarks/bench_hawq.py NET [--weights FILE] [--epochs 3] [--bits 2 4 8] [--most N] [--alone]`.
NET: digits, lenet5, fashion-lenet5, fashion-resnet20. FILE is a checkpoint; without one the net is trained here, for so
many epochs. Weights alone are rounded, a scale for each channel, and nothing trains afterwards. Bytes are of the coded
tensors, at most those of 4 bits everywhere. All are judged on the validation split, or its first N samples: points of
accuracy, and the Kullback-Leibler divergence of the softmax from the dense net's. Random bits rise in random order as
long as bytes allow.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.allocation import bit_costs, hawq, integer_program
from deepcompression.allocation.allocate import rises
from deepcompression.allocation.integer_program import Assignment, Choices
from deepcompression.allocation.sensitivity import losses_alone
from deepcompression.allocation.tried import divergence, mean_losses, taken, tried
from deepcompression.data.splits import as_splits, split_validation
from deepcompression.factory import load
from deepcompression.network.names import prunable
from deepcompression.quantization import linear
from deepcompression.training.device import Compute
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Accuracy, Problem, cross_entropy_step

NETS = {
    "digits": ("digits_net", "digits"),
    "lenet5": ("lenet5", "mnist"),
    "fashion-lenet5": ("lenet5", "fashion_mnist"),
    "fashion-resnet20": ("resnet20", "fashion_mnist"),
}
CPU = Compute("cpu")
LIKE = 4
SAMPLES = 256
Rounded = Mapping[str, Mapping[int, tuple[Tensor, float]]]


@dataclass(frozen=True)
class Judged:
    """A net beside the dense one, on validation."""

    accuracy: float
    divergence: float


def made(name: str, weights: str | None, epochs: int, most: int | None) -> tuple[nn.Module, Problem]:
    """The float net, and its data."""
    torch.manual_seed(0)
    model_name, data = NETS[name]
    model: nn.Module = load(f"deepcompression.models:{model_name}")()
    splits = split_validation(
        as_splits(load(f"deepcompression.data:{data}")(), data), 0.1 if name != "digits" else 0.25
    )
    problem = Problem(splits.train, splits.validation, cross_entropy_step, Accuracy(), batch_size=64)
    if weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    else:
        train(model, problem, Plan(epochs, {"factory": "torch.optim:AdamW", "kwargs": {"lr": 2e-3}}, compute=CPU))
    images, targets = problem.validation
    return model.eval(), replace(problem, validation=(images[:most], targets[:most]))


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of images (n, 1, h, w): (n, classes)."""
    with torch.no_grad():
        return torch.cat([model(some) for some in images.split(500)])


def judge(model: nn.Module, problem: Problem, rounded: Rounded, bits: Mapping[str, int], dense: Tensor) -> Judged:
    """The net with so many bits."""
    images, targets = problem.validation
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({**state, **{name: rounded[name][width][0] for name, width in bits.items()}})
    found = logits(model, images)
    model.load_state_dict(state)
    gap = nn.functional.kl_div(found.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
    return Judged(100 * float((found.argmax(1) == targets).double().mean()), float(gap))


def random_bits(tensors: Sequence[Choices], limit: float, seed: int) -> Assignment:
    """From the fewest bits of all upwards, in random order, as long as a step keeps to the limit."""
    draw, picked = random.Random(seed), [0] * len(tensors)
    steps = [place for place, one in enumerate(tensors) for _ in one.bits[1:]]
    draw.shuffle(steps)
    for place in steps:
        tried = [*picked[:place], picked[place] + 1, *picked[place + 1 :]]
        if integer_program.total(tensors, tried).cost <= limit:
            picked = tried
    return integer_program.total(tensors, picked)


def curved(model: nn.Module, problem: Problem, names: Sequence[str], samples: int, vectors: int) -> list[hawq.Trace]:
    """Average Hessian traces, on samples of the training split."""
    images, targets = (part[:samples] for part in problem.train)

    def loss(images: Tensor, targets: Tensor, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(images), targets)

    parts = zip(images.split(128), targets.split(128), strict=True)
    return hawq.hessian_traces(
        model, names, [(partial(loss, *pair), len(pair[0])) for pair in parts], spread=hawq.Spread(vectors=vectors)
    )


def alone(model: nn.Module, problem: Problem, name: str, some: Mapping[int, tuple[Tensor, float]]) -> dict[int, float]:
    """What the validation loss rises by when one tensor is rounded."""
    widths = sorted(some, reverse=True)
    trials = [model.get_parameter(name).detach(), *(some[width][0] for width in widths)]
    base, *found = losses_alone(model, problem, name, trials, compute=CPU)
    return dict(zip(widths, rises(base, found)[1:].tolist(), strict=True))


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows."""
    model, problem = made(arguments.net, arguments.weights, arguments.epochs, arguments.most)
    names, bits = prunable(model), sorted(arguments.bits)
    state = {name: one.detach() for name, one in model.named_parameters()}
    began = time.perf_counter()
    some = {one: hawq.perturbations(state, linear.table(model, dict.fromkeys(names, one), range="mse")) for one in bits}
    rounded = {name: {one: some[one][name] for one in bits} for name in names}
    costs = {n: tuple(float(bit_costs.coded_bytes(rounded[n][b][0], "adaptive")) for b in bits) for n in names}
    rounding = time.perf_counter() - began
    began = time.perf_counter()
    traces = {one.name: one for one in curved(model, problem, names, arguments.samples, arguments.vectors)}
    tracing = time.perf_counter() - began

    def choices(losses: Mapping[str, Mapping[int, float]]) -> list[Choices]:
        return [
            Choices(name, tuple(bits), costs[name], tuple(losses[name][one] for one in bits), traces[name].mean)
            for name in names
        ]

    samples = problem.train[0][: arguments.samples]
    before = logits(model, samples)

    def forward(net: nn.Module, images: Tensor) -> Tensor:
        made: Tensor = net(images)
        return made

    def lost(some: Sequence[Assignment]) -> list[float]:
        values = [{name: rounded[name][width][0] for name, width in one.bits.items()} for one in some]
        return mean_losses(model, [(partial(divergence, forward, samples, before), len(samples))], values)

    def best(some: Sequence[Choices]) -> Assignment:
        return taken(tried(some, limit, lost))

    by_trace = choices({n: {b: traces[n].loss(rounded[n][b][1]) for b in bits} for n in names})
    limit = integer_program.uniform(by_trace, LIKE).cost
    began = time.perf_counter()
    found = integer_program.assign(by_trace, limit)
    solving = time.perf_counter() - began
    rows = {
        f"{LIKE} bits everywhere": integer_program.uniform(by_trace, LIKE),
        "hawq": best(by_trace),
        "hawq, as predicted": found,
        "hawq, bits in the order of traces": integer_program.assign(by_trace, limit, ordered=True),
        **{f"random {seed}": random_bits(by_trace, limit, seed) for seed in range(arguments.seeds)},
    }
    if arguments.alone:
        by_loss = choices({name: alone(model, problem, name, rounded[name]) for name in names})
        rows["measured"] = best(by_loss)
        rows["measured, as predicted"] = integer_program.assign(by_loss, limit)
    dense = logits(model, problem.validation[0])
    right = 100 * float((dense.argmax(1) == problem.validation[1]).double().mean())
    told = {}
    for name, one in rows.items():
        done = judge(model, problem, rounded, one.bits, dense)
        told[name] = {"bytes": one.cost, "accuracy": done.accuracy, "divergence": done.divergence, "bits": one.bits}
    return {
        "net": arguments.net, "dense": right, "samples": len(dense), "limit": limit, "rows": told,
        "traces": {n: [t.mean, t.error, t.vectors] for n, t in traces.items()},
        "seconds": {"rounding and coding": rounding, "traces": tracing, "solving": solving},
    }  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
    """The table, and how many random allocations are worse."""
    print(f"{found['net']}: dense {found['dense']:.2f} % on {found['samples']} of validation; {found['seconds']}")
    for name, row in found["rows"].items():
        counts = "/".join(map(str, row["bits"].values()))
        print(f"{name:36} {row['bytes']:9,.0f} B  {row['accuracy']:6.2f} %  KL {row['divergence']:.5f}  {counts}")
    ours = found["rows"]["hawq"]
    others = [row for name, row in found["rows"].items() if name.startswith("random")]
    others, same = [row for row in others if row["bits"] != ours["bits"]], len(others)
    worse = sum(row["divergence"] > ours["divergence"] for row in others)
    fewer = sum(row["accuracy"] <= ours["accuracy"] for row in others)
    print(
        f"of {same} random ones {same - len(others)} are the same bits; hawq beats {worse} of the others by divergence"
    )
    print(f"and {fewer} of them have no more points")


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--weights")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--most", type=int)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of the training split")
    parser.add_argument("--vectors", type=int, default=100, help="of a trace at most")
    parser.add_argument("--alone", action="store_true", help="also by what each tensor alone does to the loss")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(arguments)
    show(found)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

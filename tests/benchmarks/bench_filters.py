"""Filter pruning beside Torch-Pruning: ResNet-20 on Fashion-MNIST, half of the multiplications, all from the same nets.

`python tests/benchmarks/bench_filters.py FOLDER [--seeds 0 1 2] [--ways fpgm l1 bn_scale tp-fpgm tp-l1 tp-bn_scale]
[--device cuda]`, with Torch-Pruning 1.6.1 installed where ways of `tp-` are wanted (`pip install --no-deps
torch-pruning==1.6.1`). A way of ours is a criterion and how: `fpgm+soft`, `l1+once` (all at the first step), `+distil`
(the float net teaches), `+bn_l1`, `+8` (multiples of 8 channels); of theirs a criterion, and `+8`: all at once, then
the same training. All train by the same plan: the same data, epochs, rate and batches. Ours are read back from a
`.dcz`. `--share` trains on, with few weights of 4 bits; `--prune-epochs 8` prunes in a training of its own first.
`--validation` judges by the validation split, and leaves the test images alone: settings are chosen by it. FOLDER keeps
float nets (as of bench_lsq.py) and what each net gets right, so that several processes may share the work and the
command goes on. Latency is that of this process' CPU, beside the dense net, in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_lsq import EPOCHS, RATE, Hits, float_net, plan, problem, unpacked
from torch import Tensor, nn

from deepcompression import data, models
from deepcompression import torch as files
from deepcompression.distillation.logits import Distillation
from deepcompression.measure import latency, significance
from deepcompression.measure.flops import macs_in
from deepcompression.network.state import plain_state
from deepcompression.pruning.bn_l1 import BnL1
from deepcompression.pruning.filters import Limit, parameters_of
from deepcompression.pruning.filters_in_training import FilterPruning
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.slim import slim
from deepcompression.quantization.precision import round_precision
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.structure.constraints import Structure
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem

SPARSE = "bn_l1"
THEIRS = "tp-"
BATCHES = (1, 32)
MULTIPLE = 8
TAUGHT = (2.0, 0.7)  # temperature, and the teacher's part of the loss
PRUNED, SHARED = 0.05, 0.02  # rates of trainings of their own
STEPS = 400  # in which Torch-Pruning comes to all of the channels


def images(split: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The test split, or another one."""
    found: tuple[Tensor, Tensor] = split or data.fashion_mnist().test
    return found


def right(model: nn.Module, device: str, pair: tuple[Tensor, Tensor]) -> Hits:
    """Whether each image is recognised, in float32."""
    model = model.to(device).eval()
    with torch.no_grad():
        found = torch.cat([model(some.to(device)).argmax(1).cpu() for some in pair[0].split(500)])
    return (found == pair[1]).numpy()


def macs(model: nn.Module) -> int:
    """Multiplications for one image."""
    return macs_in(model.cpu(), lambda one: one(torch.zeros(1, 1, 28, 28)))


def ours(state: dict[str, Tensor], way: str, part: float, task: Problem, how: Plan, path: Path) -> list[dict[str, Any]]:
    """The edits of a training in which filters went; the thin net is in ``path``."""
    criterion, *more = way.split("+")
    once = {"curve": "constant", "updates": 1, "ramp": 0.01} if "once" in more else {"ramp": 0.5}
    method = FilterPruning(
        limit=Limit(part, macs_in),
        criterion=criterion,
        soft="soft" in more,
        remove=True,
        multiple=MULTIPLE if str(MULTIPLE) in more else 1,
        **{"updates": 10, **once},
    )
    model, teacher = models.resnet20(), models.resnet20()
    model.load_state_dict(state)
    teacher.load_state_dict(state)
    taught = [Distillation(*TAUGHT)] if "distil" in more else []
    sparse = [BnL1(1e-4)] if SPARSE in more else []
    done = train(model, task, how, [method, *taught, *sparse], teacher=teacher if taught else None)
    edits = [dict(edit) for _, account in done.accounts for edit in account.edits]
    files.save(plain_state(model), path, coder="adaptive", edits=edits)
    return edits


def theirs(state: dict[str, Tensor], way: str, part: float, task: Problem, how: Plan) -> nn.Module:
    """The net of Torch-Pruning at the first of many steps that leaves so few multiplications, trained alike."""
    import torch_pruning as tp

    importances = {
        "l1": lambda: tp.importance.MagnitudeImportance(p=1),
        "l2": lambda: tp.importance.MagnitudeImportance(p=2),
        "bn_scale": lambda: tp.importance.BNScaleImportance(),
        "fpgm": lambda: tp.importance.FPGMImportance(p=2),
    }
    model = models.resnet20()
    model.load_state_dict(state)
    model, whole = model.eval(), macs(model)
    criterion, *more = way.removeprefix(THEIRS).split("+")
    keys = {"importance": importances[criterion](), "pruning_ratio": 1.0}
    keys |= {"round_to": MULTIPLE} if str(MULTIPLE) in more else {}
    pruner = tp.pruner.BasePruner(
        model, torch.zeros(1, 1, 28, 28), ignored_layers=[model.fc], iterative_steps=STEPS, **keys
    )
    while macs(model) > part * whole:
        pruner.step()
    train(model, task, how)
    return model.cpu()


def shared(
    model: nn.Module,
    task: Problem,
    given: argparse.Namespace,
    seed: int,
    path: Path,
    edits: list[dict[str, Any]],
    teacher: nn.Module | None,
) -> int:
    """Bytes of the file of a net trained on, with a part of the weights, of 4 bits, and the rest in bfloat16: pruned
    and shared in one training, or pruned in one of its own before; units in the order that codes smallest."""
    part = given.density
    pruning = GradualPruning({"conv1.weight": max(part, 0.5), "fc.weight": max(part, 0.5), "default": part}, ramp=0.5)
    sharing, taught = TrainedSharing(4, given.price), [Distillation(*TAUGHT)] if teacher else []
    epochs, first = given.share_epochs or given.epochs, given.prune_epochs
    once = [(plan(seed, given.device, epochs, given.rate), [pruning, sharing])]
    apart = [
        (plan(seed, given.device, first, PRUNED), [pruning]),
        (plan(seed, given.device, epochs, SHARED), [sharing]),
    ]
    structure: Structure = {}
    for how, methods in apart if first else once:
        done = train(model, task, how, [*methods, *taught], teacher=teacher, structure=structure)
        structure = done.structure
    books = [name for name, words in structure.items() if "shared" in words]
    slim(model.cpu(), shared=books)
    rounded = round_precision(plain_state(model), shared=books, codebook="float16", rest="bfloat16")
    return files.save(rounded.state, path, coder="adaptive", edits=edits)


def timed(model: nn.Module, dense: nn.Module, seconds: float) -> dict[str, dict[str, float]]:
    """Medians in milliseconds of both nets on the CPU, and how many times as fast the thin one is, by batch size: as
    they are, as PyTorch freezes them (BatchNorm in the convolutions), and as onnxruntime runs them, where it is."""
    found, nets = {}, {"dense": copy.deepcopy(dense), "thin": copy.deepcopy(model)}
    for one in nets.values():
        one.cpu().eval().to(memory_format=torch.contiguous_format)  # training leaves channels_last in theirs
    with torch.inference_mode():
        for size in BATCHES:
            batch = torch.zeros(size, 1, 28, 28)
            frozen = {name: torch.jit.freeze(torch.jit.trace(one, batch)) for name, one in nets.items()}
            in_onnx = {name: in_onnxruntime(one, batch) for name, one in nets.items()}
            forms = {"": nets, " frozen": frozen, " onnxruntime": in_onnx}
            for form, rivals in ((form, rivals) for form, rivals in forms.items() if all(rivals.values())):
                came = latency.interleaved(rivals, batch, latency.Plan(seconds=seconds))
                medians = {name: 1000 * one.median for name, one in came.items()}
                medians |= {f"{name}_cpu": 1000 * one.cpu for name, one in came.items()}
                found[f"{size}{form}"] = {**medians, "faster": latency.ratio(came["dense"], came["thin"])}
    return found


def in_onnxruntime(model: nn.Module, batch: Tensor) -> latency.Call | None:
    """PyTorch's own export of a net, on one thread; None where onnxruntime is not installed."""
    try:
        from bench_onnx import float_file, runs
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        float_file(model, [batch.repeat(2, 1, 1, 1)], path)
        call = runs(path, [batch.numpy()])
    return lambda _: call()


def made(
    way: str, state: dict[str, Tensor], task: Problem, how: Plan, given: argparse.Namespace, path: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The net of a way, as its file gives it, and what is known of the file; the rest trained for ``--share``."""
    edits: list[dict[str, Any]] = []
    if way == "float":
        model = models.resnet20()
        model.load_state_dict(state)
        files.save(state, path)
    elif way.startswith(THEIRS):
        model = theirs(state, way, given.flops, task, how)
        files.save(plain_state(model), path, coder="adaptive")
    else:
        edits = ours(state, way, given.flops, task, how, path)
        model = files.load_into(models.resnet20(), path)
    more: dict[str, Any] = {"bytes": path.stat().st_size, "macs": macs(model), "parameters": parameters_of(model)}
    if given.share and way != "float":
        smaller = path.with_suffix(".shared.dcz")
        teacher = models.resnet20() if "distil" in way.split("+") else None
        if teacher:
            teacher.load_state_dict(state)
        bytes_ = shared(model, task, given, how.seed, smaller, edits, teacher)
        model.load_state_dict(files.load(smaller))
        more |= {"shared_bytes": bytes_}
    return model, more


def kept(
    path: Path, way: str, state: dict[str, Tensor], task: Problem, how: Plan, given: argparse.Namespace
) -> dict[str, Any]:
    """What is known of one net: read, or trained, judged and written."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    started, dense = time.perf_counter(), models.resnet20()
    dense.load_state_dict(state)
    model, more = made(way, state, task, how, given, path.with_suffix(".dcz"))
    seconds = time.perf_counter() - started
    hits = right(model, given.device, images(task.validation if given.validation else None))
    more |= {"latency_ms": timed(model, dense, given.latency)} if given.latency and way != "float" else {}
    card = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    size = 4 * parameters_of(dense)
    ratio = size / more.get("shared_bytes", more["bytes"])
    row = {"way": way, "accuracy": float(hits.mean()), **more, "ratio": ratio, "seconds": seconds, "device": card}
    path.write_text(json.dumps({**row, "right": np.packbits(hits).tobytes().hex(), "images": len(hits)}))
    again: dict[str, Any] = json.loads(path.read_text())
    return again


def told(row: dict[str, Any], seed: int, whole: dict[str, Any]) -> str:
    """A row in a line."""
    faster = "  ".join(
        f"batch {size} {one['thin']:.2f} ms, dense {one['dense']:.2f}, {one['faster']:.2f}x "
        f"({one['dense_cpu'] / one['thin_cpu']:.2f}x of CPU time)"
        for size, one in row.get("latency_ms", {}).items()
    )
    parts = f"macs {row['macs'] / whole['macs']:.3f}  parameters {row['parameters'] / whole['parameters']:.3f}"
    size = f"{row.get('shared_bytes', row['bytes']):,} bytes {row['ratio']:.1f}x"
    return f"{row['way']:20} seed {seed}  {row['accuracy']:.2%}  {parts}  {size}  {faster}  {row['seconds']:.0f} s"


def compared(hits: dict[str, list[Hits]]) -> list[dict[str, Any]]:
    """Of each way the paired difference of errors, over all seeds, beside the float net and each of theirs."""
    rows = []
    for way, of in hits.items():
        against = [one for one in hits if one != way and (one == "float" or one.startswith(THEIRS)) and way != "float"]
        for other in against:
            both = significance.compare(np.concatenate(hits[other]), np.concatenate(of))
            print(f"   {way} beside {other}: {significance.interval(both)}", flush=True)
            points = {key: 100 * value for key, value in vars(both).items() if key in ("difference", "low", "high")}
            rows.append({"way": way, "beside": other, "points": points, "p": both.p_value})
    return rows


def subset(task: Problem, count: int | None) -> Problem:
    """The first samples of the training split alone, for a trial."""
    return task if count is None else replace(task, train=tuple(one[:count] for one in task.train))


def asked() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=["fpgm", "l1", "bn_scale", "tp-fpgm", "tp-l1", "tp-bn_scale"])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--flops", type=float, default=0.5, help="part of the multiplications that stays, at most")
    parser.add_argument("--share", action="store_true", help="few weights of 4 bits on top")
    parser.add_argument("--share-epochs", type=int, help="default: as many as --epochs")
    parser.add_argument(
        "--prune-epochs", type=int, default=0, help="with --share: prune in a training of its own before"
    )
    parser.add_argument("--price", type=float, default=0.01, help="rate of sharing, with --share")
    parser.add_argument("--density", type=float, default=0.18, help="of the weights of the thin net, with --share")
    parser.add_argument("--validation", action="store_true", help="judge by the validation split")
    parser.add_argument("--images", type=int, help="training images, for a trial")
    parser.add_argument("--latency", type=float, default=3.0, help="seconds a net and batch size; 0 leaves it out")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Prints a line for each net, then paired differences, then all of it as JSON."""
    given = asked()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    hits, rows, task = defaultdict[str, list[Hits]](list), [], problem()
    for seed in given.seeds:
        state, whole = float_net(given.folder, seed, task, given.device), {}
        how = plan(seed, given.device, given.epochs, given.rate)
        for way in dict.fromkeys(["float", *given.ways]):
            label = f"{way}-{given.flops:g}-{given.epochs}-{given.rate:g}-{seed}"
            epochs = f"{given.prune_epochs}+{given.share_epochs or given.epochs}"
            label += f"-shared-{given.density:g}-{given.price:g}-{epochs}" if given.share else ""
            label += "-val" if given.validation else ""
            row = kept(given.folder / f"filters-{label}.json", way, state, subset(task, given.images), how, given)
            whole = row if way == "float" else whole
            hits[way].append(unpacked(row["right"])[: row["images"]])
            rows.append({"seed": seed, **{key: one for key, one in row.items() if key != "right"}})
            print(told(row, seed, whole), flush=True)
    print(json.dumps({"rows": rows, "pairs": compared(hits), "torch": torch.__version__}))


if __name__ == "__main__":
    sys.exit(main())

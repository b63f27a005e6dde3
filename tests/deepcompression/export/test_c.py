from __future__ import annotations

import re
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deepcompression
from deepcompression.errors import ExportError, InvariantError, StorageError
from deepcompression.export import c
from deepcompression.export.exported import Exported
from deepcompression.models import lenet5, lenet_300_100
from deepcompression.network.edits.apply import apply

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
NEEDED = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
UNITS = ("main.c", "net.c", "model.c", "model_dcz.c")


class Net(nn.Module):
    """All that a chain may have: groups, strides, padding, dilation, each norm and pool, calls beside modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(2, 1))
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 12, 3, padding="same", dilation=2, groups=4, bias=False)
        self.after = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.point = nn.Conv2d(12, 6, 1)
        self.flat = nn.BatchNorm1d(6 * 4 * 2)
        self.drop = nn.Dropout()
        self.head = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = F.avg_pool2d(self.norm(torch.relu(self.first(images))), 2, 1, padding=1)
        found = self.pool(F.relu6(self.after(self.deep(found))))
        found = F.adaptive_avg_pool2d(self.point(found), (4, 2)).relu()
        found = self.flat(found.view(found.size(0), -1))
        return {"logits": self.head(self.drop(found))}


def prepared(net: nn.Module, density: float = 0.3, values: int = 16) -> nn.Module:
    """Pruned and shared, with norms that change something."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for one, ends in ((module.running_var, (0.5, 2)), (module.weight, (-2, 2)), (module.bias, (-1, 1))):
                one.data.uniform_(*ends)
            module.running_mean.normal_()
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d):
            weight = module.weight
            some = torch.randint(1, values + 1, weight.shape) / values - 0.53
            weight.data = torch.where(torch.rand_like(weight) < density, some, 0.0)
    return net.eval()


def on_grids(layers: dict[str, nn.Module], bits: int = 8, scheme: str = "asymmetric") -> nn.Module:
    """Weights of 8 bits, a scale for each output, and inputs on static grids."""
    net = prepared(nn.Sequential(OrderedDict(layers)), density=1)
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            scales = torch.rand(len(layer.weight)).add(0.5).div(200).reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.weight.data = torch.randint(-127, 128, layer.weight.shape) * scales
            layer.weight.data[torch.rand_like(layer.weight) < 0.5] = 0
            site = {"sites": [f"{name}:input[0]"], "range": "static", "bits": bits, "scheme": scheme}
            apply(net, {"kind": "quantize_values", **site})
            layer.input_0_scale.fill_(0.03)
            if scheme == "asymmetric":
                layer.input_0_zero_point.fill_(31)
    return net.eval()


def on_integers() -> dict[str, nn.Module]:
    """Layers that compute with integers alone once their values are on grids."""
    return {
        "conv": nn.Conv2d(2, 6, 3, padding=1),
        "norm": nn.BatchNorm2d(6),
        "relu": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "deep": nn.Conv2d(6, 8, 3, groups=2),
        "relu6": nn.ReLU6(),
        "mean": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(8, 4),
    }


@torch.no_grad()
def difference(net: nn.Module, session: Any, batch: Tensor) -> float:
    wanted = net(batch)
    wanted = wanted["logits"] if isinstance(wanted, dict) else wanted
    got = torch.from_numpy(session([batch.numpy()])[0])
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def everything() -> nn.Module:
    return prepared(Net())


@pytest.fixture(scope="module")
def written(everything: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the net that has everything."""
    path = tmp_path_factory.mktemp("exports") / "c"
    c.export(everything, [torch.randn(4, 3, 12, 11)], path)
    return path


def sparse(weight: Tensor, density: float) -> Tensor:
    return torch.where(torch.rand_like(weight) < density, weight, 0.0)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """The folder of a net whose weights lie in all forms, and what is said of it."""
    torch.manual_seed(0)
    random, integers = torch.randn(100, 100), torch.randint(-8, 8, (100, 100)) * 0.01
    kinds = {
        "values": random,
        "halves": random.half().float(),
        "bitmap": sparse(random, 0.6),
        "gaps": sparse(random, 0.01),
        "grid": integers,
        "rows": torch.randint(-8, 8, (100, 100)) * torch.rand(100, 1).add(0.1),
        "books": integers * torch.rand(100, 1).add(0.1),
        "shared": integers.mul(1e4).sin(),
        "sparse_grid": sparse(integers, 0.2),
        "sparse_rows": sparse(torch.randint(-8, 8, (100, 100)) * torch.rand(100, 1).add(0.1), 0.2),
        "sparse_books": sparse(integers * torch.rand(100, 1).add(0.1), 0.2),
        "zeros": torch.zeros(100, 100),
        "widening": torch.randn(1000, 100).half().float(),
        "chunks": sparse(torch.randn(1100, 1000).mul(3).round().clamp(-9, 9).exp(), 0.05),
    }
    net = nn.Sequential(OrderedDict((name, nn.Linear(one.shape[1], len(one))) for name, one in kinds.items()))
    for name, one in kinds.items():
        getattr(net, name).weight.data = one * 2 ** -one.norm(dim=1).mean().clamp(min=1).log2().round()
    path = tmp_path_factory.mktemp("exports") / "c"
    return path, c.export(net, [torch.randn(2, 100)], path)


@pytest.fixture
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second compilation, for the bytes of code."""
    monkeypatch.setattr(c, "_code_bytes", lambda _: 4000)


@NEEDED
def test_a_chain_with_everything_gives_pytorchs_outputs(written: Path, everything: nn.Module) -> None:
    """Every kind of layer, norm and pool, between modules and in forward, at other sizes of a batch too."""
    session = c.load(written, 1)
    assert session is not None and session.outputs == (5,)
    for size in (1, 7):
        assert difference(everything, session, torch.randn(size, 3, 12, 11)) < 1e-5
    with pytest.raises(ExportError, match=r"a sample is \(3, 12, 11\), not \(3, 12, 12\)"):
        session([np.zeros((1, 3, 12, 12), np.float32)])


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a net that computes with integers."""
    path = tmp_path_factory.mktemp("exports") / "c"
    assert c.export(on_grids(on_integers()), [torch.randn(4, 2, 8, 8)], path).integers
    return path


@NEEDED
@pytest.mark.parametrize(
    ("compiler", "kind", "inputs"),
    [
        *((COMPILERS[0], kind, size) for kind, size in (("written", 3 * 12 * 11), ("integers", 2 * 8 * 8))),
        *((COMPILERS[-1], kind, size) for kind, size in (("forms", 100), ("integers", 2 * 8 * 8))),
    ]
    if COMPILERS
    else [],
)
def test_what_is_written_is_strict_c99_and_sound(
    compiler: str, kind: str, inputs: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """On floats and on integers, far beyond a grid's range too: no warning is allowed, no byte out of place is read,
    nothing overflows; the file in place of the array gives the same lines.
    """
    found = request.getfixturevalue(kind)
    folder, program = found if isinstance(found, Path) else found[0], tmp_path / "run"
    build = [compiler, *STRICT, *SANITIZED, "-o", str(program), *UNITS]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    drawn = np.random.default_rng(0).normal(size=(3, inputs)) * np.array([[1], [1], [1e6]])
    samples = drawn.astype("<f4").tobytes()

    def lines(*arguments: str, given: bytes = samples, code: int = 0) -> str:
        ran = subprocess.run([program, *arguments], cwd=folder, input=given, capture_output=True, check=False)
        assert ran.returncode == code, ran.stderr
        return (ran.stderr or ran.stdout).decode()

    assert lines() == lines("model.dcz") and len(lines().splitlines()) == 3
    assert "not the file that model.h was made with" in lines("net.c", code=1)
    assert "ends within a sample of" in lines(given=samples[:-4], code=1)
    assert re.search(r"RAM \d+ bytes", lines("--sizes"))


@NEEDED
def test_nothing_is_allocated_and_the_ram_is_what_is_said(written: Path, tmp_path: Path) -> None:
    """net.c calls nothing that allocates, and its static memory is the bytes that are told, but for wider pointers."""
    found = tmp_path / "net.o"
    subprocess.run(["cc", "-std=c99", "-Os", "-c", "-o", found, "net.c"], cwd=written, check=True)
    if not shutil.which("nm") or not shutil.which("size"):
        pytest.skip("there is no nm, or no size")
    undefined = subprocess.run(["nm", "-u", found], capture_output=True, text=True, check=True).stdout.split()
    assert {one for one in undefined if len(one) > 1} <= {
        "model_layers",
        "model_ops",
        "model_tensors",
        "memset",
    }
    columns = (
        subprocess.run(["size", found], capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    )
    told = int(re.search(r"(\d+) bytes of RAM", (written / "model.h").read_text("utf-8"))[1])
    assert told <= int(columns[1]) + int(columns[2]) <= told + 160


def test_a_pruned_lenet_300_100_takes_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler it is written all the same, and said not to be run; every tensor decodes bit for bit."""
    monkeypatch.setattr(c, "_compiler", lambda: [])
    net = prepared(lenet_300_100(), density=0.06)
    made = c.export(net, [torch.rand(2, 1, 28, 28)], tmp_path / "c")
    assert made.bytes < made.float_bytes / 40 and np.isnan(made.max_difference)
    assert "not run" in made.notes[-1] and c.load(tmp_path / "c", 1) is None
    assert int(made.notes[0].split()[0].replace(",", "")) < 8_000
    read = deepcompression.load(tmp_path / "c" / "model.dcz")
    assert all(read[name].tobytes() == value.numpy().tobytes() for name, value in net.state_dict().items())
    assert {one.form for one in made.tensors if "weight" in one.tensor} == {"gaps, codebook of 16"}


@NEEDED
@pytest.mark.usefixtures("quicker")
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_layers_on_grids_compute_with_integers(scheme: str, tmp_path: Path) -> None:
    """Weights and inputs of 8 bits: no float in a layer, and outputs within the rounding of a grid's step."""
    net, path = on_grids(on_integers(), scheme=scheme), tmp_path / "c"
    made = c.export(net, [torch.randn(8, 2, 8, 8)], path)
    assert made.integers and made.notes[2] == "computes in integers; no float in a layer"
    session = c.load(path, 1)
    assert session is not None and difference(net, session, torch.randn(50, 2, 8, 8)) < 0.02
    assert deepcompression.load(path / "model.dcz")["conv.weight"].dtype == np.int8
    made_of = subprocess.run(["cc", "-E", "-P", "net.c"], cwd=path, capture_output=True, text=True, check=True).stdout
    used = [
        one for one in re.split(r"\n(?=\w)", made_of) if re.search(r"\bfloat\b", one) and one.rstrip().endswith("}")
    ]
    assert {re.search(r"(\w+)\(", one)[1] for one in used} == {"rounded", "net_set", "net_output"}


@NEEDED
@pytest.mark.usefixtures("quicker")
@pytest.mark.parametrize(
    ("layers", "bits", "why"),
    [
        ({"one": nn.Linear(6, 5), "two": nn.Linear(5, 3)}, 9, "one:input[0] has 9 bits, more than 8"),
        ({"norm": nn.BatchNorm1d(6), "one": nn.Linear(6, 5)}, 8, "the sample is not quantized as it comes"),
        (
            {"one": nn.Linear(6, 5), "relu": nn.ReLU(), "norm": nn.BatchNorm1d(5), "two": nn.Linear(5, 3)},
            8,
            "norm follows what is no layer",
        ),
    ],
)
def test_what_cannot_be_integers_stays_in_floats_and_is_named(
    layers: dict[str, nn.Module], bits: int, why: str, tmp_path: Path
) -> None:
    """Values are rounded to their grids as PyTorch rounds them, bit by bit where sums are the same."""
    net = on_grids(layers, bits)
    made = c.export(net, [torch.randn(8, 6)], tmp_path / "c")
    assert not made.integers and made.notes[2] == f"computes in floats: {why}"
    assert made.max_difference < 1e-4


@NEEDED
def test_every_form_of_weights_is_read(forms: tuple[Path, Exported]) -> None:
    """Values, codebooks and grids of all or of each row; all elements, bitmaps and gaps; several blocks and chunks."""
    found = {one.tensor.removesuffix(".weight"): one.form for one in forms[1].tensors if "weight" in one.tensor}
    wanted = {
        "values": "values",
        "halves": "values",
        "bitmap": "bitmap, values",
        "gaps": "gaps, values",
        "grid": "grid of 16",
        "rows": "grid of 16",
        "books": "bitmap, codebook of 15",
        "shared": "codebook of 16",
        "sparse_grid": "gaps, grid of 15",
        "sparse_rows": "gaps, grid of 15",
        "sparse_books": "gaps, codebook of 10",
        "zeros": "values",
        "widening": "codebook of 14",
        "chunks": "gaps, codebook of 19",
    }
    assert [name for name, form in wanted.items() if not found[name].startswith(form)] == []
    assert forms[1].max_difference < 1e-4


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, batch: Tensor) -> Tensor:
        return self.one(batch) + batch


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Joined(), "add joins tensors; only a chain is written, each layer on the one before"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "1 (Tanh) is not written"),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 4)), "1 (Linear) is applied to (3, 2, 4); vectors"),
        (nn.ReLU(), "it has no layer with weights"),
    ],
)
def test_what_is_not_written_is_told_before_training(net: nn.Module, words: str) -> None:
    """Another operation, a branch, a layer on something else: in one line, with its name."""
    with pytest.raises(ExportError, match=re.escape(words)) as refused:
        c.check(net, [torch.rand(3, 4)])
    assert str(refused.value).startswith("export c: ") and "\n" not in str(refused.value)


def test_ranges_of_each_call_are_refused() -> None:
    """A grid that depends on the values is not known when the sources are made."""
    net = nn.Sequential(nn.Linear(4, 4))
    site = {"sites": ["0:input[0]"], "range": "dynamic", "bits": 8, "scheme": "symmetric"}
    apply(net, {"kind": "quantize_values", **site})
    with pytest.raises(ExportError, match=r"^export c: 0:input\[0\] has the range dynamic"):
        c.check(net, [torch.rand(2, 4)])


@NEEDED
def test_a_folder_that_holds_code_is_not_compiled(written: Path, tmp_path: Path) -> None:
    """Of a folder that may be anybody's only numbers are taken; the program is the package's own."""
    path = shutil.copytree(written, tmp_path / "c")
    (path / "net.c").write_text("#error not this one")
    assert c.load(path, 1) is not None
    (path / "model.c").write_text((path / "model.c").read_text() + "\nint system(const char *);\n")
    with pytest.raises(ExportError, match=r"model\.c holds more than numbers; it is not compiled"):
        c.load(path, 1)


@NEEDED
@pytest.mark.usefixtures("quicker")
def test_wrong_outputs_leave_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are compared before the folder appears; a file in its place stays."""
    net, sample = nn.Sequential(nn.Linear(4, 4)), [torch.rand(2, 4)]
    c.export(net, sample, tmp_path / "c")
    before = (tmp_path / "c" / "model.dcz").read_bytes()
    net[0].weight.data += 1
    monkeypatch.setattr(c.CSession, "__call__", lambda *_: [np.zeros((2, 4), np.float32)])
    with pytest.raises(InvariantError, match="differs from PyTorch's by"):
        c.export(net, sample, tmp_path / "c")
    assert (tmp_path / "c" / "model.dcz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot be written"):
        c.export(net, sample, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@NEEDED
@pytest.mark.usefixtures("quicker")
def test_a_second_run_replaces_the_folder_and_lenet_5_is_small(tmp_path: Path) -> None:
    """Convolutions are pooled channel by channel: LeNet-5 needs the pooled maps alone."""
    for _ in range(2):
        made = c.export(prepared(lenet5(), 0.1), [torch.rand(2, 1, 28, 28)], tmp_path / "c")
    assert int(made.notes[0].split()[0].replace(",", "")) < 20_000 and made.max_difference < 1e-4

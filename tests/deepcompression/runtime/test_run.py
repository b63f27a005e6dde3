"""A model from its file's codes: what is held, what falls back and why, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deepcompression import torch as bridge
from deepcompression.errors import InputError, WeightsError
from deepcompression.models import lenet5
from deepcompression.network.edits.apply import apply_all
from deepcompression.runtime.coded import Coded
from deepcompression.runtime.running import Running

pytest.importorskip("numba")


def pruned(model: Any) -> Any:
    """``model`` with weights of 16 values, one in ten."""
    made = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            book = torch.randn(16, generator=made) / parameter[0].numel() ** 0.5
            some = torch.rand(parameter.shape, generator=made) < 0.1
            parameter.data = book[torch.randint(16, parameter.shape, generator=made)] * some
    return model.eval()


def ran(make: Callable[[], nn.Module], path: Path, *given: Any, **named: Any) -> tuple[Any, Running]:
    """The dense model and the running one."""
    torch.manual_seed(0)
    model = pruned(make())
    bridge.save(model.state_dict(), path / "model.dcz", coder="packed")
    return model, bridge.run(make(), path / "model.dcz", *given, **named)


def test_a_model_runs_from_its_codes_and_holds_no_dense_weight(tmp_path: Path):
    """LeNet-5: the same logits, a twentieth of the bytes, and no float tensor of a weight's size anywhere."""
    images = torch.randn(3, 1, 28, 28)
    model, running = ran(lenet5, tmp_path, form="codes")
    with torch.inference_mode():
        assert torch.allclose(running(images), model(images), atol=1e-5)
    assert running.resident_bytes < running.dense_bytes / 12
    held = sum(one.form.nbytes for one in running.modules() if isinstance(one, Coded))
    assert held == running.resident_bytes
    floats = [one for one in (*running.parameters(), *running.buffers()) if one.ndim > 1]
    assert floats == [] and all(not one.requires_grad for one in running.parameters())


def test_a_model_on_the_meta_device_gets_only_what_it_needs(tmp_path: Path):
    """Nothing dense is made on the way; biases and norms get memory."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))

    model = pruned(make())
    bridge.save(model.state_dict(), tmp_path / "m.dcz")
    with torch.device("meta"):
        blank = make()
    running = bridge.run(blank, tmp_path / "m.dcz", form="codes")
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(running(images), model(images), atol=1e-5)
    assert all(one.from_codes for one in running.layers)


def test_measuring_decides_and_the_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The faster of the two; a layer that the sample does not come by stays small; words override."""
    from deepcompression.runtime import chosen

    monkeypatch.setattr(chosen, "medians", lambda ways, threads: [10.0, *[len(ways) * 4.0 for _ in ways[1:]]])
    _, running = ran(lenet5, tmp_path, torch.randn(1, 1, 28, 28), form={"fc1": "dense"})
    forms = {one.name: (one.form, one.why) for one in running.layers}
    assert forms["fc1"] == ("dense", "asked for") and forms["conv1"][1] == "faster"
    assert forms["conv1"][0] == "columns and codes of 4 bits"
    monkeypatch.setattr(chosen, "medians", lambda ways, threads: [1.0, *[2.0 for _ in ways[1:]]])
    model, running = ran(lenet5, tmp_path, (torch.randn(1, 1, 28, 28),), form={"conv*": "codes"})
    forms = {one.name: (one.form, one.why) for one in running.layers}
    assert forms["conv2"][1] == "asked for" and forms["fc1"] == ("dense", "dense is faster")
    assert isinstance(running.model.fc1.weight, nn.Parameter) and type(running.model.fc1) is nn.Linear
    assert list(running.model.fc1._parameters) == ["weight", "bias"]
    lines = running.report().splitlines()
    assert len(lines) == 6 and "dense is faster" in lines[3] and lines[-1].startswith("all")
    with torch.inference_mode():
        images = torch.randn(2, 1, 28, 28)
        assert torch.allclose(running(images), model(images), atol=1e-5)


def test_without_a_sample_convolutions_stay_dense(tmp_path: Path):
    """Nobody knows their images; Linear layers are measured on one row."""
    _, running = ran(lenet5, tmp_path)
    rows = {one.name: one for one in running.layers}
    assert rows["conv1"].why == "there was no sample to measure it with"
    assert rows["fc1"].codes_us is not None and rows["fc1"].dense_us is not None


class Scaled(nn.Linear):
    """A Linear with a forward of its own."""

    def forward(self, value: Tensor) -> Tensor:
        """Twice the Linear's."""
        return 2 * super().forward(value)


class Reader(nn.Module):
    """Reads a weight beside calling its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, value: Tensor) -> Tensor:
        """Both."""
        return self.fc(self.other(value)) + self.fc.weight.sum()


def tied() -> nn.Module:
    """Two layers of one weight."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    return model


OTHERS = {
    "its forward is Scaled's own": lambda: nn.Sequential(Scaled(6, 6)),
    "its weight is tied with another": tied,
    "there is no form of codes for a ConvTranspose2d": lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3)),
    "MultiheadAttention reads its weight itself": lambda: nn.MultiheadAttention(8, 2),
    "TransformerEncoderLayer reads its weight itself": lambda: nn.TransformerEncoderLayer(8, 2, 8),
    "its weight is bfloat16": lambda: nn.Sequential(nn.Linear(6, 6)).bfloat16(),
    "it pads by circular": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
    "its weight is computed from others": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6))),
}


@pytest.mark.parametrize("why", OTHERS)
def test_what_cannot_run_from_codes_stays_as_it_is_and_says_why(why: str, tmp_path: Path):
    """Subclasses, ties, parametrizations, what another module reads, other types and paddings."""
    make = OTHERS[why]
    _, running = ran(make, tmp_path, form="codes")
    assert why in [one.why for one in running.layers]
    state = bridge.load_into(make(), tmp_path / "model.dcz").state_dict()
    kept = [*running.model.parameters()]
    assert all(any(torch.equal(one, other) for other in kept) for name, one in state.items() if "weight" in name)


def test_a_weight_that_other_code_reads_comes_back(tmp_path: Path):
    """The sample shows it; without one, reading it is one clear line."""
    value = torch.randn(2, 6)
    model, running = ran(Reader, tmp_path, value, form="codes")
    rows = {one.name: one for one in running.layers}
    assert rows["fc"].why == "other code than its forward reads its weight" and rows["other"].from_codes
    with torch.no_grad():
        assert torch.allclose(running(value), model(value), atol=1e-6)
    _, running = ran(Reader, tmp_path, form="codes")
    with torch.no_grad(), pytest.raises(AttributeError, match=r"fc\.weight is not in memory: .* form=.\"fc\": \"dense"):
        running(value)


def test_edits_of_the_file_are_made_first(tmp_path: Path):
    """Quantized values before a layer from codes are what they are before a dense one."""
    record = {"kind": "quantize_values", "sites": ["0:input[0]"], "range": "dynamic", "bits": 4, "scheme": "symmetric"}
    model = pruned(nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3)))
    apply_all(model, [record])
    bridge.save(model.state_dict(), tmp_path / "m.dcz", edits=[record])
    blank = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3))
    running = bridge.run(blank, tmp_path / "m.dcz", torch.randn(1, 30), form="codes")
    value = torch.randn(5, 30)
    with torch.no_grad():
        assert torch.allclose(running(value), model(value), atol=1e-6)
        assert not torch.allclose(running(value), blank[2](blank[1](blank[0].forward(value))), atol=1e-6)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "copied nor pickled": copy.deepcopy,
    "neither copied nor pickled; run the file again": pickle.dumps,
    "no state_dict; that is in the file": lambda running: running.state_dict(),
    "takes no state_dict": lambda running: running.load_state_dict({}),
    "is not trained": lambda running: running.train(),
    "float32 on the CPU alone": lambda running: running.half(),
    "takes float32 on the CPU, not float16": lambda running: running(torch.randn(1, 6).half()),
    "has no gradients": lambda running: running(torch.randn(1, 6, requires_grad=True)),
    "0: runs from its codes, which have no gradients": lambda r: r.model(torch.randn(1, 6, requires_grad=True)),
    "0: runs from codes in memory, and can be": lambda running: copy.deepcopy(running.model),
    "0: runs from its codes, and has no state_dict": lambda running: running.model.state_dict(),
    "0: runs from its codes, and takes no state_dict": lambda running: running.model.load_state_dict({}, strict=False),
    "0: runs from its codes, in float32 on the CPU": lambda running: running.model.double(),
    "0: runs from its codes, which are not trained": lambda running: running.model.train(),
    "can be neither traced nor compiled": lambda running: torch.jit.trace(running, torch.randn(1, 6)),
    r"0: takes \(..., 6\), not \(1, 5\)": lambda running: running(torch.randn(1, 5)),
    r"1: takes \(n, 1, length\), not \(1, 2, 4\)": lambda running: running.model[1](torch.randn(1, 2, 4)),
    r"1: images of 1 x 1 are too small": lambda running: running.model[1](torch.randn(1, 1, 1)),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A Linear and a convolution, from codes."""
    return ran(lambda: nn.Sequential(nn.Linear(6, 4), nn.Conv1d(1, 3, 2)), tmp_path_factory.mktemp("r"), form="codes")[
        1
    ]


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line(words: str, small: Running):
    """Gradients, copies, pickles, state_dicts, training, other types and devices, tracing, wrong shapes."""
    with pytest.raises(InputError, match=words) as caught, torch.set_grad_enabled("gradients" in words):
        REFUSED[words](small)
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_is_allowed(small: Running):
    """Evaluation loops move models to where they are and put them into eval mode."""
    assert small.cpu() is small and small.float() is small and small.eval() is small
    with torch.no_grad():
        assert small.model[0](torch.randn(1, 6, requires_grad=True)).shape == (1, 4)


def test_wrong_questions_leave_the_model_as_it_was(tmp_path: Path):
    """Words, layers, files and samples that do not fit."""
    bridge.save(pruned(lenet5()).state_dict(), tmp_path / "m.dcz")
    model = lenet5()
    before = model.state_dict()
    for form, words in (
        ("fast", "form is one of auto, codes, dense"),
        ({"fc9": "dense"}, "'fc9' is no Linear or Conv"),
    ):
        with pytest.raises(InputError, match=words):
            bridge.run(model, tmp_path / "m.dcz", form=form)
    with pytest.raises(InputError, match="the model does not take the sample: RuntimeError"):
        bridge.run(model, tmp_path / "m.dcz", torch.randn(3))
    with pytest.raises(WeightsError, match="does not fit the model; missing: 0"):
        bridge.run(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.dcz")
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert model.training and all(one.requires_grad for one in model.parameters())


def test_without_numba_everything_is_dense_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Or a refusal, where codes were asked for."""
    monkeypatch.setenv("DEEPCOMPRESSION_NO_NUMBA", "1")
    _, running = ran(lenet5, tmp_path, torch.randn(1, 1, 28, 28))
    assert not any(one.from_codes for one in running.layers)
    assert "every layer runs dense: DEEPCOMPRESSION_NO_NUMBA is set" in caplog.text
    with pytest.raises(InputError, match='form "codes": DEEPCOMPRESSION_NO_NUMBA is set'):
        bridge.run(lenet5(), tmp_path / "model.dcz", form="codes")

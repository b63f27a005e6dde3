"""The bridge: state_dicts to files and back, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepcompression
from deepcompression import torch as bridge
from deepcompression.errors import WeightsError
from deepcompression.network.state import bits_of

FLOATS = ["float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
DTYPES = [getattr(torch, name) for name in FLOATS + INTEGERS]


def random_bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """Any bit pattern at all: NaN payloads, infinities, -0.0."""
    size = torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(high, (*shape, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_every_dtype_survives_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path):
    """The decoded file is the state_dict, whatever stands in it."""
    tensor = random_bits(dtype, *shape)
    assert bridge.save({"t": tensor}, tmp_path / "t.dcz") == (tmp_path / "t.dcz").stat().st_size
    back = bridge.load(tmp_path / "t.dcz")["t"]
    assert (back.dtype, back.shape) == (dtype, shape)
    assert torch.equal(bits_of(back), bits_of(tensor))


def test_transposed_channels_last_and_parameters_are_saved_by_value(tmp_path: Path):
    """Memory layout, gradients and ties are no business of the file."""
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"t": image.transpose(0, 3), "p": nn.Parameter(image), "again": image}
    assert bridge.encode(state) == bridge.encode({name: tensor.detach().clone() for name, tensor in state.items()})
    bridge.save(state, tmp_path / "t.dcz", metadata={"format": "pt"})
    back = bridge.load(tmp_path / "t.dcz")
    assert all(torch.equal(back[name], state[name]) for name in state)
    with deepcompression.File(tmp_path / "t.dcz") as file:
        assert file.metadata == {"format": "pt"}


def test_a_model_goes_through_a_file_and_works_the_same(tmp_path: Path):
    """BatchNorm counters, buffers and tied weights come along; loaded tensors can be trained."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model(torch.randn(8, 4))
    bridge.save(model.state_dict(), tmp_path / "m.dcz", coder="packed")
    blank = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    blank[2].weight = blank[0].weight
    assert bridge.load_into(blank, tmp_path / "m.dcz") is blank
    sample = torch.randn(3, 4)
    assert torch.equal(model.eval()(sample), blank.eval()(sample))
    bridge.load(tmp_path / "m.dcz")["0.weight"].add_(1)


def test_a_file_that_does_not_fit_the_model_is_refused(tmp_path: Path):
    """Half-loaded weights would be worse than none; the message names file and tensor."""
    bridge.save(nn.Linear(4, 4).state_dict(), tmp_path / "m.dcz")
    with pytest.raises(WeightsError, match=r"m\.dcz.*weight"):
        bridge.load_into(nn.Linear(4, 5), tmp_path / "m.dcz")


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128), 3])
def test_what_cannot_be_stored_is_refused_by_name(value: object, tmp_path: Path):
    """No silent conversion; nothing is left behind."""
    with pytest.raises(WeightsError, match=r"layer\.w: only dense"):
        bridge.save({"layer.w": value}, tmp_path / "t.dcz")
    assert list(tmp_path.iterdir()) == []


def test_the_two_verbs_serve_a_training_loop_of_ones_own():
    """hold, any optimizer, bake: what README shows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data[:2] = 0
    bridge.hold(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(5, 4)).square().sum().backward()
        optimizer.step()
    bridge.bake(model)
    assert not model[0].weight[:2].any() and model[0].weight[2:].any()


def test_the_bridge_alone_imports_torch():
    """Reading a file to numpy arrays must not cost a second of import, nor need torch."""
    code = "import sys, deepcompression, deepcompression.codec.file; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Files that people have: what is in them tells their kind, and what is none of ours is named."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pathlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepcompression import torch as files
from deepcompression.errors import InputError, WeightsError
from deepcompression.formats.checkpoint import edits_of, read_state
from deepcompression.formats.kinds import Kind, kind_of
from deepcompression.formats.shards import paths_of
from deepcompression.formats.state_dict import to_raw_state
from deepcompression.network.load import unwrapped

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
WRITERS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "torch": torch.save,
    "old torch": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": save_file,
    "dcz": files.save,
}


def _same(state: dict[str, Tensor]) -> bool:
    return set(state) == set(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["w", "W.PT", "w.pth.tar", "w.safetensors", "w.dcz", "PYTORCH_MODEL.BIN", "w.v1.5"])
@pytest.mark.parametrize("writer", WRITERS)
def test_content_tells_the_kind(tmp_path: Path, writer: str, name: str) -> None:
    """Upper-case, missing and wrong suffixes: whatever a file is called, its tensors come."""
    WRITERS[writer](STATE, tmp_path / name)
    assert _same(read_state(tmp_path / name))
    assert edits_of(tmp_path / name) == []


def test_shards_of_safetensors_and_of_torch(tmp_path: Path) -> None:
    """By index or folder; all files decide what a checkpoint is, so all are told."""
    for kind, save, name in (("safe", save_file, "model{}.safetensors"), ("torch", torch.save, "pytorch_model{}.bin")):
        folder = tmp_path / kind
        folder.mkdir()
        places = {one: name.format(f"-0000{i}-of-00002") for i, one in enumerate(STATE, 1)}
        for one, shard in places.items():
            save({one: STATE[one]}, folder / shard)
        index = folder / name.format("").replace(".bin", ".bin.index.json").replace("tensors", "tensors.index.json")
        index.write_text(json.dumps({"weight_map": places}))
        for path in (folder, index):
            assert _same(read_state(path)) and len(paths_of(path)) == 3
        (folder / places["a.bias"]).unlink()
        with pytest.raises(InputError, match=r"the shard .* is missing; all files of the checkpoint are needed"):
            read_state(index)


def _zip(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"")  # of no date: the same bytes in every process
    return made.getvalue()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            r"Git LFS.*12,345.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>not found</html>", r"a web page \(HTML\), not weights"),
        (b'{"error": "Repository not found"}', "a text, not weights; it begins with .*Repository not found"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        (b"GGUF" + bytes(64), "a GGUF file"),
        (gzip.compress(b"weights", mtime=0), "compressed by gzip; unpack it first"),
        (b"", "empty; it was perhaps not copied or downloaded to its end"),
        (_zip("a.npy", "b.npy"), "an archive of numpy; save its arrays: safetensors.numpy"),
        (_zip("x/data.pkl", "x/constants.pkl"), r"TorchScript archive.*torch\.jit\.load\(.*\)\.state_dict\(\)"),
        (_zip("x/archive_format"), r"a program of torch\.export; save its weights"),
        (_zip("picture.png"), "a zip archive, no checkpoint"),
        (_zip("x/data.pkl")[:30], "is damaged: a zip archive without its end"),
    ],
    ids=["lfs", "page", "text", "hdf5", "gguf", "gzip", "empty", "numpy", "torchscript", "pt2", "zip", "cut"],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, words: str, name: str) -> None:
    """A pointer, a page, an archive: one line says what the file is, not what a reader stumbled over."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        read_state(tmp_path / name)
    assert str(caught.value).startswith(f"weights {tmp_path / name}: ") and "\n" not in str(caught.value)


def test_numbers_and_arrays_of_numpy_are_tensors(tmp_path: Path) -> None:
    """Among weights and beside them, of any byte order and layout; arrays of objects are refused."""
    fortran, big = np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(3, dtype=">i4")
    content = {**STATE, "scale": np.float32(0.5), "f": fortran, "big": big, "flag": np.bool_(True)}
    torch.save({"model": content, "best": np.float64(2), "rng": np.arange(3)}, tmp_path / "w.pt")
    state = read_state(tmp_path / "w.pt", key="model")
    assert state["scale"].dtype == torch.float32 and state["scale"].shape == () and float(state["scale"]) == 0.5
    assert state["f"].tolist() == fortran.tolist() and state["big"].tolist() == [0, 1, 2] and bool(state["flag"])
    torch.save({**STATE, "o": np.array([print], dtype=object)}, tmp_path / "o.pt")
    with pytest.raises(WeightsError, match=r"contains code|cannot be read"):
        read_state(tmp_path / "o.pt")


def test_options_beside_weights_are_read_as_nothing(tmp_path: Path) -> None:
    """Lightning's hyper-parameters and paths are no reason to refuse; hints name what has tensors alone."""
    options = {"hyper_parameters": argparse.Namespace(lr=1), "at": pathlib.Path("x"), "callbacks": {"a": 1}}
    torch.save({"state_dict": STATE, **options}, tmp_path / "epoch=1.ckpt")
    assert _same(read_state(tmp_path / "epoch=1.ckpt", key="state_dict"))
    with pytest.raises(WeightsError, match=r"perhaps to state_dict$"):
        read_state(tmp_path / "epoch=1.ckpt")


def test_plain_values_among_weights_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An epoch or a version in a state_dict is no weight, and not silently gone."""
    torch.save({**STATE, "epoch": 3, "version": "1.0"}, tmp_path / "w.pt")
    assert _same(read_state(tmp_path / "w.pt"))
    assert "left out, for they are no tensors: epoch (int), version (str)" in caplog.text


def test_whole_modules_and_protocols_are_told_from_each_other(tmp_path: Path) -> None:
    """Which class the pickle names, and the two lines that save a state_dict; another protocol is no code."""
    torch.save({"net": nn.Linear(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"\(torch\.nn\..*Linear\), which is never run.*torch\.save\(model\.state_d"):
        read_state(tmp_path / "w.pt")
    torch.save(STATE, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(WeightsError, match=r"another pickle_protocol than 2.*torch\.save\(torch\.load"):
        read_state(tmp_path / "w.pt")


def test_names_to_ignore(tmp_path: Path) -> None:
    """By whole names, their last parts, or patterns; one that means nothing is refused with what there is."""
    more = {"bert.embeddings.position_ids": torch.arange(3), "criterion.weight": torch.ones(2), "criterion.b.c": STATE}
    torch.save({**STATE, **more, "criterion.b.c": torch.ones(1)}, tmp_path / "w.pt")
    assert _same(read_state(tmp_path / "w.pt", ignore=["position_ids", "criterion.*"]))
    with pytest.raises(WeightsError, match=r"ignore: pattern 'positions' matches no tensor of the file; it has "):
        read_state(tmp_path / "w.pt", ignore=["positions"])


def test_keys_with_dots_are_taken_as_they_stand_first(tmp_path: Path) -> None:
    """`model.ema` is a key of its own in some files, and a way in others."""
    torch.save({"model.ema": STATE, "model": {"ema": {"x": torch.ones(1)}}}, tmp_path / "w.pt")
    assert _same(read_state(tmp_path / "w.pt", key="model.ema"))


def test_wrappers_anywhere_in_names_are_taken_out() -> None:
    """torch.compile and DataParallel put parts into names; a model that really has such parts keeps them."""
    model = nn.Sequential(nn.Linear(3, 2))
    wrapped = {"module._orig_mod.0.weight": torch.ones(2, 3), "0._orig_mod.bias": torch.ones(2), "x": torch.ones(1)}
    assert list(unwrapped(model, wrapped)) == ["0.weight", "0.bias", "x"]
    own = nn.Sequential()
    own.module = nn.Linear(3, 2)
    assert list(unwrapped(own, own.state_dict())) == ["module.weight", "module.bias"]
    twice = {"0.bias": torch.ones(2), "module.0.bias": torch.zeros(2)}
    assert list(unwrapped(model, twice)) == list(twice)


def test_tensors_without_values_are_refused_in_their_own_words() -> None:
    """A state_dict on the meta device has names and shapes alone."""
    with pytest.raises(WeightsError, match=r"a: is on the meta device and has no values to save"):
        to_raw_state({"a": torch.ones(2, device="meta")})


def test_a_folder_is_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    """Without anything that tells otherwise, of safetensors, whose reader says what is missing."""
    assert kind_of(tmp_path) is Kind.SAFETENSORS_SHARDS
    with pytest.raises(InputError, match=r"a folder without \.safetensors files; name the checkpoint's file"):
        read_state(tmp_path)

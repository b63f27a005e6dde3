"""A checkpoint compressed whole: resumed, tied, not finite; what is written decodes to what was computed."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import deepcompression
import deepcompression.torch as bridge
from deepcompression.codec.dtypes import RawTensor
from deepcompression.datafree import work
from deepcompression.datafree.compress import compress_state
from deepcompression.datafree.kept import kept_beside
from deepcompression.datafree.tensor import treated
from deepcompression.datafree.treatment import Treatment
from deepcompression.errors import InputError, StorageError, StructureError
from deepcompression.structure.counted import counted, narrowed

CODER = "huffman"  # adaptive is slow where a test is too short for compiled code


def net() -> dict[str, np.ndarray]:
    """Three matrices, a vector, a step counter and a matrix that is not finite."""
    random = np.random.default_rng(0)
    made = {f"{name}.weight": random.laplace(size=(48, 64)).astype(np.float32) for name in "abc"}
    broken = np.full((40, 40), np.nan, np.float32)
    return {**made, "a.bias": random.normal(size=48), "steps": np.array(7), "broken.weight": broken}


def test_file_holds_what_was_computed(tmp_path: Path) -> None:
    """Decoding gives the treated tensors bit for bit; what is kept is as it was; each has its account."""
    state = net()
    told = {
        one.name: one
        for one in compress_state(state, tmp_path / "x.dcz", density=0.25, bits=4, spare=False, coder=CODER)
    }
    found = deepcompression.load(tmp_path / "x.dcz", raw=True)
    raw = RawTensor(state["b.weight"].view(np.uint32), "float32")
    made, _ = treated(raw, Treatment(0.25, 4), counted(narrowed(raw), "float32"))
    assert list(found) == list(state)
    assert np.array_equal(found["b.weight"].bits, made.bits)
    assert told["b.weight"].density == 0.25 and (told["b.weight"].error or 0) > 0
    for name in ("a.bias", "steps", "broken.weight"):
        assert found[name].bits.tobytes() == state[name].tobytes() and told[name].treatment == "kept"
    assert "NaN" in told["broken.weight"].why
    assert sum(one.stored or 0 for one in told.values()) < (tmp_path / "x.dcz").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "x.dcz"]


def test_state_dict_of_torch(tmp_path: Path) -> None:
    """bfloat16 and tied tensors of torch: what is loaded is of the same types, few values, and tied tensors are one."""
    table = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    told = bridge.compress_state({"wte.weight": table, "lm_head.weight": table}, tmp_path / "x.dcz", bits=3)
    found = bridge.load(tmp_path / "x.dcz")["lm_head.weight"]
    assert found.dtype == torch.bfloat16 and len(found.unique()) <= 8 and told[1].stored == 0


def test_equal_tensors_stay_one(tmp_path: Path) -> None:
    """An embedding tied to the last layer is stored once, though the two are treated differently."""
    random = np.random.default_rng(0)
    table = random.normal(size=(300, 32)).astype(np.float32)
    state = {"wte.weight": table, "h.weight": random.normal(size=(300, 32)).astype(np.float32)}
    state["lm_head.weight"] = table.copy()
    told = {one.name: one for one in compress_state(state, tmp_path / "x.dcz", density=0.5, bits=3, coder=CODER)}
    assert told["lm_head.weight"].stored == 0
    assert told["wte.weight"].treatment == told["lm_head.weight"].treatment == "5 bits"
    assert told["h.weight"].treatment == "density 0.5, 3 bits"
    told = {one.name: one for one in compress_state(state, tmp_path / "x.dcz", ratio=12, coder=CODER)}
    assert told["lm_head.weight"].stored == 0


class _Dying(dict[str, np.ndarray]):
    """A state that kills its process when the third tensor is asked for, after a first look at all."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "c.weight" and self.about:
            os.kill(os.getpid(), 9)
        return super().__getitem__(name)

    about: dict[str, tuple[str, tuple[int, ...]]]


def _die(path: Path) -> None:
    state = _Dying(net())
    state.about = {name: (one.dtype.name, one.shape) for name, one in state.items()}
    compress_state(state, path, bits=3, spare=False, coder=CODER, source="the same")


def test_killed_work_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL leaves nothing under the final name; the same call makes only what was not finished, the same bytes."""
    child = multiprocessing.get_context("fork").Process(target=_die, args=(tmp_path / "x.dcz",))
    child.start()
    child.join()
    assert child.exitcode == -9
    assert not (tmp_path / "x.dcz").exists()
    made: list[str] = []
    monkeypatch.setattr(work, "treated", lambda raw, *rest: made.append("") or treated(raw, *rest))
    compress_state(net(), tmp_path / "x.dcz", bits=3, spare=False, coder=CODER, source="the same")
    assert len(made) == 1
    compress_state(net(), tmp_path / "y.dcz", bits=3, spare=False, coder=CODER)
    assert (tmp_path / "x.dcz").read_bytes() == (tmp_path / "y.dcz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.dcz", "y.dcz"]


def test_other_input_begins_anew(tmp_path: Path) -> None:
    """What was finished of a checkpoint that changed since is not used; a damaged part is made again."""
    path = tmp_path / "x.dcz"
    with pytest.raises(ZeroDivisionError), kept_beside(path, "one") as kept:
        kept.add("key", b"\x00blob", "uint8", (4,), {})
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), kept_beside(path, "one") as kept:
        assert kept.find("key") is not None and kept.find("other") is None
        kept.path("key").write_bytes(kept.path("key").read_bytes()[:-1])
        assert kept.find("key") is None
        raise ZeroDivisionError
    with kept_beside(path, "another") as kept:
        assert list(kept.folder.glob("*.tensor")) == []


def test_two_at_once_and_impossible_places(tmp_path: Path) -> None:
    """The second of two processes that make a file is refused; so is a place that no file can take, before any work."""
    state = {"a": np.zeros((4, 4), np.float32)}
    with kept_beside(tmp_path / "x.dcz", "one"), pytest.raises(InputError, match="another process is making it"):
        compress_state(state, tmp_path / "x.dcz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder: cannot be written: Is a directory"):
        compress_state(state, tmp_path / "folder")
    with pytest.raises(StorageError, match="No such file or directory"):
        compress_state(state, tmp_path / "missing" / "x.dcz")
    with pytest.raises(StructureError, match="out of reach"):
        compress_state(net(), tmp_path / "x.dcz", target_bytes=100, coder=CODER)
    assert not (tmp_path / "x.dcz.unfinished").exists()
    with pytest.raises(InputError, match="coder is one of"):
        compress_state(state, tmp_path / "x.dcz", coder="zip")
    (tmp_path / "old.dcz").write_bytes(b"old")
    (tmp_path / "link.dcz").symlink_to(tmp_path / "old.dcz")
    compress_state(state, tmp_path / "link.dcz")
    assert (tmp_path / "old.dcz").read_bytes() == b"old" and "a" in deepcompression.load(tmp_path / "link.dcz")

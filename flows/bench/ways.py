"""The ways to run a run's model: the dense net, its compressed form, each export, and what PyTorch itself offers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression.errors import ExportError
from deepcompression.export import TARGETS, target_of
from flows.runs import Finished

if TYPE_CHECKING:
    from torch import Tensor, nn

DENSE, DECODED, CODES, COMPILED = "dense", "decoded", "codes", "compiled"
SHRUNK = ("Linear", "LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell")  # of what PyTorch makes int8 without calibration

Inputs = Sequence["Tensor"]


@dataclass(frozen=True)
class Ready:
    """A way that is loaded.

    ``call`` runs the model on a batch; ``bytes``: on disk; ``weights``: bytes of its parameters in memory, None where
    another runtime holds them; ``fixed_batch``: how many samples it takes, where it takes no other number.
    """

    call: Callable[[Inputs], object]
    bytes: int
    weights: int | None = None
    fixed_batch: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Way:
    """``words`` say what it is; ``load`` gives it for a run, that many threads, and a batch to look at; ``of``: the way
    whose outputs it should have.
    """

    words: str
    load: Callable[[Finished, int, Inputs], Ready]
    of: str = ""


def ways(done: Finished) -> dict[str, Way]:
    """All ways by name, the dense net first: exports that lie in the run's folder among them."""
    exports = {
        name: Way(f"export {name} in its own runtime", _export(name), DECODED)
        for name in TARGETS
        if _exported(done, name).exists()
    }
    return {
        DENSE: Way("PyTorch, the dense net", _dense),
        COMPILED: Way("torch.compile of the dense net", _compiled, DENSE),
        "int8-dynamic": Way("PyTorch's own int8, inputs rounded as they come", _int8_dynamic, DENSE),
        "int8-static": Way("PyTorch's own int8 (FX), inputs calibrated", _int8_static, DENSE),
        DECODED: Way("PyTorch, weights decoded from the file", _decoded),
        CODES: Way("deepcompression.torch.run, from the compressed form", _codes, DECODED),
        **exports,
    }


def dense_model(done: Finished) -> nn.Module:
    """The baseline with its weights, in eval mode."""
    return done.run.model_with(done.baseline()).eval()


def final_model(done: Finished) -> nn.Module:
    """What the file decodes to, in eval mode: units that were removed are not there."""
    from deepcompression.torch import load_into

    return load_into(done.run.blank_model(), done.file).eval()


def _module(model: nn.Module, count: int, note: str = "") -> Ready:
    import torch

    from deepcompression.measure.memory import parameter_bytes

    def call(inputs: Inputs) -> object:
        with torch.inference_mode():
            return model(*inputs)

    return Ready(call, count, parameter_bytes(model), note=note)


def _dense(done: Finished, threads: int, inputs: Inputs) -> Ready:
    return _module(dense_model(done), int(done.summary["dense_bytes"]))


def _decoded(done: Finished, threads: int, inputs: Inputs) -> Ready:
    return _module(final_model(done), done.file.stat().st_size)


def _codes(done: Finished, threads: int, inputs: Inputs) -> Ready:
    from deepcompression.torch import run

    model = run(done.run.blank_model(), done.file, [one[:1] for one in inputs], threads=threads)
    coded = [one for one in model.layers if one.from_codes]
    dense = [one.name for one in model.layers if not one.from_codes]
    note = f"{len(coded)} of {len(model.layers)} layers from codes{f'; dense: {_some(dense)}' if dense else ''}"
    ready = _module(model, done.file.stat().st_size, note)
    return replace(ready, weights=(ready.weights or 0) + sum(one.bytes for one in coded))


def _some(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _compiled(done: Finished, threads: int, inputs: Inputs) -> Ready:
    import time

    import torch

    model = dense_model(done)
    compiled: Any = torch.compile(model, dynamic=False)
    ready = _module(model, int(done.summary["dense_bytes"]))
    started = time.perf_counter()
    with torch.inference_mode(), _quiet():
        compiled(*(one[:1] for one in inputs))
    note = f"compiling took {time.perf_counter() - started:.0f} s, for each batch size again"
    return Ready(_module(compiled, 0).call, ready.bytes, ready.weights, note=note)


def _int8_dynamic(done: Finished, threads: int, inputs: Inputs) -> Ready:
    import torch
    from torch.ao.quantization import quantize_dynamic

    model = dense_model(done)
    if not any(type(one).__name__ in SHRUNK for one in model.modules()):
        raise NotImplementedError("PyTorch makes only linear and recurrent layers int8 so, and there are none")
    with _quiet():
        made = quantize_dynamic(model, {getattr(torch.nn, name) for name in SHRUNK}, dtype=torch.qint8)
    return _as_stored(made, "linear and recurrent layers only; its accuracy is not measured here")


def _int8_static(done: Finished, threads: int, inputs: Inputs) -> Ready:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    engine = next(one for one in ("x86", "onednn", "qnnpack") if one in torch.backends.quantized.supported_engines)
    with _quiet(), torch.no_grad():
        torch.backends.quantized.engine = engine
        prepared = prepare_fx(dense_model(done), get_default_qconfig_mapping(engine), tuple(inputs))
        prepared(*inputs)
        made = convert_fx(prepared)
    return _as_stored(made, f"engine {engine}, calibrated on the samples of this bench; its accuracy is not measured")


def _as_stored(model: nn.Module, note: str) -> Ready:
    """Integers of PyTorch's are no parameters: the file that they make is what they take."""
    import torch

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    count = len(file.getbuffer())
    return Ready(_module(model, 0).call, count, None, note=note)


def _export(name: str) -> Callable[[Finished, int, Inputs], Ready]:
    def load(done: Finished, threads: int, inputs: Inputs) -> Ready:
        if why := getattr(target_of(name), "UNTIMED", ""):
            raise NotImplementedError(why)
        path = _exported(done, name)
        session = target_of(name).load(path, threads)
        if session is None:
            raise ExportError("its runtime cannot be on this machine")

        def call(inputs: Inputs) -> object:
            return session([one.numpy() for one in inputs])

        said = {one["target"]: one.get("bytes") for one in done.summary.get("exports") or []}
        return Ready(call, said.get(name) or bytes_of(path), fixed_batch=session.fixed_batch)

    return load


def _exported(done: Finished, name: str) -> Path:
    return done.folder / "exports" / str(target_of(name).FILE)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return (
        path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's words on its own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

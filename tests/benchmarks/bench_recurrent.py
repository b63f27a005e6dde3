"""A recurrent net with ranges of each call, beside PyTorch's own dynamic quantization: the speaker encoder of PyPI's
resemblyzer, three layers of LSTM.

`python tests/benchmarks/bench_recurrent.py FOLDER`, of the wheel (its `resemblyzer`, with pretrained.pt).
Inputs are made: voices of some harmonics whose pitch and loudness wander, as spectrograms of 40 bands.
"""

from __future__ import annotations

import copy
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.codec.file import encode
from deepcompression.network.edits.apply import apply_all
from deepcompression.quantization import linear
from deepcompression.quantization.calibrate import Plan, calibrate
from deepcompression.quantization.inputs import inputs_of
from deepcompression.training.method import Context

FRAMES, BANDS, VOICES = 160, 40, 48


class Encoder(nn.Module):
    """Resemblyzer's VoiceEncoder; tensors as in its pretrained.pt."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, bands: Tensor) -> Tensor:
        """Embeddings (n, 256) of length 1."""
        hidden: Tensor = self.lstm(bands)[1][0]
        return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)


def voices(count: int, seed: int = 0) -> Tensor:
    """Spectrograms (count, FRAMES, BANDS)."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 2 + 6 * torch.rand(count, 1, 1, generator=generator)
    walk = 0.1 * torch.randn(count, FRAMES, 1, generator=generator).cumsum(1)
    shape = torch.rand(count, 1, BANDS, generator=generator)
    bands = torch.arange(BANDS)
    comb = (2 * torch.pi * bands / (pitch + walk.tanh())).cos().clamp(min=0)
    loud = torch.exp(-bands / 15) * (1 + walk.sin())
    return 0.05 * (comb * shape * loud) + 1e-4 * torch.rand(count, FRAMES, BANDS, generator=generator)


def dynamic(model: nn.Module, sample: Tensor, names: list[str]) -> tuple[nn.Module, dict[str, Tensor], list[Any]]:
    """Weights on 8 bits a channel, what the named ones multiply by the range of each call; its state and edits."""
    sites = inputs_of(model, dict.fromkeys(names, 8), "dynamic").sites
    context = Context(samples=lambda count: [sample[:2]], forward=lambda net, some: net(some))
    found = calibrate(model, context, sites, Plan(range="dynamic"))
    weights = [name for name in model.state_dict() if "weight" in name]
    made = linear.quantize(model.state_dict(), linear.table(model, dict.fromkeys(weights, 8)))
    edits = [one.record() for one in found.found]
    apply_all(model, edits)
    model.load_state_dict({**made.state, **found.state()})
    return model.eval(), dict(model.state_dict()), edits


def main() -> None:
    """Prints a row a net."""
    torch.set_num_threads(1)
    model, bands = Encoder().eval(), voices(VOICES)
    state = torch.load(f"{sys.argv[1]}/pretrained.pt", weights_only=True, map_location="cpu")["model_state"]
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    weights = [name for name in model.state_dict() if "weight" in name]
    rows: dict[str, tuple[nn.Module, int]] = {"float": (model, _saved(model))}
    for what, names in (("8 bits, first inputs", ["lstm.weight_ih_l0", "linear.weight"]), ("8 bits, all", weights)):
        net, state, edits = dynamic(copy.deepcopy(model), bands, names)
        rows[what] = (net, len(encode({name: one.numpy() for name, one in state.items()}, edits=edits)))
    rival = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.LSTM, nn.Linear})
    rows["PyTorch's dynamic"] = (rival, _saved(rival))
    with torch.no_grad():
        wanted = model(bands)
        print(f"{VOICES} voices, cosine of float embeddings with each other {_among(wanted):.4f}")
        for what, (net, size) in rows.items():
            got = net(bands)
            cosine = (got * wanted).sum(1)
            nearest = (got @ wanted.T).argmax(1).eq(torch.arange(VOICES)).double().mean()
            took = _seconds(lambda net=net: net(bands[:1]))  # type: ignore[misc]
            print(
                f"{what:22} {size:>10,} bytes  1 - cosine {float(1 - cosine.mean()):.2e}, at most "
                f"{float(1 - cosine.min()):.2e}  own voice nearest {float(nearest):.0%}  {took * 1000:.0f} ms"
            )


def _among(found: Tensor) -> float:
    return float((found @ found.T)[~torch.eye(len(found), dtype=torch.bool)].mean())


def _saved(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def _seconds(run: Callable[[], object], times: int = 5) -> float:
    run()
    started = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - started) / times


if __name__ == "__main__":
    main()

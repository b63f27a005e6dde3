"""Trained quantization and the precision of what remains."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product, covering, trained
from tasks.execution.settings import Precision, Stage, Training

if TYPE_CHECKING:
    from torch import Tensor

NAMED = 3  # tensors that a sentence names


class CentroidTraining(Training):
    """Trained quantization: centroids follow the summed gradient of their weights (section 3.3)."""

    epochs: int = Field(5, ge=1)
    lr: float = Field(1e-4, gt=0)


class Settings(Stage):
    """Trained quantization, then the precision of codebooks and of all that is not shared."""

    rounds_values: ClassVar[bool] = True

    stage: Literal["quantize"]
    train: CentroidTraining | None = None
    codebook: Precision | Literal["auto"] = Field(
        "float32", description="of shared values; auto is float16, or bfloat16 where float16 has not the range"
    )
    rest: Precision | Literal["int8", "auto"] = Field(
        "float32",
        description="of what is not shared, such as biases; int8 is integers and a scale; auto tries int8, bfloat16 "
        "and float16 on each tensor and takes the smallest that the validation loss does not feel",
    )

    @property
    def draws(self) -> bool:
        """Training does."""
        return self.train is not None


def work(bench: Bench, settings: Settings) -> Product:
    """Centroids trained by their summed gradient, then codebooks and the rest rounded."""
    from deepcompression.network.coverage import coverage
    from deepcompression.network.state import plain_state
    from deepcompression.quantization import precision as library

    assert bench.input is not None
    product = trained(bench, settings.train) if settings.train else Product(plain_state(bench.model()))
    assert product.state is not None
    precisions: dict[str, str] = {}
    if settings.rest == "auto":
        model = bench.blank_model()
        model.load_state_dict(dict(product.state))
        rounded, precisions = library.round_by_effect(
            model,
            bench.run.problem(),
            shared=bench.input.shared,
            codebook=settings.codebook,
            compute=bench.run.compute(),
        )
    else:
        rounded = library.round_precision(
            product.state, shared=bench.input.shared, codebook=settings.codebook, rest=settings.rest
        )
    notes = [*_kept(rounded.kept)]
    notes += [f"{name} {what}" for name, what in {**rounded.instead, **rounded.coarse}.items()]
    report = {**product.report, "kept": rounded.kept, "precisions": precisions}
    why = {**unrounded(product.state, bench.input.shared, settings), **rounded.kept}
    rows = coverage(bench.blank_model(), [name for name in product.state if name not in why], why)
    return covering(replace(product, state=rounded.state, notes=notes, report=report), rows)


def _kept(reasons: Mapping[str, str]) -> Iterator[str]:
    """A sentence for all tensors that keep their precision for one reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        verb = "keeps its" if len(names) == 1 else "keep their"
        yield f"{', '.join(names[:NAMED])}{more} {verb} precision: {reason}"


def unrounded(state: Mapping[str, Tensor], shared: Collection[str], settings: Settings) -> dict[str, str]:
    """Why the recipe's keys leave tensors of ``state`` as they are, by name; a trained codebook is not among them."""
    books = {id(state[name]) for name in shared}
    found = {}
    for name, tensor in state.items():
        key = "codebook" if id(tensor) in books else "rest"
        asked, kind = (
            settings.codebook if key == "codebook" else settings.rest,
            str(tensor.dtype).removeprefix("torch."),
        )
        if kind not in ("float32", "float16", "bfloat16"):
            found[name] = f"{kind} is not rounded"
        elif asked == "float32" and not (key == "codebook" and settings.train):
            found[name] = f"stays as it is: {key} is float32"
        elif kind != "float32" and asked not in ("float32", "auto"):
            found[name] = f"has {kind} already" if asked != "int8" else f"{kind} is not rounded to int8"
    return found

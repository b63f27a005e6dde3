"""Quantization: centroids trained, weights put on grids, and the precision of what remains."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tasks.execution.bench import Bench, Product, covering, trained
from tasks.execution.settings import Precision, Stage, Training
from tasks.stages import calibration
from tasks.stages.calibration import Activations
from tasks.stages.equalization import equalized
from tasks.stages.linear import Weights, left_alone, on_grids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.quantization.precision import Rounded
    from deepcompression.structure.constraints import Structure
    from tasks.execution.run import Run

NAMED = 3  # tensors that a sentence names


class CentroidTraining(Training):
    """Trained quantization: centroids follow the summed gradient of their weights (section 3.3)."""

    epochs: int = Field(5, ge=1)
    lr: float = Field(1e-4, gt=0)


class Settings(Stage):
    """Trained quantization, weights on grids, then the precision of codebooks and of all that is on no grid."""

    stage: Literal["quantize"]
    train: CentroidTraining | None = None
    equalize: bool = Field(
        False, description="before: channels are scaled to ranges that one scale serves, where that changes no output"
    )
    weights: Weights | None = Field(None, description="weights become integers times a scale, without training")
    activations: Activations | None = Field(
        None, description="what goes into layers becomes integers times a scale, by samples or while it runs"
    )
    correct: list[Literal["weights", "bias"]] = Field(
        [],
        description="weights: mean and variance of each channel's weights are as they were before rounding; bias: the "
        "mean of each layer's outputs is, by its bias or the BatchNorm that follows",
    )
    codebook: Precision | Literal["auto"] = Field(
        "float32", description="of shared values; auto is float16, or bfloat16 where float16 has not the range"
    )
    rest: Precision | Literal["int8", "auto"] = Field(
        "float32",
        description="of what is not shared and on no grid, such as biases; int8 is integers and a scale; auto tries "
        "int8, bfloat16 and float16 on each tensor and takes the smallest that the validation loss does not feel",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Settings:
        if "weights" in self.correct and not self.weights:
            raise ValueError("correct: [weights] goes with weights, such as weights: {bits: 8}")
        if "bias" in self.correct and not (self.weights or self.activations):
            raise ValueError("correct: [bias] goes with weights or activations, such as activations: {bits: 8}")
        return self

    @property
    def draws(self) -> bool:
        """Training does, and data that are drawn in an order."""
        return self.train is not None or self.activations is not None or "bias" in self.correct

    @property
    def rounds_values(self) -> bool:
        """What is rounded and on no grid is not held while weights learn."""
        return self.codebook != "float32" or self.rest != "float32"

    def fits(self, run: Run, model: nn.Module) -> None:
        """There are samples enough for what looks at some."""
        super().fits(run, model)
        if self.activations or "bias" in self.correct:
            calibration.refuse_few(run, self.activations)

    def sites(self, model: nn.Module) -> Collection[str]:
        """Inputs of the layers that are meant; StructureError where one of them cannot be quantized."""
        return {*super().sites(model), *(self.activations.sites(model) if self.activations else ())}

    def edits(self) -> Mapping[str, str]:
        """Activations are rounded by what is put before layers."""
        return {**super().edits(), **({"quantize_values": "activations"} if self.activations else {})}

    def ranges(self) -> Mapping[str, str]:
        """What activations ask for."""
        return {self.activations.range: "activations.range"} if self.activations else {}

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Grids fit the model, and what earlier stages make true of it."""
        if self.weights:
            self.weights.refuse_unfit(model, structure)

    def leaves(self, model: nn.Module) -> Structure:
        """Grids."""
        table = self.weights.table(model) if self.weights else {}
        return {**super().leaves(model), **{name: (how.grid.word,) for name, how in table.items()}}


class Beside(Settings):
    """Of a budget: what is compressed by default stays as it is, for a later stage."""

    beside: Literal[True] = True


def work(bench: Bench, settings: Settings) -> Product:
    """Centroids trained by their summed gradient; channels equalized; weights and activations on grids; then codebooks
    and the rest rounded.
    """
    from deepcompression.network.state import plain_state

    product = trained(bench, settings.train) if settings.train else Product(plain_state(bench.model()))
    if settings.equalize:
        product = equalized(bench, product)
    before = product
    if settings.weights:
        product = on_grids(bench, product, settings.weights, "weights" in settings.correct)
    if settings.activations:
        product = calibration.on_grids(bench, before, product, settings.activations)
    if "bias" in settings.correct:
        product = calibration.biases_corrected(bench, before, product, settings.activations)
    return _rounded(bench, product, settings)


def _rounded(bench: Bench, product: Product, settings: Settings) -> Product:
    """Codebooks and the rest rounded, but for what is on a grid; and the table of all tensors."""
    from deepcompression.network.coverage import coverage
    from deepcompression.network.names import prunable

    assert bench.input is not None and product.state is not None
    exact = _exact(bench, product)
    if isinstance(settings, Beside):
        exact |= dict.fromkeys(prunable(bench.model()), "a later stage takes it")
    rounded, precisions = _at_precision(bench, product, settings, exact)
    kept = {name: reason for name, reason in rounded.kept.items() if name not in exact}
    notes = [*product.notes, *_kept(kept)]
    notes += [f"{name} {what}" for name, what in {**rounded.instead, **rounded.coarse}.items()]
    report = {**product.report, "kept": rounded.kept, "precisions": precisions}
    why = {**unrounded(product.state, bench.input.shared, settings), **kept, **left_alone(product.report)}
    done = {*product.report.get("equalized", ()), *exact}
    why = {name: reason for name, reason in why.items() if name not in done}
    rows = coverage(bench.blank_model(), [name for name in product.state if name not in why], why)
    return covering(replace(product, state=rounded.state, notes=notes, report=report), rows)


def _at_precision(
    bench: Bench, product: Product, settings: Settings, left: Mapping[str, str]
) -> tuple[Rounded, dict[str, str]]:
    """The state rounded, and precisions that were found by effect."""
    from deepcompression.quantization import precision as library

    assert bench.input is not None and product.state is not None
    if settings.rest != "auto":
        rounded = library.round_precision(
            product.state, shared=bench.input.shared, codebook=settings.codebook, rest=settings.rest, left=left
        )
        return rounded, {}
    model = bench.run.edited_model([*bench.input.edits, *product.edits])
    model.load_state_dict(dict(product.state))
    return library.round_by_effect(
        model,
        bench.run.problem(),
        shared=bench.input.shared,
        codebook=settings.codebook,
        left=left,
        compute=bench.run.compute(),
    )


def _exact(bench: Bench, product: Product) -> dict[str, str]:
    """Why tensors are not rounded: they are on a grid, or what quantizes values by it."""
    from deepcompression.network.edits.apply import values_of
    from deepcompression.network.parametrized import VALUES
    from deepcompression.structure.constraints import of_order, together

    assert bench.input is not None
    structure = together(bench.input.structure, product.structure)
    found = {name: f"is {word} already" for name, words in structure.items() for word in of_order(words, VALUES)}
    edits = [*bench.input.edits, *product.edits]
    return found | {name: "values are quantized by it" for one in edits for name in values_of(one)}


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
            # Beside weights it is told why these do not mean it.
            found[name] = "" if settings.weights else f"stays as it is: {key} is float32"
        elif kind != "float32" and asked not in ("float32", "auto"):
            found[name] = f"has {kind} already" if asked != "int8" else f"{kind} is not rounded to int8"
    return found

"""Pruning: one-shot, or gradually while training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from deepcompression.errors import StructureError
from deepcompression.training.ramps import TOLERANCE
from tasks.execution.bench import Bench, Product, covering
from tasks.execution.patterns import NAMED, SELECTED
from tasks.execution.pruned_by import (
    LAYER,
    WHOLE,
    AnyCriterion,
    Curve,
    Granularity,
    Multiple,
    Quality,
    Tolerance,
    criteria_of,
)
from tasks.execution.scores import score_of
from tasks.execution.settings import ByName, Density, Dropouts, Factory, Stage, Training, plain, table_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.pruning.prune import LayerDensity
    from deepcompression.structure.constraints import Structure
    from tasks.execution.run import Run


class Gradual(Training):
    """Gradual pruning: the density falls along a cubic curve while the model trains (Zhu & Gupta 2017)."""

    ramp: float = Field(0.7, gt=0, le=1, description="fraction of the epochs in which the density falls")
    start: Density = Field(1.0, description="density at the first step")
    curve: Curve = Field("cubic", description="along which the density falls")
    tolerance: Tolerance = TOLERANCE


class Settings(Stage):
    """Pruning: small weights become +0.0 (Han et al. 2015, section 3), or whole filters go."""

    stage: Literal["prune"]
    granularity: Granularity = Field(
        "weight",
        description="filter: whole channels go, together in all layers that share them; channel: the same, named and "
        "judged by what takes them in; head: of attention; layer: residual blocks; 2:4, or any N:M: of every M weights "
        "along the inputs N stay; 1x4, any ROWSxCOLUMNS, or kernel: blocks, or kernels of one input, go whole",
    )
    layers: Annotated[list[str] | None, NAMED] = Field(
        None, min_length=1, description="of a pattern: names of tensors or patterns; default: all that can have it"
    )
    remove: bool = Field(
        False, description="of filters and the like: shapes shrink, by an edit in the file; else zeros"
    )
    density: Annotated[Density | dict[str, Density] | None, ByName, SELECTED] = Field(
        None, description="fraction of weights, or of a layer's filters, that stays"
    )
    quality: Annotated[Quality | dict[str, Quality] | None, ByName, SELECTED] = Field(
        None, description="the paper's: threshold = quality x standard deviation of the layer's weights"
    )
    flops: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of filters, instead of density: the part of the multiplications that stays, at "
        "most; the one density of all channels that keeps to it is looked for, or with scope: global those channels "
        "that are worth least for what they cost",
    )
    parameters: float | None = Field(None, gt=0, lt=1, description="the same, of the parameters")
    multiple: Multiple = 1
    scope: Literal["layer", "global"] = "layer"
    rounds: int = Field(1, ge=1, description="prune and the finetune that follows, alternating so many times")
    gradual: Gradual | None = None
    criterion: AnyCriterion = Field(
        "magnitude",
        description="what makes a weight important; wanda: its magnitude times the size of its input; taylor: times "
        "its gradient. Of filters: fpgm (far from the geometric median), l1 or l2 (norms), fpgm-mix (both), bn_scale "
        "(of the BatchNorm behind them), apoz (how seldom they are zero), fisher (squared gradients of their scale), "
        "and wanda or taylor summed",
    )
    score: Factory | None = Field(
        None, description="a criterion of yours: returns (name, weight) -> importance, of filters too"
    )
    dropout: Dropouts = Field({}, description="gradual only: dropout module -> the layer it feeds")

    @model_validator(mode="after")
    def _one_way(self) -> Settings:
        limits, whole = [self.flops, self.parameters], self.granularity in (*WHOLE, LAYER)
        given = [self.density, self.quality, *(limits if whole else [])]
        if sum(one is not None for one in given) != 1 and ":" not in self.granularity:
            words = "density, flops and parameters" if whole else "density and quality"
            raise ValueError(f"expected exactly one of {words}")
        if limits != [None, None] and not whole:
            key = "flops" if self.parameters is None else "parameters"
            raise ValueError(f"{key} goes with granularity: filter; single weights that are zero are still there")
        if self.scope == "global" and limits == [None, None] and not isinstance(self.density, float):
            raise ValueError("scope: global takes one density for all selected layers, such as density: 0.1")
        if self.gradual and (self.rounds > 1 or self.quality is not None):
            raise ValueError("gradual goes with density and rounds: 1")
        if self.criterion != "magnitude" and (self.score or self.quality is not None):
            raise ValueError(f"criterion: {self.criterion} goes with density, and without a score of yours")
        if self.dropout and not self.gradual:
            raise ValueError("dropout belongs to the finetune stage, or to gradual pruning")
        return self

    @model_validator(mode="after")
    def _of_one_granularity(self) -> Settings:
        whole = self.granularity in WHOLE
        if self.is_pattern:
            self._check_pattern()
        elif self.layers is not None:
            raise ValueError("layers goes with a granularity such as 2:4 or 1x4; else density names what is pruned")
        if self.granularity == LAYER:
            self._check_layer()
        known = criteria_of(self.granularity)
        if self.criterion not in known and not (whole and self.score):
            raise ValueError(
                f"granularity: {self.granularity} goes with criterion: one of {', '.join(known)}; not {self.criterion}"
            )
        if self.remove and not whole and self.granularity != LAYER:
            raise ValueError("remove: true goes with granularity: filter; single weights cannot be taken out")
        if whole and (self.quality is not None or (self.scope == "global" and self.density is not None)):
            raise ValueError(
                f"granularity: {self.granularity} goes with density, flops or parameters; scope: global with the last "
                "two"
            )
        if self.multiple > 1 and not whole:
            raise ValueError(f"multiple goes with granularity: one of {', '.join(WHOLE)}")
        if whole and self.gradual:
            raise ValueError(
                f"granularity: {self.granularity} goes without gradual; while training it is a method: stage: train, "
                "methods: [{prune: {granularity: filter}}]"
            )
        return self

    def _check_layer(self) -> None:
        if not self.remove:
            raise ValueError("granularity: layer goes with remove: true; a block is there, or returns what it takes")
        if isinstance(self.density, dict) or self.quality is not None:
            raise ValueError("granularity: layer goes with one density of all blocks, flops or parameters")
        others = (self.gradual, self.score, self.rounds > 1, self.scope == "global", self.criterion != "magnitude")
        if any(others):
            raise ValueError(
                "granularity: layer goes by the loss alone: leave gradual, score, rounds, scope, criterion"
            )

    @property
    def is_pattern(self) -> bool:
        """Whether zeros lie in a pattern."""
        return self.granularity not in ("weight", *WHOLE, LAYER)

    def _check_pattern(self) -> None:
        if ":" in self.granularity and (self.density is not None or self.quality is not None or self.rounds > 1):
            raise ValueError(
                f"granularity: {self.granularity} says how many weights stay: leave density, quality, rounds out"
            )
        if ":" not in self.granularity and not isinstance(self.density, float):
            raise ValueError(f"granularity: {self.granularity} takes one density, the part of the blocks that stays")
        if self.gradual:
            raise ValueError(
                f"granularity: {self.granularity} goes without gradual; while training, N:M is a method: stage: train, "
                f"methods: [{{prune: {{granularity: '{self.granularity}'}}}}]"
            )
        if self.scope == "global":
            raise ValueError(f"granularity: {self.granularity} goes with scope: layer")

    def fits(self, run: Run, model: nn.Module) -> None:
        """Filters must be there to be removed, and tensors such that they can have a pattern."""
        if self.is_pattern:
            from deepcompression.pruning.patterns import fitting
            from deepcompression.structure.patterns import pattern_of

            fitting(model, pattern_of(self.granularity), self.layers)
        if self.granularity in WHOLE:
            from tasks.stages.filters import refuse_unfit

            refuse_unfit(run, model, self)
        if self.granularity == LAYER:
            from tasks.stages import blocks

            blocks.refuse_unfit(run, model, self)

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Weights of two values stay two values; whole filters of them may go, where nothing is grouped by them."""
        from deepcompression.structure.constraints import refuse_torn

        if self.remove and self.granularity != LAYER:
            refuse_torn(structure, "the removal of filters; let it come before, or take remove: false")
        key = "layers" if self.is_pattern else "quality" if self.density is None else "density"
        for name in self._tensors(model):
            if any(word.startswith("binary") for word in structure.get(name, ())):
                raise StructureError(
                    f"{name}: is binary already, and 0 would be a third value; prune before it is binarized, or leave "
                    f"it out of {key}"
                )

    def _tensors(self, model: nn.Module) -> Collection[str]:
        """Whose single weights, or groups or blocks of them, are pruned."""
        from deepcompression.network.names import resolve

        if self.granularity in (*WHOLE, LAYER):
            return ()
        if self.is_pattern:
            from deepcompression.pruning.patterns import fitting
            from deepcompression.structure.patterns import pattern_of

            return fitting(model, pattern_of(self.granularity), self.layers)[0]
        return resolve(model, table_of(self.density if self.quality is None else self.quality))

    def edits(self) -> Mapping[str, str]:
        """Filters that are removed, or blocks that are left out."""
        if self.granularity == LAYER:
            return {"bypass": "granularity: layer"}
        return {"resize": "remove: true"} if self.remove else {}

    @property
    def draws(self) -> bool:
        """Gradual pruning trains."""
        return self.gradual is not None

    def alternates(self) -> tuple[int, str] | None:
        """With ``rounds``, a finetune comes after each."""
        return (self.rounds, "finetune") if self.rounds > 1 else None

    def in_round(self, number: int) -> Settings:
        """What stays falls by equal factors, the quality rises by equal steps."""
        if self.quality is not None:
            share = (number + 1) / self.rounds
            return self._with("quality", lambda one: one * share)
        key = next(key for key in ("density", "flops", "parameters") if getattr(self, key) is not None)
        # Filters that are removed are not there any more when the next ones are counted.
        done = 1 if self.remove else number + 1
        return self._with(key, lambda one: one ** (done / self.rounds))

    def _with(self, key: str, change: Callable[[float], float]) -> Settings:
        value = getattr(self, key)
        changed = {name: change(one) for name, one in value.items()} if isinstance(value, dict) else change(value)
        return self.model_copy(update={key: changed, "rounds": 1})


def work(bench: Bench, settings: Settings) -> Product:
    """Small weights, or whole filters, become +0.0, or are removed."""
    if settings.granularity in WHOLE:
        from tasks.stages.filters import pruned

        return pruned(bench, settings)
    if settings.granularity == LAYER:
        from tasks.stages import blocks

        return blocks.pruned(bench, settings)
    if settings.is_pattern:
        return _to_patterns(bench, settings)
    return _gradual(bench, settings, settings.gradual) if settings.gradual else _one_shot(bench, settings)


def _to_patterns(bench: Bench, settings: Settings) -> Product:
    from deepcompression.network.coverage import coverage
    from deepcompression.network.state import plain_state
    from deepcompression.pruning import patterns as library
    from deepcompression.structure.constraints import together
    from deepcompression.structure.patterns import NM, pattern_of

    model, pattern = bench.model(), pattern_of(settings.granularity)
    tensors, left = library.fitting(model, pattern, settings.layers)
    density = settings.density if isinstance(settings.density, float) else None
    score = score_of(bench, settings, model)
    pruned = library.prune_to_patterns(plain_state(model), tensors, pattern, density, score=score)
    product = _product(model, pruned.state, pruned.layers)
    if isinstance(pattern, NM):
        word = f"n_m({pattern.n}, {pattern.m})"
        product = replace(product, structure=together(product.structure, dict.fromkeys(product.structure, (word,))))
    done = [layer.name for layer in pruned.layers if layer.nonzero]
    notes = [f"{name} {why}: left as it is" for name, why in left.items()]
    return covering(replace(product, notes=[*product.notes, *notes]), coverage(model, done, left))


def _one_shot(bench: Bench, settings: Settings) -> Product:
    from deepcompression.network import state
    from deepcompression.network.names import padding_rows, resolve
    from deepcompression.pruning import prune as library

    model = bench.model()
    name, table = ("density", settings.density) if settings.quality is None else ("quality", settings.quality)
    pruned = library.prune(
        state.plain_state(model),
        **{name: resolve(model, table_of(table))},
        scope=settings.scope,
        score=score_of(bench, settings, model),
        padding=padding_rows(model),
    )
    return _product(model, pruned.state, pruned.layers)


def _gradual(bench: Bench, settings: Settings, gradual: Gradual) -> Product:
    from deepcompression.network.state import plain_state
    from deepcompression.pruning.gradual import GradualPruning
    from deepcompression.training.dropout import DropoutCorrection

    assert settings.density is not None
    method = GradualPruning(
        settings.density,
        settings.scope,
        gradual.start,
        gradual.ramp,
        settings.criterion,
        plain(settings.score),
        gradual.curve,
        gradual.tolerance,
    )
    model, dropout = bench.model(), [DropoutCorrection(settings.dropout)] if settings.dropout else []
    done = bench.train(model, gradual, [method, *dropout])
    layers = done.accounts[0][1].report["layers"]
    return replace(_product(model, plain_state(model), layers), selected=None, history=done.fit.history)


def _product(model: nn.Module, state: Mapping[str, Tensor], layers: Sequence[LayerDensity]) -> Product:
    from deepcompression.network.coverage import coverage
    from deepcompression.structure.constraints import structured

    # What is zero throughout has no structure yet: held so, it could never learn.
    blank = [layer.name for layer in layers if not layer.nonzero]
    done = [layer.name for layer in layers if layer.nonzero]
    product = Product(
        state,
        structure=structured(done),
        selected=[layer.name for layer in layers],
        report={"layers": layers},
        notes=[f"{name} is zero throughout: nothing is pruned in it, and it stays free to learn" for name in blank],
    )
    return covering(product, coverage(model, done, dict.fromkeys(blank, "zero throughout")))

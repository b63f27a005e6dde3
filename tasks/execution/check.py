"""What can be wrong with a recipe's names is told before any training starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from rich.markup import escape

from deepcompression.errors import InputError, RecipeError, StructureError, WeightsError
from tasks.console import say
from tasks.execution.allocated import with_bits
from tasks.execution.keys import callables
from tasks.execution.patterns import Matched
from tasks.execution.run import Run
from tasks.execution.samples import passes
from tasks.execution.settings import Stage, Training, parts, plain
from tasks.execution.sound import refuse_hidden_state, refuse_unfit
from tasks.execution.sources import factory_digest
from tasks.execution.specs import factories_in
from tasks.execution.trial import trial
from tasks.execution.warned import warn, warned
from tasks.secrets import public

Tried = Literal["always", "sound", "never"]


def check(run: Run, stages: Sequence[tuple[str, BaseModel]], *, test: bool = True) -> None:
    """Imports every factory, loads the data, matches every pattern against the model, looks for the weights file; then
    tries model, step, metric and every training on a few samples.

    Args:
        run: the run.
        stages: labels and their keys of the recipe, as they will run; the first training among them.
        test: whether the run will read the test split.

    Raises:
        FactoryError, DataError, StructureError, WeightsError: in one line, with the stage's label where there is one;
            ``others``: what else is wrong.
    """
    from deepcompression.errors import together

    with warned(run.folder, "check"):
        if found := problems(run, stages, test=test).found:
            raise together(found)
    identity = run.data_identity()
    for note in identity.notes:
        say(escape(note))
    for doubt in identity.doubts:
        warn(run.folder, "check", doubt)
    for spec in callables(run):  # as this process has imported it: a file may change while a run is under way
        factory_digest(spec)


@dataclass
class Problems:
    """What is wrong, found part by part: one that fails does not keep the next from being looked at."""

    found: list[InputError] = field(default_factory=list)
    works: bool = True  # model, data, step and metric are there

    @contextmanager
    def part(self, before: str = "") -> Iterator[None]:
        """Notes what the block raises; a file of weights is told by its own name, all else behind ``before``."""
        try:
            yield
        except WeightsError as error:
            self.found.append(error)
        except InputError as error:
            self.found.append(type(error)(f"{before}{error}") if before else error)


def problems(
    run: Run, stages: Sequence[tuple[str, BaseModel]], *, test: bool = True, tried: Tried = "always"
) -> Problems:
    """All that ``check`` would raise, the first first; model, step, metric and trainings are tried where they are.

    Args:
        run: the run.
        stages: as of ``check``.
        test: as of ``check``.
        tried: whether model, step and trainings are tried, which takes longest: also where something is wrong already,
            only where nothing is, or never.
    """
    run.ready()
    noted = Problems()
    with noted.part():
        _refuse_devices(run)
    for label, settings in [*stages, *([("teacher", run.teacher)] if run.teacher else [])]:
        with noted.part(f"{label}: "):
            _refuse_pieces(run, settings)
    missing = [one for one in run.python_path if not Path(one).exists()]
    noted.found += [RecipeError(f"python_path {Path(one).resolve()}: no such folder") for one in missing]
    model = _sound_model(run, noted)
    noted.works = model is not None
    for read in (run.splits, *_judges(run)):
        before = len(noted.found)
        with noted.part():
            read()
        noted.works = noted.works and len(noted.found) == before
    if model is None:
        return noted
    if noted.works:
        public(*model.state_dict(), str(run.metric_object().name))
    bad = _misfits(run, model, stages, noted)
    if noted.works and (tried == "always" or (tried == "sound" and not noted.found)):
        with noted.part():
            refuse_hidden_state(run)  # first: a forward that makes layers leaves a model that cannot be put back
            trial(run, [one for one in stages if one[0] not in bad], test=test)
    return noted


def _judges(run: Run) -> list[Callable[[], object]]:
    """What makes metric, step and augmentation of the recipe."""
    from deepcompression import factory
    from deepcompression.training.problem import step_of

    augment = run.data.augment
    makes: list[Callable[[], object]] = [run.metric_object, lambda: step_of(plain(run.step))]
    return [*makes, *([lambda: factory.function(augment.factory, augment.arguments())] if augment else [])]


def _refuse_devices(run: Run) -> None:
    from deepcompression.training import shards, team

    if run.devices > 1:
        team.refuse(run.devices, run.device, run.compute().resolved().type)
    if run.strategy == "fsdp":
        if run.devices == 1:
            raise RecipeError("strategy: fsdp is for several devices; add devices: 2, or more, or leave it out")
        shards.refuse([], run.compiled)


def _refuse_pieces(run: Run, settings: BaseModel) -> None:
    """An optimizer that does not go with a model in pieces, by its name; what a function gives is seen as it trains."""
    from deepcompression.training import shards

    for _, training in parts(settings):
        if isinstance(training, Training) and run.strategy == "fsdp":
            shards.refuse([training.optimizer.factory.rpartition(":")[2]], False)


def _sound_model(run: Run, noted: Problems) -> Any:
    """The recipe's model, folded; None where it cannot be made, or not be trained and stored."""
    from deepcompression import factory
    from deepcompression.network.edits.fold import fold_all
    from deepcompression.training.shards import refuse_model

    for key, one in {"model": run.model, "teacher": run.teacher}.items():
        if one and one.weights and not Path(one.weights.path).exists():
            noted.found.append(WeightsError(f"{key}.weights.path {one.weights.path}: no such file"))
    before, model = len(noted.found), None
    with noted.part():
        if run.teacher:
            factory.load(run.teacher.factory)
        model = run.blank_model()
        fold_all(model)
        refuse_unfit(run)
        if run.strategy == "fsdp":
            refuse_model(model)
    return model if len(noted.found) == before else None


def _misfits(run: Run, model: Any, stages: Sequence[tuple[str, BaseModel]], noted: Problems) -> list[str]:
    """Labels of stages that do not fit the model, or what earlier ones make of it."""
    from deepcompression import factory
    from deepcompression.structure.constraints import Structure, together

    with noted.part():
        _match(run, model, run.hold)
    structure: Structure = {}
    quantized: dict[str, str] = {}
    most: Mapping[str, int] = {}
    bad: list[str] = []
    for label, settings in stages:
        before = len(noted.found)
        with noted.part(f"stage {label}: "):
            for spec in factories_in(plain(settings)):
                factory.load(spec)
            _match(run, model, settings)
            if isinstance(settings, Stage):
                settings = with_bits(settings, most)
                settings.fits(run, model)
                settings.follows(model, structure)
                structure = together(structure, settings.leaves(model))
                sites = settings.sites(model)
                _refuse_twice(sites, quantized)
                _refuse_unseen(run, model, sites)
                quantized |= dict.fromkeys(sites, label)
                most = settings.allocates(model) or most
                settings.alter(run, model)
        bad += [label] if len(noted.found) > before else []
    return bad


def _refuse_twice(sites: Collection[str], quantized: Mapping[str, str]) -> None:
    for site in sorted(sites):
        if site in quantized:
            raise StructureError(f"{site}: stage {quantized[site]} quantizes it already; leave it out of activations")


def _refuse_unseen(run: Run, model: Any, sites: Collection[str]) -> None:
    """Raises StructureError where no value comes by a site, as far as samples tell; where the model does not run, the
    trial says so.
    """
    from deepcompression.network.edits.quantize_values import read_site
    from deepcompression.network.watching import unseen

    found: Mapping[Any, str] = {}
    with suppress(Exception):
        found = (
            unseen(model, [one for one in map(read_site, sorted(sites)) if one], passes(run, model)) if sites else {}
        )
    for site, why in found.items():
        raise StructureError(f"{site} cannot be quantized: {why}; leave the layer out of activations")


def _match(run: Run, model: Any, settings: BaseModel) -> None:
    """Every key whose annotation says that it holds names of the model's; a user's stage means its own by its keys."""
    for _, part in parts(settings):
        for name, key in type(part).model_fields.items():
            for one in key.metadata:
                if isinstance(one, Matched) and (value := getattr(part, name)):
                    one.by(run, model, value)

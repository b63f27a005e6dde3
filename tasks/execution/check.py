"""What can be wrong with a recipe's names is told before any training starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.markup import escape

from tasks.console import say
from tasks.execution.allocated import with_bits
from tasks.execution.keys import callables
from tasks.execution.patterns import Matched
from tasks.execution.run import Run
from tasks.execution.samples import passes
from tasks.execution.settings import Stage, parts, plain
from tasks.execution.sound import refuse_hidden_state, refuse_unfit
from tasks.execution.sources import factory_digest
from tasks.execution.specs import factories_in
from tasks.execution.trial import trial
from tasks.execution.warned import warn, warned
from tasks.secrets import public


def check(run: Run, stages: Sequence[tuple[str, BaseModel]], *, test: bool = True) -> None:
    """Imports every factory, loads the data, matches every pattern against the model, looks for the weights file; then
    tries model, step, metric and every training on a few samples.

    Args:
        run: the run.
        stages: labels and their keys of the recipe, as they will run; the first training among them.
        test: whether the run will read the test split.

    Raises:
        FactoryError, DataError, StructureError, WeightsError: in one line, with the stage's label where there is one.
    """
    run.ready()
    with warned(run.folder, "check"):
        _check(run, stages, test)
    identity = run.data_identity()
    for note in identity.notes:
        say(escape(note))
    for doubt in identity.doubts:
        warn(run.folder, "check", doubt)
    for spec in callables(run):  # as this process has imported it: a file may change while a run is under way
        factory_digest(spec)


def _check(run: Run, stages: Sequence[tuple[str, BaseModel]], test: bool) -> None:
    from deepcompression import factory
    from deepcompression.errors import InputError, WeightsError
    from deepcompression.network.edits.fold import fold_all
    from deepcompression.structure.constraints import Structure, together
    from deepcompression.training.team import refuse

    if run.devices > 1:
        refuse(run.devices, run.device, run.compute().resolved().type)
    weights = run.model.weights
    if weights and not Path(weights.path).exists():
        raise WeightsError(f"model.weights.path {weights.path}: no such file")
    model = run.blank_model()
    fold_all(model)
    if run.teacher:
        factory.load(run.teacher.factory)
    refuse_unfit(run)
    run.problem()
    public(*model.state_dict(), str(run.metric_object().name))
    _match(run, model, run.hold)
    structure: Structure = {}
    quantized: dict[str, str] = {}
    most: Mapping[str, int] = {}
    for label, settings in stages:
        for spec in factories_in(plain(settings)):
            factory.load(spec)
        try:
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
        except InputError as error:
            raise type(error)(f"stage {label}: {error}") from None
    refuse_hidden_state(run)  # first: a forward that makes layers leaves a model that the trial cannot put back
    trial(run, stages, test=test)


def _refuse_twice(sites: Collection[str], quantized: Mapping[str, str]) -> None:
    from deepcompression.errors import StructureError

    for site in sorted(sites):
        if site in quantized:
            raise StructureError(f"{site}: stage {quantized[site]} quantizes it already; leave it out of activations")


def _refuse_unseen(run: Run, model: Any, sites: Collection[str]) -> None:
    """Raises StructureError where no value comes by a site, as far as samples tell; where the model does not run, the
    trial says so.
    """
    from deepcompression.errors import StructureError
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
        for name, field in type(part).model_fields.items():
            for one in field.metadata:
                if isinstance(one, Matched) and (value := getattr(part, name)):
                    one.by(run, model, value)

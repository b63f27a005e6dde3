"""What a recipe that came from a server may do here: name code, models and folders of closed lists, and nothing else.

A recipe names code to call and files to read. One from a folder of this machine is its user's own. One from a tracking
server is anybody's who may write there, so it is read as plain data, its references are followed, and then every name
and every value in it is judged.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from deepcompression import factory
from deepcompression.data.small_images import ENVIRONMENT
from deepcompression.errors import RecipeError
from deepcompression.formats.kinds import Kind, kind_of
from flows.recipe.references import dotted, shown
from flows.recipe.schema import Recipe
from tasks.execution.settings import Factory, Place, Weights, parts
from tasks.execution.specs import SPEC, specs_in
from tasks.execution.words import METRICS, STEPS
from tasks.stages.costs import Measured
from tasks.stages.custom import Settings as Custom


def _each(module: str, names: str) -> frozenset[str]:
    return frozenset(f"{module}:{name}" for name in names.split())


# Each builds what its numbers say, or reads data from the folder that it is given; none runs what it is told to.
CALLABLES = (
    _each(
        "deepcompression.models",
        "lenet_300_100 lenet5 digits_net binary_mlp alexnet vgg16 resnet20 ssd_lite segmenter",
    )
    | _each("deepcompression.data", "digits mnist fashion_mnist shift flip images cifar10 tabular text shapes")
    | frozenset((*STEPS.values(), *METRICS.values())) - {METRICS["torchmetrics"]}
    | _each(
        "torch.nn",
        "Linear Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d RNN LSTM GRU Embedding "
        "Transformer",
    )
    | _each(
        "torch.optim",
        "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax Muon NAdam RAdam RMSprop Rprop SGD SparseAdam",
    )
    | _each(
        "torch.optim.lr_scheduler",
        "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR "
        "OneCycleLR PolynomialLR StepLR",
    )
)
# Of these libraries the models that they list themselves: torchvision.models:resnet18, and timm:create_model with
# model_name. Beside these lie functions that download, unpack, write and unpickle.
TORCHVISION = "torchvision.models"
TIMM = ("timm:create_model", "timm.models:create_model")
HUBS = {"torchvision": TORCHVISION, "timm": "timm"}  # torchvision:resnet18, timm:resnet18: whose list has them
MODEL_NUMBERS = """
    num_classes in_chans drop_rate drop_path_rate drop_block_rate proj_drop_rate attn_drop_rate global_pool
    output_stride img_size patch_size embed_dim depth num_heads mlp_ratio dropout attention_dropout
    stochastic_depth_prob width_mult init_weights aux_logits transform_input zero_init_residual groups
    width_per_group replace_stride_with_dilation memory_efficient progress scriptable exportable
"""
POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "token", "map")
NO_WEIGHTS = ("pretrained", "weights", "weights_backbone")  # may be said, if they say that there are none
WEIGHTS = (".safetensors", ".dcz")
FILE_WORD = re.compile(r"(^|_)(root|roots|path|paths|dir|dirs|directory|folder|folders|file|files|filename|url|uri)$")


@dataclass(frozen=True)
class Trust:
    """What the user adds to the closed lists.

    ``allowed``: ``package.module`` (all that is defined in it or below it) or ``package.module:callable``;
    ``folders``: below which data and weights may be read; ``python_path``: folders of the user's own packages.
    """

    allowed: Sequence[str] = ()
    folders: Sequence[str] = ()
    python_path: Sequence[str] = ()

    def modules(self) -> list[str]:
        """Prefixes of modules whose code may be called with whatever arguments the recipe has."""
        return [one for one in self.allowed if ":" not in one] + _packages(self.python_path)

    def roots(self) -> list[Path]:
        """The folders, links resolved; ``DEEPCOMPRESSION_DATA`` is one of them."""
        shared = os.environ.get(ENVIRONMENT)
        return [Path(one).expanduser().resolve() for one in [*self.folders, *([shared] if shared else [])]]


def judge(who: str, recipe: Recipe, yours: Mapping[Place, Any], trust: Trust) -> None:
    """Every callable and every path of a validated recipe, wherever its types have one.

    Args:
        who: the run, for messages.
        recipe: with nothing left to resolve.
        yours: places of values that you gave: not judged.
        trust: what you allow beyond the closed lists.

    Raises:
        RecipeError: the first that may not be; says how to allow it.
    """
    one = _Judge(who, yours, trust)
    found = list(parts(recipe))
    for place, part in found:
        if isinstance(part, Factory):
            one.spec((*place, "factory"), part.factory, part.kwargs)
            one.values((*place, "kwargs"), part.kwargs)
        elif isinstance(part, Custom):
            one.spec((*place, "stage"), part.stage, part.model_extra or {})
            one.values(place, part.model_extra or {})
        elif isinstance(part, Weights):
            one.weights((*place, "path"), part.path)
        elif isinstance(part, Measured) and not one.is_yours((*place, "path")):
            one.folder((*place, "path"), part.path)
        else:
            one.choices(place, dict(part))
    one.origins()  # imports what you allow: last, when nothing else is to be refused


@dataclass
class _Judge:
    """Refuses what is on no list; notes callables of modules that the user allows, to be looked at when imported."""

    who: str
    yours: Mapping[Place, Any]
    trust: Trust
    trusted: list[tuple[Place, str]] = field(default_factory=list)

    def spec(self, place: Place, spec: str, kwargs: Mapping[str, Any]) -> None:
        module = spec.partition(":")[0]
        if self.is_yours(place) or spec in CALLABLES or spec in self.trust.allowed:
            return
        if _under(module, self.trust.modules()):
            self.trusted.append((place, spec))
        elif module == TORCHVISION or module in HUBS or spec in TIMM:
            self._listed(place, spec, kwargs)
        else:
            self._refuse_spec(place, spec)

    def values(self, place: Place, value: Any) -> None:
        """Texts at any depth, keys too: what looks like a path must lie below an allowed folder; what names code is
        judged as such, since user's code may build it."""
        if self.is_yours(place):
            return
        if isinstance(value, Mapping):
            for key, one in value.items():
                self.values((*place, key), one)
                if isinstance(key, str) and _like_a_path(key):
                    self.folder((*place, key), key)
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                self.values((*place, index), one)
        elif isinstance(value, str) and SPEC.fullmatch(value):
            self.spec(place, value, {})
        elif isinstance(value, str) and (_like_a_path(value) or any(FILE_WORD.search(str(key)) for key in place)):
            self.folder(place, value)

    def choices(self, place: Place, keys: Mapping[str, Any]) -> None:
        """Callables that choose tensors, on the left of a table or in a list of names."""
        for key, value in keys.items():
            for spec in specs_in(value) if isinstance(value, Mapping | list | tuple) else ():
                self.spec((*place, key), spec, {})

    def weights(self, place: Place, path: str) -> None:
        if self.is_yours(place):
            return
        if Path(path).suffix not in WEIGHTS:
            raise RecipeError(
                f"run {self.who}: {shown(place)}: {path[:200]!r}: of a recipe from a tracking server weights are read "
                f"from {' or '.join(WEIGHTS)} only; if you trust the file: {dotted(place)}=..."
            )
        self.folder(place, path)
        kind = kind_of(Path(path)) if Path(path).is_file() else None
        if kind not in (None, Kind.SAFETENSORS, Kind.DCZ):
            raise RecipeError(
                f"run {self.who}: {shown(place)}: {path[:200]!r}: is {kind.value}, whatever its name; "
                f"if you trust the file: {dotted(place)}=..."
            )

    def folder(self, place: Place, path: str) -> None:
        """``path`` must lie below an allowed folder, links resolved."""
        roots = self.trust.roots()
        if "://" not in path and "\0" not in path and any(Path(path).resolve().is_relative_to(one) for one in roots):
            return
        known = ", ".join(map(str, roots)) or f"none; {ENVIRONMENT} is not set"
        raise RecipeError(
            f"run {self.who}: {shown(place)}: {path[:200]!r} is not below a folder that a recipe from a tracking "
            f"server may read ({known}); allow one: --allow-folder FOLDER, or give the value: {dotted(place)}=..."
        )

    def origins(self) -> None:
        """What a module that you allow calls by a name must be its own: ``mine.models:os.system`` is not."""
        python_path = [one for one in self.trust.python_path if one not in sys.path]
        if self.trusted:
            sys.path[:0] = python_path
        for place, spec in self.trusted:
            if not _under(str(getattr(factory.load(spec), "__module__", None)), self.trust.modules()):
                self._refuse_spec(place, spec)

    def _listed(self, place: Place, spec: str, kwargs: Mapping[str, Any]) -> None:
        """A model that torchvision or timm lists itself, without weights, with values of a closed list."""
        package, _, named = spec.partition(":")
        timm = spec in TIMM
        name = str(kwargs.get("model_name")) if timm else named.partition(".")[0] if package in HUBS else named
        models = "timm" if timm else HUBS.get(package, TORCHVISION)
        library = models.partition(".")[0]
        your_name = timm and self.is_yours((*place[:-1], "kwargs", "model_name"))
        if not your_name and name not in self._models(place, spec, models):
            raise RecipeError(
                f"run {self.who}: {shown(place)}: {spec} {name[:80]!r} is no model of {models}.list_models(); a "
                f"recipe from a tracking server names these only; if you trust it: --allow {spec}"
            )
        place = (*place[:-1], "kwargs")
        for key, value in kwargs.items():
            if self.is_yours((*place, key)) or (timm and key == "model_name"):
                continue
            if key in NO_WEIGHTS and not value and not isinstance(value, str):
                continue
            if key not in MODEL_NUMBERS.split() or not _numbers(key, value):
                raise RecipeError(
                    f"run {self.who}: {shown((*place, key))}: {str(value)[:80]!r}: not among what a recipe from a "
                    f"tracking server may tell a model of {library}; if you trust it: {dotted((*place, key))}=..., or "
                    f"--allow {spec}"
                )

    def _models(self, place: Place, spec: str, library: str) -> Sequence[str]:
        try:
            return list(import_module(library).list_models())
        except Exception as error:  # not installed, or one that does not import here
            raise RecipeError(
                f"run {self.who}: {shown(place)}: {spec}: {library} does not import here "
                f"({type(error).__name__}: {' '.join(str(error).split())[:80]}), so its list of models is not known"
            ) from None

    def _refuse_spec(self, place: Place, spec: str) -> NoReturn:
        raise RecipeError(
            f"run {self.who}: {shown(place)}: its recipe came from a tracking server and names {spec[:120]}, which is "
            f"not among what such a recipe may call (python -m flows rerun --help); if you trust it, with whatever "
            f"arguments the recipe has: --allow {spec[:120]}"
        )

    def is_yours(self, place: Place) -> bool:
        """Whether the user gave the value, or one around it."""
        return any(place[:length] in self.yours for length in range(1, len(place) + 1))


def _under(module: str, prefixes: Sequence[str]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def _packages(python_path: Sequence[str]) -> list[str]:
    return [
        entry.stem
        for folder in python_path
        for entry in sorted(Path(folder).glob("*"))
        if entry.stem.isidentifier() and (entry.suffix == ".py" or any(entry.glob("*.py")))
    ]


def _numbers(key: str, value: Any) -> bool:
    if key == "global_pool":
        return value in POOLS
    if isinstance(value, list):
        return all(one is None or isinstance(one, int | float) for one in value)
    return value is None or isinstance(value, int | float)


def _like_a_path(text: str) -> bool:
    """A separator, a home, a parent, a URL, or a name that exists here: relative paths begin where we stand."""
    if any(part in text for part in ("/", "\\", "\0")) or text.startswith(("~", "..")):
        return True
    try:
        return bool(text) and Path(text).exists()
    except OSError:
        return False

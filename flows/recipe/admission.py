"""What a recipe that came from a server may do here: name code, models and folders of closed lists, and nothing else.

A recipe names code to call and files to read. One from a folder of this machine is its user's own. One from a tracking
server is anybody's who may write there, so it is read as plain data, its references are followed, and then every name
and every value in it is judged.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from deepcompression import factory
from deepcompression.data.images import ENVIRONMENT
from deepcompression.errors import RecipeError
from flows.recipe import reading
from flows.recipe.schema import Recipe
from tasks.execution.settings import Factory, Place, Weights, parts
from tasks.execution.specs import SPEC
from tasks.stages.custom import Settings as Custom


def _each(module: str, names: str) -> frozenset[str]:
    return frozenset(f"{module}:{name}" for name in names.split())


# Each builds what its numbers say, or reads data from the folder that it is given; none runs what it is told to.
CALLABLES = (
    _each("deepcompression.models", "lenet_300_100 lenet5 digits_net alexnet vgg16")
    | _each("deepcompression.data", "digits mnist fashion_mnist shift")
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
MODEL_NUMBERS = """
    num_classes in_chans drop_rate drop_path_rate drop_block_rate proj_drop_rate attn_drop_rate global_pool
    output_stride img_size patch_size embed_dim depth num_heads mlp_ratio dropout attention_dropout
    stochastic_depth_prob width_mult init_weights aux_logits transform_input zero_init_residual groups
    width_per_group replace_stride_with_dilation memory_efficient progress scriptable exportable
"""
PLAIN = (str, int, float, bool, type(None))
POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "token", "map")
NO_WEIGHTS = ("pretrained", "weights", "weights_backbone")  # may be said, if they say that there are none
WEIGHTS = (".safetensors", ".dcz")
REFERENCE = re.compile(r"\$\{\s*+(\.*+)([\w.\-\[\]]*+)\s*+\}")
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


def plain(who: str, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data: references within it followed, values that you give put in their places.

    Args:
        who: the run, for messages.
        recipe: from a server, nothing of it resolved.
        overrides: what you give, dotted key -> value; it may use the environment of this machine.

    Raises:
        RecipeError: anything else than a reference stands in ``${...}``, or a reference leads nowhere, to itself, or to
            what you read from this machine; the recipe is too large.
    """
    reading.within(recipe, f"run {who}: its recipe")
    result: dict[str, Any] = _Resolver(who, recipe, given(recipe, overrides)).value(recipe, ())
    return result


def merged(who: str, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with overrides in their places, both from a server: nothing is resolved, by nobody.

    Raises:
        RecipeError: too large, or an override fits nowhere.
    """
    for one in (recipe, overrides):
        reading.within(one, f"run {who}: its recipe")
    result: dict[str, Any] = json.loads(json.dumps(recipe))
    for place, value in given(recipe, overrides).items():
        try:
            _put(result, place, value)
        except (IndexError, TypeError, AttributeError):
            raise RecipeError(f"run {who}: its override {_shown(place)} fits nowhere in its recipe") from None
    return result


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
    one.origins()  # imports what you allow: last, when nothing else is to be refused


def given(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[Place, Any]:
    """Places in ``recipe`` that overrides give a value to; a stage by its name or number, as in ``recipes.load``."""
    return {
        path: value
        for key, given_ in overrides.items()
        for path, value in _leaves(_place(key, recipe.get("stages")), given_)
    }


@dataclass
class _Resolver:
    """Follows references in a recipe, and counts what that makes, since references to references can grow."""

    who: str
    recipe: Mapping[str, Any]
    yours: Mapping[Place, Any]
    made: int = 0
    depth: int = 0
    open: list[Place] = field(default_factory=list)

    def value(self, value: Any, place: Place) -> Any:
        self._count(1)
        self.depth += 1
        made = self._your(place) if place in self.yours else self._followed(value, place)
        self.depth -= 1
        return made

    def _followed(self, value: Any, place: Place) -> Any:
        if isinstance(value, Mapping):
            return {self._key(key, place): self.value(one, (*place, key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one, (*place, index)) for index, one in enumerate(value)]
        if not isinstance(value, PLAIN):  # YAML has bytes, sets and dates too; a path can be bytes
            raise RecipeError(
                f"run {self.who}: {_shown(place)}: a {type(value).__name__}; expected text, numbers, lists and mappings"
            )
        return self._text(value, place) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str, place: Place) -> Any:
        whole = REFERENCE.fullmatch(text)
        if whole:
            return self._target(whole, place)
        if "${" in REFERENCE.sub("", text) or "\\${" in text:
            self._refuse(place, text)
        made = REFERENCE.sub(lambda found: self._word(self._target(found, place), text, place), text)
        self._count(len(made) // 100)
        if "${" in made or len(made) > reading.MOST_CHARACTERS:
            self._refuse(place, text)
        return made

    def _target(self, found: re.Match[str], place: Place) -> Any:
        dots, name = len(found[1]), found[2]
        keys = [one for one in re.split(r"[.\[\]]+", name) if one]
        if not keys or dots > len(place):
            self._lost(found, place)
        target, at = self._find((*place[: len(place) - dots], *keys) if dots else tuple(keys), found, place)
        if at in self.open or len(self.open) > reading.MOST_DEPTH:
            self._lost(found, place)
        self.open.append(at)
        value = self.value(target, at)
        self.open.pop()
        return value

    def _find(self, keys: Place, found: re.Match[str], place: Place) -> tuple[Any, Place]:
        """What lies at ``keys`` and the same place with numbers for indices; or what you gave there."""
        target: Any = self.recipe
        at: Place = ()
        for number, key in enumerate(keys):
            at = (*at, int(key) if isinstance(target, list | tuple) and str(key).isdigit() else key)
            try:
                target = target[at[-1]]
            except (KeyError, IndexError, TypeError):
                at = (*at, *keys[number + 1 :])
                if at not in self.yours:
                    self._lost(found, place)
                return self.yours[at], at
        return target, at

    def _lost(self, found: re.Match[str], place: Place) -> NoReturn:
        raise RecipeError(
            f"run {self.who}: {_shown(place)}: {found[0][:80]} leads nowhere in this recipe, or to itself"
        )

    def _word(self, value: Any, text: str, place: Place) -> str:
        if isinstance(value, dict | list):
            self._refuse(place, text)
        return str(value)

    def _your(self, place: Place) -> Any:
        value = self.yours[place]
        if self.open and _has_interpolation(value):
            raise RecipeError(
                f"run {self.who}: it refers to {_shown(place)}, which you read from this machine; its recipe came from "
                "a tracking server and is not told such values"
            )
        return value

    def _key(self, key: Any, place: Place) -> Any:
        if not isinstance(key, PLAIN) or (isinstance(key, str) and "${" in key):
            self._refuse(place, str(key))
        return key

    def _refuse(self, place: Place, text: str) -> NoReturn:
        where = ".".join(map(str, place)) or "recipe"
        raise RecipeError(
            f"run {self.who}: {_shown(place)}: {text[:80]!r} is no plain data: a recipe from a tracking server "
            f"may hold no ${{...}} but references within itself; give the value: {where[:80]}=..."
        )

    def _count(self, more: int) -> None:
        self.made += more
        if self.made > reading.MOST_NODES or self.depth > reading.MOST_DEPTH:
            raise RecipeError(
                f"run {self.who}: its recipe has more than {reading.MOST_NODES:,} keys and values, or more than "
                f"{reading.MOST_DEPTH} levels, references followed"
            )


@dataclass
class _Judge:
    """Refuses what is on no list; notes callables of modules that the user allows, to be looked at when imported."""

    who: str
    yours: Mapping[Place, Any]
    trust: Trust
    trusted: list[tuple[Place, str]] = field(default_factory=list)

    def spec(self, place: Place, spec: str, kwargs: Mapping[str, Any]) -> None:
        module = spec.partition(":")[0]
        if self._is_yours(place) or spec in CALLABLES or spec in self.trust.allowed:
            return
        if _under(module, self.trust.modules()):
            self.trusted.append((place, spec))
        elif module == TORCHVISION or spec in TIMM:
            self._listed(place, spec, kwargs)
        else:
            self._refuse_spec(place, spec)

    def values(self, place: Place, value: Any) -> None:
        """Texts at any depth, keys too: what looks like a path must lie below an allowed folder; what names code is
        judged as such, since user's code may build it."""
        if self._is_yours(place):
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

    def weights(self, place: Place, path: str) -> None:
        if self._is_yours(place):
            return
        if Path(path).suffix not in WEIGHTS:
            raise RecipeError(
                f"run {self.who}: {_shown(place)}: {path[:200]!r}: of a recipe from a tracking server weights are read "
                f"from {' or '.join(WEIGHTS)} only; if you trust the file: {_dotted(place)}=..."
            )
        self.folder(place, path)

    def folder(self, place: Place, path: str) -> None:
        """``path`` must lie below an allowed folder, links resolved."""
        roots = self.trust.roots()
        if "://" not in path and "\0" not in path and any(Path(path).resolve().is_relative_to(one) for one in roots):
            return
        known = ", ".join(map(str, roots)) or f"none; {ENVIRONMENT} is not set"
        raise RecipeError(
            f"run {self.who}: {_shown(place)}: {path[:200]!r} is not below a folder that a recipe from a tracking "
            f"server may read ({known}); allow one: --allow-folder FOLDER, or give the value: {_dotted(place)}=..."
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
        timm = spec in TIMM
        name = str(kwargs.get("model_name")) if timm else spec.partition(":")[2]
        library, models = ("timm", "timm") if timm else ("torchvision", TORCHVISION)
        your_name = timm and self._is_yours((*place[:-1], "kwargs", "model_name"))
        if not your_name and name not in self._models(place, spec, models):
            raise RecipeError(
                f"run {self.who}: {_shown(place)}: {spec} {name[:80]!r} is no model of {models}.list_models(); a "
                f"recipe from a tracking server names these only; if you trust it: --allow {spec}"
            )
        place = (*place[:-1], "kwargs")
        for key, value in kwargs.items():
            if self._is_yours((*place, key)) or (timm and key == "model_name"):
                continue
            if key in NO_WEIGHTS and not value and not isinstance(value, str):
                continue
            if key not in MODEL_NUMBERS.split() or not _numbers(key, value):
                raise RecipeError(
                    f"run {self.who}: {_shown((*place, key))}: {str(value)[:80]!r}: not among what a recipe from a "
                    f"tracking server may tell a model of {library}; if you trust it: {_dotted((*place, key))}=..., or "
                    f"--allow {spec}"
                )

    def _models(self, place: Place, spec: str, library: str) -> Sequence[str]:
        try:
            return list(import_module(library).list_models())
        except Exception as error:  # not installed, or one that does not import here
            raise RecipeError(
                f"run {self.who}: {_shown(place)}: {spec}: {library} does not import here "
                f"({type(error).__name__}: {' '.join(str(error).split())[:80]}), so its list of models is not known"
            ) from None

    def _refuse_spec(self, place: Place, spec: str) -> NoReturn:
        raise RecipeError(
            f"run {self.who}: {_shown(place)}: its recipe came from a tracking server and names {spec[:120]}, which is "
            f"not among what such a recipe may call (python -m flows rerun --help); if you trust it, with whatever "
            f"arguments the recipe has: --allow {spec[:120]}"
        )

    def _is_yours(self, place: Place) -> bool:
        return any(place[:length] in self.yours for length in range(1, len(place) + 1))


def _leaves(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """A mapping merges into what is there, so each of its values has a place; all else replaces as a whole."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves((*place, key), one)
    else:
        yield place, value


def _place(key: str, stages: Any) -> Place:
    parts: list[Any] = [one for one in re.split(r"[.\[\]]+", key) if one]
    if len(parts) > 1 and parts[0] == "stages" and isinstance(stages, list):
        names = [one.get("stage") if isinstance(one, Mapping) else None for one in stages]
        number = names.index(parts[1]) if names.count(parts[1]) == 1 else parts[1]
        parts[1] = int(number) if str(number).isdigit() else number
    return tuple(parts)


def _put(value: Any, place: Place, new: Any) -> None:
    """Mappings on the way that are not there are made, as OmegaConf does."""
    for key in place[:-1]:
        value = value[key] if isinstance(value, list) else value.setdefault(key, {})
    value[place[-1]] = new


def _has_interpolation(value: Any) -> bool:
    return "${" in str(value)


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


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _shown(place: Place) -> str:
    """A place for people; what a server wrote does not reach the terminal as it is."""
    text = _dotted(place) or "recipe"
    return (text if text.isprintable() else repr(text))[:120]

"""A starting point for a model of one's own: a recipe with comments, a module with the model, one with the data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression._atomic import storage_error, written
from deepcompression.errors import DataError, InputError, RecipeError, WeightsError
from deepcompression.factory import HUBS

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).resolve().parent / "templates"
FILES = {
    "recipe.yaml": "recipe.yaml.j2",
    "code/{module}_model.py": "model.py.j2",
    "code/{module}_data.py": "data.py.j2",
}
WORDS = 4000  # of a tokenizer that is made here
OWN = "resize=64, crop=64, mean=0.5, std=0.25"  # how a net that nothing is published of takes pictures
VALIDATION = 0.15  # of the training samples, where there is no split for it
STEPS = 300  # that a training has at least, where epochs are few samples
OF_NUMBERS = 2000  # of a table whose targets are numbers
POINTS = 2.0  # of accuracy that may be lost at most, unless a validation sample is more
MANY = 20  # whole numbers of a column: more are no classes


@dataclass(frozen=True)
class Asked:
    """What was typed: data of one kind at most, and the model."""

    folder: Path
    images: Path | None = None
    text: Path | None = None
    tabular: Path | None = None
    target: str | None = None
    tokenizer: Path | None = None
    model: str | None = None
    weights: Path | None = None

    @property
    def source(self) -> Path | None:
        """The data; None where an example was asked for."""
        return self.images or self.text or self.tabular

    @property
    def kind(self) -> str:
        """Of the data."""
        return "images" if self.images else "text" if self.text else "tabular" if self.tabular else "example"


def write(asked: Asked, command: str) -> Path:
    """Writes the files, and returns the recipe's path.

    Args:
        asked: what was typed.
        command: what begins a command line, for comments.

    Raises:
        InputError: the folder is in use, a file is missing, or the data is not as it should be.
    """
    _refuse(asked)
    module = re.sub(r"\W", "_", asked.folder.resolve().name)
    module = module if module[:1].isalpha() else f"my_{module}"
    values = _values(asked)
    path = asked.folder / "recipe.yaml"
    common = {"name": module.replace("_", "-"), "module": module, "command": command, "path": str(path)}
    for name, template in FILES.items():
        _put(asked.folder / name.format(module=module), _template(template).render({**common, **values}))
    return path


def _refuse(asked: Asked) -> None:
    if asked.folder.exists() and (not asked.folder.is_dir() or any(asked.folder.iterdir())):
        raise RecipeError(f"new {asked.folder.resolve()}: is there, and not empty; name another folder")
    given = [name for name in ("images", "text", "tabular") if getattr(asked, name)]
    if len(given) > 1:
        raise RecipeError(f"new: --{' and --'.join(given)} are given; expected one kind of data")
    for path, kind in ((asked.source, DataError), (asked.tokenizer, DataError), (asked.weights, WeightsError)):
        if path and not path.exists():
            raise kind(f"new: {path.resolve()}: no such file or folder")
    if asked.tabular and not asked.target:
        raise RecipeError("new: --tabular goes with --target, the column that is learnt")
    if asked.model and asked.model.partition(":")[0] not in HUBS:
        raise RecipeError(f"new: --model {asked.model}: expected {', '.join(f'{one}:NAME' for one in HUBS)}")
    if asked.model and asked.tabular:
        raise RecipeError("new: --model goes with --images or --text; the net of a table is written for you to change")


def _values(asked: Asked) -> dict[str, Any]:
    """What the templates show."""
    made = {"images": _images, "text": _text, "tabular": _tabular, "example": _example}[asked.kind](asked)
    weights = json.dumps(str(asked.weights.resolve())) if asked.weights else ""  # YAML, and with backslashes too
    hub = asked.model or ""
    return {
        "kind": asked.kind,
        "source": repr(str(asked.source.resolve())) if asked.source else "",
        "weights": weights,
        "hub": hub,
        "kwargs": _kwargs(asked, made["outputs"], made.get("words", 0)) if hub else {},
        "named": "",
        "named_bits": "",
        "augment": "",
        "validation": VALIDATION,
        **{"density": 0.2, "bits": 5, "mean": "", "samples": 0, "points": POINTS},
        **made,
        **({"named": "", "named_bits": "", "density": 0.6, "bits": 6} if hub else {}),
    }


def _kwargs(asked: Asked, outputs: int, words: int) -> str:
    if not str(asked.model).startswith("transformers:"):
        return repr({"num_classes": outputs})
    small = {"model_type": "bert", "vocab_size": words, "hidden_size": 128, "intermediate_size": 256}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    folder = asked.weights if asked.weights and asked.weights.is_dir() else None
    return repr({"config": str(folder.resolve()) if folder else {**small, **layers}, "num_labels": outputs})


def _example(asked: Asked) -> dict[str, Any]:
    from deepcompression.data import digits

    learns = {"step": "classification", "metric": "accuracy", "epochs": 20, "batch": 64, "has_validation": False}
    if asked.model:
        raise RecipeError("new: --model goes with data: --images DIR or --text FILE")
    return {"what": "digits, to be replaced by yours", "features": 1, "outputs": 10, **learns, **_guard(digits())}


def _images(asked: Asked) -> dict[str, Any]:
    from deepcompression.data import images

    assert asked.images is not None
    preparation = _preparation(asked.model)
    found = images(str(asked.images))
    classes = found.classes or ()
    return {
        "what": f"pictures of {len(classes)} classes",
        "features": 3,
        "outputs": len(classes),
        "classes": _some(classes),
        "preparation": preparation,
        "has_validation": found.validation is not None,
        "augment": "deepcompression.data:flip",
        **{"step": "classification", "metric": "accuracy", "batch": 32},
        "epochs": _epochs(found.train, 32, STEPS, 10, 40),
        **_guard(found),
    }


def _guard(found: Any) -> dict[str, Any]:
    """How many samples validation has, or will have, and how many points may be lost: one sample at least."""
    whole = found.train if found.validation is None else found.validation
    count = len(whole[0]) if isinstance(whole, tuple) else len(whole)
    samples = count if found.validation is not None else max(round(VALIDATION * count), 1)
    return {"samples": samples, "points": max(POINTS, math.ceil(1000 / samples) / 10)}


def _epochs(train: Any, batch: int, steps: int, least: int, most: int) -> int:
    """So many that there are enough steps, within bounds."""
    samples = len(train[0]) if isinstance(train, tuple) else len(train)
    return min(max(math.ceil(steps / math.ceil(samples / batch)), least), most)


def _preparation(model: str | None) -> str:
    """As the model's published weights have it, where there are any."""
    if not model:
        return OWN
    from deepcompression.models.hub import load, preparation_of

    load(model)
    try:
        preparation_of(model, {})
    except InputError:
        return OWN.replace("64", "224")
    return f"like={model!r}"


def _tabular(asked: Asked) -> dict[str, Any]:
    from deepcompression.data import tabular

    found = tabular(str(asked.tabular), str(asked.target), missing="mean")
    classes = found.classes
    numbers = classes is None or (len(classes) > MANY and all(_is_number(one) for one in classes))
    return {
        "what": f"{asked.target} of a table",
        "features": int(found.train[0].shape[1]),
        "outputs": 1 if numbers else len(classes or ()),
        "classes": "numbers" if numbers else f"classes: {_some(classes or ())}",
        "target": repr(asked.target),
        "values": repr("numbers" if numbers else "classes"),
        "has_validation": found.validation is not None,
        "step": "regression" if numbers else "classification",
        "metric": "absolute_error" if numbers else "accuracy",
        "batch": 64,
        "epochs": _epochs(found.train, 64, OF_NUMBERS if numbers else STEPS, 40, 200),
        **(_usual(found.train[1]) if numbers else {}),
        **_guard(found),
    }


def _usual(targets: Tensor) -> dict[str, Any]:
    """What a net says at first: the mean of what it is to learn, and how far targets are from it."""
    spread = float(targets.float().std()) or 1.0
    return {"mean": f"{float(targets.float().mean()):.4g}", "spread": f"{spread:.4g}"}


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", word) is not None


def _text(asked: Asked) -> dict[str, Any]:
    from deepcompression.data import text

    assert asked.text is not None
    rows = _rows(asked.text)
    field, label = _fields(rows, asked)
    given = asked.tokenizer or _of_checkpoint(asked.weights)
    tokenizer = given.resolve() if given else (asked.folder / "tokenizer.json").resolve()
    if given is None:
        _make_tokenizer([str(row.get(field, "")) for row in rows], tokenizer)
    found = text(str(asked.text), str(tokenizer), field=field, label=label, length=64)
    classes = found.classes or ()
    return {
        "what": f"texts of {len(classes)} classes",
        "outputs": len(classes),
        "classes": _some(classes),
        "tokenizer": repr(str(tokenizer)),
        "field": repr(field),
        "target": repr(label),
        "words": _size_of(tokenizer),
        "has_validation": found.validation is not None,
        "named": "words: 0.2, ",
        "named_bits": "words: 5, ",
        **{"step": "classification", "metric": "accuracy", "batch": 32},
        "epochs": _epochs(found.train, 32, STEPS, 10, 40),
        **_guard(found),
    }


def _of_checkpoint(weights: Path | None) -> Path | None:
    return weights if weights and (weights / "tokenizer.json").is_file() else None


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """The first file's lines."""
    file = path / "train.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"new: {file.resolve()}: expected JSON lines, such as {{...}} in each: {error}") from None
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"new: {file.resolve()}: expected a JSON mapping in each line")
    return rows


def _fields(rows: list[Mapping[str, Any]], asked: Asked) -> tuple[str, str]:
    """The field with the text, the longest that there is, and the one with the class."""
    first = rows[0]
    label = asked.target or next((name for name in ("label", "labels", "class", "target") if name in first), None)
    texts = {name: len(value) for name, value in first.items() if isinstance(value, str) and name != label}
    if label is None or label not in first or not texts:
        raise DataError(
            f"new: {Path(str(asked.text)).resolve()}: expected a field with a text and one with its class; there are "
            f"{', '.join(map(str, first))[:200]}; name the class's: --target FIELD"
        )
    return ("text" if "text" in texts else max(texts, key=lambda name: texts[name])), label


def _make_tokenizer(texts: list[str], path: Path) -> None:
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ModuleNotFoundError:
        raise DataError("new: texts are cut by tokenizers: pip install 'deep-compression[data]'") from None
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]"]
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special, show_progress=False)
    )
    _put(path, made.to_str())


def _size_of(tokenizer: Path) -> int:
    from tokenizers import Tokenizer

    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    return int(Tokenizer.from_file(str(file)).get_vocab_size())


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _put(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path.parent, error) from None
    with written(path) as file:
        file.write(text.encode())


@lru_cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(FOLDER)
    return Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).get_template(name)

"""`dcz compress --calibrate`: what a recipe says is for the workflow package to know, which is asked by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression import factory
from deepcompression.cli import files
from deepcompression.cli.terminal import Bar
from deepcompression.errors import FactoryError, InputError, RunError

if TYPE_CHECKING:
    from deepcompression.datafree.compress import Compressed

WORKFLOW = "flows.calibrate:compress"


def calibrated(
    recipe: str, samples: int, source: Path, target: Path, weights: files.Weights, settings: Mapping[str, Any]
) -> list[Compressed]:
    """The .dcz of a checkpoint, layer by layer on a recipe's samples.

    Args:
        recipe: path or URL of the YAML file.
        samples: how many of its training data.
        source: the checkpoint.
        target: the .dcz.
        weights: what is in the checkpoint.
        settings: of `compress_calibrated`, and `threads`.

    Raises:
        RunError: the workflow, or torch, is not installed.
        InputError: the recipe, or what it names, is wrong, or does not fit the checkpoint.
    """
    if samples < 1:
        raise InputError(f"--samples {samples} is impossible; expected 1 or more")
    try:
        work = factory.load(WORKFLOW)
    except FactoryError as error:
        raise RunError(
            f"--calibrate needs the workflow, which does not import; pip install deep-compression[flow] ({error})"
        ) from None
    text = Path(recipe).read_bytes() if Path(recipe).is_file() else recipe.encode()
    whole = f"{files.same_source(source)}; {hashlib.sha256(text).hexdigest()} {samples}"
    with Bar("reconstructing", weights.nbytes) as bar:
        done: list[Compressed] = work(
            recipe, samples, weights.tensors, target, {**settings, "source": whole, "progress": bar}
        )
    return done

"""``dcz compress --calibrate``: a checkpoint made smaller on a recipe's model and samples; nothing is tracked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcompression.codec.dtypes import RawTensor
    from deepcompression.datafree.compress import Compressed
    from deepcompression.reconstruction.compress import Calibration


def compress(
    recipe: str, count: int, tensors: Mapping[str, RawTensor], path: Path, settings: Mapping[str, Any]
) -> list[Compressed]:
    """Writes the .dcz of a checkpoint, layer by layer on a recipe's samples, and says what was done to each tensor.

    Args:
        recipe: path or URL of a YAML file.
        count: of samples.
        tensors: of the checkpoint.
        path: of the .dcz.
        settings: of ``compress_calibrated``; ``threads``, at most so many.

    Raises:
        InputError: the recipe, or what it names, is wrong, or does not fit the checkpoint.
    """
    import torch

    from deepcompression.formats.state_dict import from_raw
    from deepcompression.reconstruction.compress import compress_calibrated

    given = dict(settings)
    tried = calibration(recipe, count)
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    return compress_calibrated({name: from_raw(tensors[name]) for name in tensors}, path, tried, **given)


def calibration(recipe: str, count: int) -> Calibration:
    """A recipe's model, and samples of its training data, not augmented, as its step takes them; labels are not used.

    Args:
        recipe: path or URL of a YAML file.
        count: of samples.

    Raises:
        InputError: the recipe, or what it names, is wrong.
    """
    from deepcompression.reconstruction.compress import Calibration
    from flows.recipe import load as recipes
    from flows.runs import run_of
    from tasks.execution.samples import samples
    from tasks.tracking.runs import Tracker

    parsed = recipes.load(recipe)
    seed = parsed.seed if parsed.seeds is None else parsed.seeds[0]
    assert seed is not None
    run = run_of(parsed, seed, Path(), Tracker("", "", ""))
    run.ready()
    compute, _, forward = samples(run, count, seed)
    model = run.blank_model()
    compute.place(model)

    def feed(batch: int) -> Iterable[Any]:
        return samples(run, count, seed, batch)[1]()

    return Calibration(model, feed, forward, run.step is None, seed)

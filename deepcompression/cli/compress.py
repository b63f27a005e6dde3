"""`dcz compress`: prune and share a checkpoint without data or training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepcompression.cli.app import app
from deepcompression.cli.terminal import Bar, Stopped, plain
from deepcompression.errors import InputError

if TYPE_CHECKING:
    from deepcompression.cli.files import Weights
    from deepcompression.datafree.compress import Compressed

_NAMED = 3  # tensors of a line of the table
SAMPLES = 128


Source = Annotated[Path, typer.Argument(metavar="IN", show_default=False)]
Target = Annotated[Path | None, typer.Argument(metavar="OUT.dcz", show_default=False)]
Density = Annotated[
    float | None, typer.Option(metavar="D", help="Prune to this share of the weights, such as 0.2, by magnitude.")
]
Bits = Annotated[
    int | None,
    typer.Option(metavar="B", help="Share: weights take 2^B values, found by k-means. Without --density it is 6."),
]
Per = Annotated[str, typer.Option(metavar="tensor|row|group:N", help="What has a codebook: N are elements of a row.")]
TargetBytes = Annotated[
    int | None,
    typer.Option(metavar="N", help="The file takes at most N bytes, shared out so that tensors lose least."),
]
Ratio = Annotated[float | None, typer.Option(metavar="R", help="The same: R times smaller than IN. Excludes --bits.")]
Keep = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Store tensors of such names as they are; may be repeated.")
]
Spare = Annotated[bool, typer.Option("--spare/--no-spare", help="Whether the layers that lose most are spared.")]
Coder = Annotated[str, typer.Option(metavar="packed|huffman|adaptive|auto", help="As of dcz encode.")]
Calibrate = Annotated[
    str | None,
    typer.Option(metavar="RECIPE", help="Make up for what is lost, layer by layer, on samples of this recipe's data."),
]
Samples = Annotated[
    int | None, typer.Option(metavar="N", help="Samples for --calibrate; default: 128. Labels are not used.")
]
Together = Annotated[
    int | None,
    typer.Option(metavar="N", help="Layers in one pass over the samples: less time, more memory; default: 1."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be done.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was done to each tensor, as JSON alone.")]
Key = Annotated[str | None, typer.Option(help="Where in a torch checkpoint the state_dict lies, such as state_dict.")]
Merge = Annotated[bool, typer.Option("--merge-masks", help="Make one weight of each pair weight_orig, weight_mask.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="At most so many; default: one a core. The bytes do not depend on it.")
]


@app.command()
def compress(
    source: Source,
    target: Target = None,
    density: Density = None,
    bits: Bits = None,
    per: Per = "tensor",
    target_bytes: TargetBytes = None,
    ratio: Ratio = None,
    keep: Keep = None,
    spare: Spare = True,
    coder: Coder = "auto",
    calibrate: Calibrate = None,
    samples: Samples = None,
    together: Together = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    key: Key = None,
    merge_masks: Merge = False,
    threads: Threads = None,
) -> None:
    """Prune and share the tensors of IN, without training, and write them as .dcz. Types are kept.

    IN is .safetensors, a folder of them, the index of a sharded checkpoint (model.safetensors.index.json), or a torch
    checkpoint. Tensors are read, made and written one at a time. A killed command leaves those that it finished
    in OUT.dcz.unfinished, and the same command goes on from there.

    \b
    With --bits each tensor has a codebook of that size. With --ratio or --target-bytes its values are rounded in steps,
    which are chosen so that all tensors together lose least for the bytes.

    What is not treated as asked is listed, with the reason:
      kept bit for bit   vectors (biases, normalisation), small tensors,
                         integers, NaN or infinite values, --keep PATTERN
      spared             depthwise kernels, first and last layers: not pruned,
                         and 2 bits more, up to 8, or finer steps; embeddings:
                         not pruned; --no-spare treats them as all others

    --calibrate RECIPE takes the model and the training data of a recipe (python -m flows): layer by layer, what is lost
    in a layer's outputs for N samples is made up for by its other weights, and with --ratio or --target-bytes bytes go
    where they change least of what the model says. It takes minutes, and memory for the model, and loses much less.

    \b
    Examples:
      dcz compress model.safetensors small.dcz              6 bits, nothing pruned
      dcz compress model.safetensors small.dcz --bits 5
      dcz compress model.safetensors small.dcz --ratio 8
      dcz compress folder small.dcz --density 0.2 --bits 4
      dcz compress model.pt small.dcz --keep 'lm_head.*' --dry-run
      dcz compress model.pt small.dcz --ratio 8 --calibrate recipe.yaml
      dcz decode small.dcz again.safetensors
    """
    from deepcompression.cli import files
    from deepcompression.cli.calibrate import calibrated
    from deepcompression.datafree.compress import most_bytes, plan_of

    if target is None and not dry_run:
        raise InputError("compress IN OUT.dcz: OUT.dcz is missing (--dry-run needs none)")
    if target is not None:
        files.check_dcz_target(target, source, "compress")
    _check_calibration(calibrate, samples, together, target is not None and not dry_run)
    weights = files.read(source, key, merge_masks)
    most = most_bytes(files.size_of(source), target_bytes, ratio)
    settings: dict[str, Any] = {"density": density, "bits": bits, "per": per, "keep": keep or (), "spare": spare}
    settings["target_bytes"] = most
    if target is None or dry_run:
        _print(plan_of(weights.tensors, **settings), as_json)
        return
    settings |= {"coder": coder, "metadata": weights.metadata, "edits": weights.edits, "threads": threads}
    try:
        if calibrate is None:
            done = _compressed(source, target, weights, settings)
        else:
            settings |= {"together": together or 1}
            done = calibrated(calibrate, SAMPLES if samples is None else samples, source, target, weights, settings)
    except KeyboardInterrupt:
        where = f"{target}.unfinished"
        raise Stopped(f"what is finished is kept in {where}, and the same command goes on from there") from None
    _print(done, as_json)
    if not as_json:
        _say(source, target, files.size_of(source))


def _check_calibration(calibrate: str | None, samples: int | None, together: int | None, writes: bool) -> None:
    if calibrate is None and (samples is not None or together is not None):
        raise InputError("--samples and --together go with --calibrate RECIPE")
    if calibrate is not None and not writes:
        raise InputError("--calibrate finds what is done to each tensor by doing it; leave --dry-run out")


def _compressed(source: Path, target: Path, weights: Weights, settings: Mapping[str, Any]) -> list[Compressed]:
    from deepcompression.cli import files
    from deepcompression.datafree.compress import compress_state

    with Bar("compressing", weights.nbytes) as bar:
        return compress_state(
            weights.tensors, target, **settings, source=files.same_source(source), progress=bar, phase=bar.again
        )


def _say(source: Path, target: Path, before: int) -> None:
    after = target.stat().st_size
    typer.echo(f"{target}: {after:,} bytes, {before / max(after, 1):.2f}x smaller than {source} ({before:,} bytes)")


def _print(done: Sequence[Compressed], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([one._asdict() for one in done], indent=2))
        return
    groups: dict[tuple[str, str], list[Compressed]] = {}
    for one in done:
        groups.setdefault((one.treatment.partition(" of ")[0], one.why), []).append(one)
    for (treatment, why), members in groups.items():
        typer.echo(f"{treatment}{f' ({why})' if why else ''}: {_members(members)}")


def _members(members: Sequence[Compressed]) -> str:
    names = ", ".join(plain(one.name) for one in members[:_NAMED])
    more = f" and {len(members) - _NAMED:,} more" if len(members) > _NAMED else ""
    before = sum(one.nbytes for one in members)
    stored = [one.stored for one in members if one.stored is not None]
    after = f" -> {sum(stored):,}" if stored else ""
    return f"{names}{more}; {before:,}{after} bytes{_error(members)}"


def _error(members: Iterable[Compressed]) -> str:
    errors = [one.error for one in members if one.error is not None]
    return f", off by {100 * sum(errors) / len(errors):.2g} % of the weights' size" if errors else ""

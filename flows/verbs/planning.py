"""Verbs before a run: new, plan."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.process import command, guarded, print_json, printable
from flows.verbs.options import Json, Overrides, Quiet, Verbose


def new(
    folder: Annotated[Path, typer.Argument(help="that is made", show_default=False)],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="pictures, a folder a class (DIR/CLASS, or DIR/train/CLASS)")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines with a text and its class, or a folder of them")
    ] = None,
    tabular: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a .csv, .tsv or .parquet; with --target")
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column, or field, that is learnt")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="tokenizer.json; default: made of the texts")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="torchvision:NAME, timm:NAME or transformers:CLASS; default: a small net")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a checkpoint of the model; else it is trained first")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write a starting point for your own model: a recipe with comments, and modules for model and data.

    What it writes runs at once. Without data it is an example on digits, to be replaced by yours.

    \b
    Examples:
      python -m flows new my-net
      python -m flows new flowers --images pictures --model timm:mobilenetv3_small_050
      python -m flows new reviews --text reviews.jsonl
      python -m flows new prices --tabular houses.csv --target price
    """
    with guarded(verbose, False):
        from flows.checked import refuse_recipe
        from flows.new import Asked, write

        asked = Asked(folder, images, text, tabular, target, tokenizer, model, weights)
        path = write(asked, command())
        for one in sorted(one for one in folder.rglob("*") if one.is_file()):
            print(one)
        refuse_recipe(str(path), {})
        typed = subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))
        print(f"next: {command()} plan {typed}; then {command()} run {typed}")


def plan(
    recipe: Annotated[str, typer.Argument(help="YAML file (see conf/), or the URL of one", show_default=False)],
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a run would do, without training: every mistake at once, each tensor, bytes, minutes, memory.

    A handful of steps of each training is rehearsed, with all that comes after it; nothing is logged, and nothing is
    put into the store but what was predicted. What the store has of the run is said to be reused.

    Exit codes: 0 it can run; 2 something is wrong, a line for each mistake.

    \b
    Examples:
      python -m flows plan conf/digits.yaml
      python -m flows plan conf/lenet-5.yaml stages.prune.density.fc1=0.05 --json
    """
    with guarded(verbose, quiet):
        from flows.plan import plan as planned
        from flows.planned import show
        from flows.recipe import merge

        found = planned(recipe, merge.parse_overrides(overrides or []))
        if as_json:
            print_json(found)
        else:
            show(found)
        for one in found["problems"]:
            print(printable(f"error: {one}"), file=sys.stderr)
        if found["problems"]:
            raise typer.Exit(2)

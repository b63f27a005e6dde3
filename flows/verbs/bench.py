"""The verb bench."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.process import guarded, print_json
from flows.verbs.options import Json, Quiet, Runs, Uri, Verbose


def bench(
    run: Annotated[
        str, typer.Argument(help="a run's folder, an MLflow run id, or a Prefect flow-run id", show_default=False)
    ],
    batch: Annotated[
        list[int] | None, typer.Option(help="samples in a call; repeatable; default 1, 8 and 64", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(help="of each way")] = 1,
    rounds: Annotated[int | None, typer.Option(help="so many, in place of --seconds")] = None,
    seconds: Annotated[float, typer.Option(help="about how long each way is measured with each batch")] = 1.0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="measure torch.compile too, which takes up to minutes to compile")
    ] = False,
    watts: Annotated[
        float | None, typer.Option(help="power to assume where nothing counts energy; labelled as an assumption")
    ] = None,
    named: Annotated[
        list[str] | None,
        typer.Option("--input", help="where samples are mappings: what the model takes, in order; repeatable"),
    ] = None,
    tracking_uri: Uri = None,
    runs: Runs = "artifacts/runs",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a finished run on this machine: latency, throughput, memory, energy and FLOPs, each way beside the dense.

    Dense PyTorch, the decoded file, from the compressed form, each export in the run's exports/ folder, PyTorch's own
    int8. What cannot be measured says why. Written to the run's folder (bench.json, figures/latency.svg, report.html)
    and to its MLflow run.

    \b
    Examples:
      python -m flows bench digits-20261121-083034-e980
      python -m flows bench artifacts/runs/lenet-5-20261121-090000-11aa --batch 1 --batch 32 --threads 2 --json
    """
    with guarded(verbose, quiet):
        from flows import history
        from flows.bench import bench as module
        from flows.bench.leave import leave
        from flows.bench.show import show
        from flows.runs import finished

        asked = module.Asked(
            tuple(batch or module.BATCHES), threads, rounds, seconds, watts, compiled, tuple(named or ())
        )
        done = finished(history.find(run, tracking_uri or history.default_uri(), runs))
        result = module.bench(done, asked)
        leave(done, result)
        if as_json:
            print_json(result)
        else:
            show(result)

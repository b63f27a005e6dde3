"""Options that verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value pairs, such as seed=3 or stages.prune.density=0.05", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, alone, on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show Prefect's own log, and tracebacks")]
Uri = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow server (else MLFLOW_TRACKING_URI, or artifacts/mlflow.db)"),
]
Runs = Annotated[str, typer.Option("--runs", help="the folder that runs lie in")]
StoreOption = Annotated[
    str, typer.Option("--store", help="the stage store: a folder, or a URL such as s3://bucket/store")
]

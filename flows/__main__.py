"""``python -m flows``: the one workflow command line."""

from __future__ import annotations

import typer

from flows.verbs import keeping, results, running
from flows.verbs.bench import bench

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep Compression of your PyTorch model as a tracked flow: one YAML in, one small .dcz file out.",
    epilog="Start with: python -m flows run conf/digits.yaml",
)
VERBS = (
    running.run, running.rerun, running.sweep, keeping.serve, keeping.servers, results.compare, results.export, bench,
    keeping.store, keeping.sync, keeping.schema,
)  # fmt: skip
for verb in VERBS:
    app.command()(verb)


@app.callback()
def _root() -> None:
    """Keeps `run` a word of its own."""


if __name__ == "__main__":
    app(prog_name="python -m flows")

"""`dcz`: the command line of the codec. Exit codes: 0 done, 2 the input is wrong, 1 everything else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Input = Annotated[Path, typer.Argument(metavar="IN", show_default=False)]
Output = Annotated[Path, typer.Argument(metavar="OUT", show_default=False)]
MaxBytes = Annotated[
    int | None,
    typer.Option(help="Refuse to decode more bytes than this; default: half of the available memory."),
]


@app.callback()
def about() -> None:
    """Small files for pruned and shared weights: write, read, check and explain .dcz files."""


@app.command()
def encode(
    source: Input,
    target: Output,
    coder: Annotated[str, typer.Option(help="huffman, or packed for fixed-width codes.")] = "huffman",
) -> None:
    """Write the tensors of a .safetensors file as .dcz: lossless, names and types kept."""
    from deepcompression.io import save
    from deepcompression.tensorfile import read

    size = save(read(source), target, coder=coder)
    before = source.stat().st_size
    typer.echo(f"{target}: {size} bytes, {before / size:.2f}x smaller than {source}")


@app.command()
def decode(source: Input, target: Output, max_bytes: MaxBytes = None) -> None:
    """Write the tensors of a .dcz file as .safetensors, bit for bit."""
    from deepcompression.io import load
    from deepcompression.tensorfile import write

    tensors = load(source, raw=True, max_bytes=max_bytes)
    write(tensors, target)
    typer.echo(f"{target}: {len(tensors)} tensors, {target.stat().st_size} bytes")


@app.command()
def verify(source: Input, max_bytes: MaxBytes = None) -> None:
    """Decode everything and check every checksum."""
    import deepcompression.io

    deepcompression.io.verify(source, max_bytes=max_bytes)
    typer.echo(f"{source}: sound")


@app.command()
def inspect(
    source: Input,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    max_bytes: MaxBytes = None,
) -> None:
    """Show where the bytes of a .dcz file went, tensor by tensor."""
    import deepcompression.io

    report = deepcompression.io.inspect(source, max_bytes=max_bytes)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print_report(source, report)


def _print_report(source: Path, report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    table.add_column("tensor", overflow="fold")
    for title in (
        "dtype",
        "shape",
        "density",
        "distinct",
        "bytes",
        "values",
        "positions",
        "codebook",
        "table",
        "bound",
    ):
        table.add_column(title, justify="left" if title in {"dtype", "shape"} else "right")
    for tensor in report["tensors"]:
        table.add_row(*map(Text, _row(tensor)))
    # A pipe has no width of its own: rows are then as long as they need to be.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(
        Text(
            f"{source}: version {report['format_version']}, {report['coder']}, {report['file_bytes']} bytes "
            f"({report['header_bytes']} header), {report['dense_bytes']} dense, {report['ratio']:.2f}x"
        )
    )


def _row(tensor: dict[str, Any]) -> list[str]:
    shape = "x".join(map(str, tensor["shape"])) or "scalar"
    if tensor["same_as"] is not None:
        return [tensor["name"], tensor["dtype"], shape, f"same as {tensor['same_as']}"]
    sizes = [str(tensor[part]) for part in ("bytes", "values", "positions", "codebook", "table")]
    density = f"{100 * tensor['density']:.2f}%"
    bound = f"{tensor['entropy_bytes']:.0f}"
    return [tensor["name"], tensor["dtype"], shape, density, str(tensor["distinct"]), *sizes, bound]


def main() -> None:
    """Run `dcz`; one line on stderr and exit code 2 where the input is wrong, 1 for everything else."""
    from deepcompression.errors import DeepCompressionError, InputError

    try:
        app()
    except DeepCompressionError as error:
        print(f"dcz: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except MemoryError:
        print("dcz: not enough memory", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""`dcz`: the command line of the codec. Exit codes: 0 done, 2 the input is wrong, 130 stopped by Ctrl-C, 1 all else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepcompression.cli import compress as _compress  # noqa: F401, its verb is added by this
from deepcompression.cli.app import app
from deepcompression.cli.interrupt import CtrlC
from deepcompression.cli.terminal import Bar, Stopped, compiled, note, tell_of_compiling
from deepcompression.errors import DeepCompressionError, InputError

if TYPE_CHECKING:
    from deepcompression.codec.index import Entry

SLOW_ZSTD = 200_000_000
_UsageError: Any = typer.BadParameter.__base__  # click's; typer has it from click, or brings its own

Source = Annotated[Path, typer.Argument(metavar="IN", show_default=False)]
File = Annotated[Path, typer.Argument(metavar="IN.dcz", show_default=False)]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Refuse a file whose tensors have more bytes together, equal ones counted each time. "
        "Default: half of the available memory for what is in memory at once, and what the disk has left.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from deepcompression import __version__
        from deepcompression.codec.head import VERSION

        typer.echo(f"dcz {__version__}, format version {VERSION}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Small files for pruned and shared weights: write, read, check and explain .dcz files.

    \b
    Examples:
      dcz encode model.safetensors --coder all --dry-run   compare the coders
      dcz encode model.safetensors model.dcz               lossless
      dcz encode checkpoint.pt model.dcz --key state_dict
      dcz compress model.safetensors small.dcz --bits 5    pruned or shared first
      dcz verify model.dcz                                 check every byte
      dcz inspect model.dcz                                where the bytes went
      dcz inspect model.dcz --baselines                    beside gzip and zstd
      dcz decode model.dcz model.safetensors
      dcz decode model.dcz head.pt --name fc.weight --name fc.bias

    'dcz VERB --help' says more. The environment variable DEEPCOMPRESSION_THREADS sets the number of threads of
    every verb. Exit codes: 0 done, 2 the input is wrong, 130 stopped by Ctrl-C, 1 everything else.
    """


@app.command()
def encode(
    source: Source,
    target: Annotated[Path | None, typer.Argument(metavar="OUT.dcz", show_default=False)] = None,
    coder: Annotated[
        str,
        typer.Option(
            metavar="packed|huffman|adaptive|auto|all",
            help="huffman decodes fastest; adaptive is smallest; auto is adaptive for small tensors, huffman for large "
            "ones; packed has codes of fixed width. all compares them, with --dry-run.",
        ),
    ] = "huffman",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be written.")] = False,
    key: Annotated[
        str | None, typer.Option(help="Where in a torch checkpoint the state_dict lies, such as state_dict.")
    ] = None,
    merge_masks: Annotated[
        bool,
        typer.Option(
            "--merge-masks",
            help="Make one pruned weight of each pair weight_orig, weight_mask that torch.nn.utils.prune left.",
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="At most so many; default: one a core. The bytes do not depend on it.")
    ] = None,
) -> None:
    """Write the tensors of IN as .dcz: lossless, names, types, metadata and edits kept.

    IN is .safetensors (read one tensor at a time), several of them (model.safetensors.index.json, or their folder), or
    a torch checkpoint, in one file or several, which needs torch; a pickle with code in it is refused, unrun. What is
    in a file tells its kind, whatever its name. Of a torch checkpoint the tensors at --key are kept, nothing beside
    them (optimizer, epoch, versions of modules).

    \b
    Examples:
      dcz encode model.safetensors model.dcz --coder adaptive
      dcz encode model.safetensors --coder all --dry-run
      dcz encode checkpoint.pt model.dcz --key state_dict
    """
    from deepcompression.cli import files
    from deepcompression.codec.file import records, save

    if coder == "all" and not dry_run:
        raise InputError("--coder all only compares, with --dry-run; choose packed, huffman, adaptive or auto")
    if target is None and not dry_run:
        raise InputError("encode IN OUT.dcz: OUT.dcz is missing (--dry-run needs none)")
    if target is not None:
        files.check_dcz_target(target, source, "encode")
    tensors, size, metadata, edits = files.read(source, key, merge_masks)
    whole = files.is_all_weights(source)
    before = files.size_of(source) if whole else size
    if coder == "all":
        from deepcompression.cli.show import compare_coders, print_coders

        with Bar("encoding by every coder", 4 * size) as bar:
            found = compare_coders(tensors, records(metadata, edits), threads, bar)
        print_coders(found, before)
        return
    with Bar("encoding", size) as bar:
        if target is None or dry_run:
            from deepcompression.cli.show import encoded_size

            after = encoded_size(tensors, coder, records(metadata, edits), threads, bar)
        else:
            after = save(tensors, target, coder=coder, metadata=metadata, edits=edits, threads=threads, progress=bar)
    of = str(source) if whole else f"the tensors of {source}"
    _say_encoded(target or coder, after, of, before, " would be written" if dry_run else "")


def _say_encoded(what: object, after: int, source: object, before: int, would: str = "") -> None:
    gain = f"{before / after:.2f}x smaller" if after <= before else f"{after / before:.2f}x larger"
    typer.echo(f"{what}: {after:,} bytes{would}, {gain} than {source} ({before:,} bytes)")


@app.command()
def decode(
    source: File,
    target: Annotated[Path, typer.Argument(metavar="OUT", show_default=False)],
    name: Annotated[
        list[str] | None, typer.Option(help="Only this tensor; may be repeated.", show_default=False)
    ] = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Write the tensors of a .dcz file as OUT, bit for bit.

    OUT is .safetensors, written one tensor at a time, metadata and edits too, or .pt (also .pth, .bin, .ckpt): a
    state_dict for torch.load.

    \b
    Examples:
      dcz decode model.dcz model.safetensors
      dcz decode model.dcz head.pt --name fc.weight --name fc.bias
    """
    from deepcompression.cli import files
    from deepcompression.codec import dtypes, reader
    from deepcompression.codec import file as io

    files.check_target(target)
    with io.File(source, max_bytes=max_bytes) as file:
        wanted = reader.selected(file.index, name or None)
        with reader.named(source):
            if max_bytes is not None or target.suffix.lower() != files.SAFETENSORS:
                reader.check_memory(wanted, max_bytes)
            reader.check_disk(wanted, target.parent)
        with Bar("decoding", _decoded(wanted)) as bar:

            def tensor(name: str) -> dtypes.RawTensor:
                raw = file.raw(name)
                bar(name, raw.bits.nbytes)
                return raw

            files.write(wanted, tensor, target, file.metadata, file.edits)
    typer.echo(f"{target}: {_count(len(wanted), 'tensor')}, {target.stat().st_size:,} bytes")


@app.command()
def verify(source: File, max_bytes: MaxBytes = None) -> None:
    """Decode everything and check every checksum."""
    from deepcompression.codec import file as io

    with io.File(source) as file:
        entries = file.index.entries
    with Bar("verifying", _decoded(entries)) as bar:
        io.verify(source, max_bytes=max_bytes, progress=bar)
    typer.echo(
        f"{source}: sound: {_count(len(entries), 'tensor')}, {_decoded(entries):,} bytes "
        f"in a file of {source.stat().st_size:,}"
    )


@app.command()
def inspect(
    source: File,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compress the same tensors by gzip -9 and zstd -19 too.")
    ] = False,
    max_bytes: MaxBytes = None,
) -> None:
    """Show where the bytes of a .dcz file went, tensor by tensor.

    \b
    density      elements that are not zero
    distinct     values among them
    bits/w       bits in the file for an element, zeros included
    bytes        in the file: the sum of values, positions, codebook and table;
                 of an arithmetic code, which holds both, positions is what
                 the flags alone would take, and values the rest
    table        how codes are written: code lengths, layout, lengths of parts
    bound        entropy of order 0 in bytes: places and values of non-zeros,
                 each coded ideally by its frequency; codebooks not counted
    vs bound     bytes, relative to it; below 1 where neighbours tell something
    method       layout of positions and values, and coder of their codes

    Columns that a narrow terminal has no room for are left out; a pipe and --json have all.
    """
    from deepcompression.codec import file as io

    with io.File(source) as file:
        entries = file.index.entries
    with Bar("inspecting", _decoded(entries)) as bar:
        report = io.inspect(source, max_bytes=max_bytes, progress=bar)
    if baselines:
        report["baselines"] = _baselines(source, entries, max_bytes)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
        return
    from deepcompression.cli.show import print_baselines, print_report

    print_report(str(source), report)
    if baselines:
        print_baselines(report["baselines"])


def _baselines(source: Path, entries: tuple[Entry, ...], max_bytes: int | None) -> dict[str, int | None]:
    from deepcompression.cli.show import baselines

    size = sum(entry.nbytes for entry in entries if entry.same_as is None)
    if size > SLOW_ZSTD:
        note(f"zstd -19 takes minutes for {size:,} bytes; Ctrl-C stops it")
    with Bar("gzip -9 and zstd -19", size) as bar:
        return baselines(str(source), max_bytes, bar)


def _decoded(entries: Iterable[Entry]) -> int:
    return sum(entry.nbytes for entry in entries)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def main() -> None:
    """Run `dcz`; what goes wrong is one line on stderr and the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    left = "nothing was left behind"
    ctrl_c = CtrlC()
    ctrl_c.listen()
    tell_of_compiling()
    try:
        code = app(prog_name="dcz", standalone_mode=False) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stop:
        code, left = 130, str(stop)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        code = 130 if ctrl_c.pressed else _explained(error)
    if code == 130:
        note(f"interrupted; {left}")
    seconds, kept = compiled()
    if seconds >= 0.5 and code == 0:
        note(f"the fast path was compiled in {seconds:.1f} s{' and kept for next time' if kept else ''}")
    sys.exit(code)


def _explained(error: Exception) -> int:
    """Say in one line what went wrong; the exit code. What nobody foresaw is raised again."""
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, _UsageError):
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            note(f"{error.format_message()} ({error.ctx.command_path if error.ctx else 'dcz'} --help tells more)")
        return 2
    if isinstance(error, MemoryError):
        note("not enough memory")
    elif isinstance(error, DeepCompressionError):
        note(str(error).replace("max_bytes= allows", "--max-bytes allows"))
    elif isinstance(error, OSError):
        note(f"{error.filename or 'output'}: {error.strerror or error}")
    else:
        raise error
    return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    main()

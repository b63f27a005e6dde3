"""What `dcz` shows of a file: where its bytes went, and what other compressors and coders make of the same tensors."""

from __future__ import annotations

import json
import lzma
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepcompression._parallel import mapped
from deepcompression.cli.terminal import compiled, plain
from deepcompression.codec import index
from deepcompression.codec.file import CODERS, File, Progress, Tensor, encode_blobs

PARTS = ("values", "positions", "codebook", "table")
_SLICE = 1 << 20
_ROOM_OF_A_PIPE = 100_000
_MOST_ROWS = 2_000  # a millisecond each
_MOST_TEXTS = 20
_MOST_OF_A_TEXT = 200


class Column(NamedTuple):
    """A column of the table; those of the highest `rank` are left out first, together, where there is no room."""

    title: str
    rank: int
    cell: Callable[[dict[str, Any]], str]


def _bits(one: dict[str, Any]) -> str:
    count = one["elements"] if "elements" in one else math.prod(one["shape"])
    return f"{8 * one['bytes'] / count:.2f}" if count else "-"


COLUMNS = (
    Column("dtype", 8, lambda one: one["dtype"]),
    Column("shape", 2, lambda one: "x".join(map(str, one["shape"])) or "scalar"),
    Column("density", 1, lambda one: f"{100 * one['density']:.2f}%"),
    Column("distinct", 4, lambda one: f"{one['distinct']:,}"),
    Column("bits/w", 3, _bits),
    Column("bytes", 0, lambda one: f"{one['bytes']:,}"),
    Column("values", 6, lambda one: f"{one['values']:,}"),
    Column("positions", 6, lambda one: f"{one['positions']:,}"),
    Column("codebook", 9, lambda one: f"{one['codebook']:,}"),
    Column("table", 9, lambda one: f"{one['table']:,}"),
    Column("bound", 11, lambda one: f"{one['entropy_bytes']:,.0f}"),
    Column("vs bound", 5, lambda one: f"{one['bytes'] / one['entropy_bytes']:.2f}x" if one["entropy_bytes"] else "-"),
    Column("method", 12, lambda one: one["method"]),
    Column("coder", 13, lambda one: one["coder"]),
)
_LEFT = {"dtype", "shape", "method", "coder"}


# ---------------------------------------------------------------- the report


def print_report(path: str, report: dict[str, Any]) -> None:
    """Print what `io.inspect` found, as wide as the terminal; in a pipe as wide as it needs to be."""
    console = _console()
    tensors = report["tensors"]
    shown = tensors[:_MOST_ROWS]
    columns = _chosen(console.width, shown)
    totals = _totals(tensors, columns) if len(tensors) > 1 else None
    table = _table(["tensor", *(column.title for column in columns)], totals)
    for one in shown:
        table.add_row(*_row(one, columns), style="dim" if one["same_as"] is not None else "")
    _print(console, table, *map(Text, _notes(path, report, columns)))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=_ROOM_OF_A_PIPE, highlight=False)


def _print(console: Console, *what: Table | Text) -> None:
    """Print, without the spaces at the ends of lines where it is no terminal."""
    if console.is_terminal:
        console.print(*what, sep="\n")
        return
    with console.capture() as capture:
        console.print(*what, sep="\n")
    console.file.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _table(titles: list[str], totals: list[Text] | None = None) -> Table:
    """A table whose first column is names; `totals` stand under a line below it."""
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        footer_style="bold",
        show_footer=totals is not None,
    )
    for i, title in enumerate(titles):
        side: Literal["left", "right"] = "left" if i == 0 or title in _LEFT else "right"
        table.add_column(title, totals[i] if totals else "", justify=side, overflow="fold", no_wrap=i > 0)
    return table


def _name(one: dict[str, Any]) -> str:
    same = f" (same as {plain(_cut(one['same_as']))})" if one["same_as"] is not None else ""
    return plain(_cut(one["name"])) + same


def _row(one: dict[str, Any], columns: Iterable[Column]) -> list[Text]:
    return [Text(_name(one)), *(Text(column.cell(one)) for column in columns)]


def _totals(tensors: list[dict[str, Any]], columns: Iterable[Column]) -> list[Text]:
    stored = [one for one in tensors if one["same_as"] is None]
    counts = [math.prod(one["shape"]) for one in stored]
    whole: dict[str, Any] = {
        "elements": sum(counts),
        "density": sum(n * one["density"] for n, one in zip(counts, stored, strict=True)) / max(1, sum(counts)),
        "method": "",
        **{key: sum(one[key] for one in stored) for key in ("bytes", "entropy_bytes", *PARTS)},
    }
    blank = {"dtype", "shape", "distinct", "method", "coder"}
    return [Text("total"), *(Text("" if column.title in blank else column.cell(whole)) for column in columns)]


def _chosen(width: int, tensors: list[dict[str, Any]]) -> list[Column]:
    """The columns that fit, the most telling ones first; the name may be folded."""
    name = max([5, *(cell_len(_name(one)) for one in tensors)])
    left = width - min(name, max(24, 2 * width // 5))
    kept: list[Column] = []
    for rank in sorted({column.rank for column in COLUMNS}):
        group = [column for column in COLUMNS if column.rank == rank]
        needed = sum(2 + _width(column, tensors) for column in group)
        if needed <= left:
            kept += group
            left -= needed
    return [column for column in COLUMNS if column in kept]


def _width(column: Column, tensors: list[dict[str, Any]]) -> int:
    cells = [column.cell(one) for one in tensors] + [text.plain for text in _totals(tensors, [column])]
    return max(cell_len(text) for text in [column.title, *cells])


def _notes(path: str, report: dict[str, Any], columns: list[Column]) -> list[str]:
    lines = []
    hidden = [column.title for column in COLUMNS if column not in columns]
    if hidden:
        lines.append(f"no room for {', '.join(hidden)}: a wider window, a pipe and --json have them")
    if len(report["tensors"]) > _MOST_ROWS:
        lines.append(f"the first {_MOST_ROWS:,} of {len(report['tensors']):,} tensors; --json has all")
    lines.append(
        f"{plain(path)}: format version {report['format_version']}, {report['coder']}, {report['file_bytes']:,} bytes "
        f"({report['header_bytes']:,} header), {report['dense_bytes']:,} dense, {report['ratio']:.2f}x"
    )
    return lines + _texts(report["metadata"]) + _edits(report["edits"])


def _texts(texts: Mapping[str, str]) -> list[str]:
    """A line for each of the first texts of metadata, cut where it is long."""
    lines = [f"metadata {plain(_cut(key))}: {plain(_cut(text))}" for key, text in list(texts.items())[:_MOST_TEXTS]]
    more = len(texts) - len(lines)
    return [*lines, f"metadata: {more} more, all in --json"] if more else lines


def _edits(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of the first edits, cut where it is long."""
    told = [(str(one["kind"]), {key: value for key, value in one.items() if key != "kind"}) for one in edits]
    lines = [f"edit {plain(kind)}: {plain(_cut(json.dumps(rest)))}" for kind, rest in told[:_MOST_TEXTS]]
    more = len(edits) - len(lines)
    return [*lines, f"edits: {more} more, all in --json"] if more else lines


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_OF_A_TEXT else f"{text[:_MOST_OF_A_TEXT]}... ({len(text):,} characters)"


# ---------------------------------------------------------------- beside others


def baselines(path: str, max_bytes: int | None, progress: Progress) -> dict[str, int | None]:
    """Bytes of a file's tensors (equal ones once) as they are, by gzip -9, by zstd -19 (None: not installed; then by
    Python's own xz -9 too), as .dcz.

    One tensor at a time is in memory. Raises as `io.inspect`.

    Args:
        path: of the file.
        max_bytes: as of `verify`.
        progress: called after each tensor with its name and its bytes.
    """
    with File(path, max_bytes=max_bytes) as file:
        stored = [entry for entry in file.index.entries if entry.same_as is None]
        dense = sum(entry.nbytes for entry in stored)
        zstd = _zstd(dense)
        made = {"gzip -9": zlib.compressobj(9, wbits=31), "zstd -19": zstd}
        made |= {} if zstd else {"xz -9": lzma.LZMACompressor(preset=9)}
        packers = [_Packed(one) for one in made.values()]
        for entry in stored:
            flat = np.ascontiguousarray(file.raw(entry.name).bits).reshape(-1).view(np.uint8)
            for start in range(0, len(flat), _SLICE):  # small ones, so that Ctrl-C need not wait for long
                part = flat[start : start + _SLICE]
                mapped(partial(_Packed.take, data=part), packers, len(packers))
                progress(entry.name, len(part))
        sizes = dict(zip(made, (packed.end() for packed in packers), strict=True))
        own = file.index.header_bytes + sum(entry.size for entry in stored)
    return {"dense": dense, **sizes, "dcz": own}


class _Packed:
    """Counts the bytes that a compressor makes of what it takes."""

    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor
        self._size = 0

    def take(self, data: Any) -> None:
        if self._compressor is not None:
            self._size += len(self._compressor.compress(data))

    def end(self) -> int | None:
        return None if self._compressor is None else self._size + len(self._compressor.flush())


def _zstd(size: int) -> Any:
    """A compressor of zstd's level 19 for `size` bytes; None where there is none."""
    try:
        return import_module("zstandard").ZstdCompressor(level=19).compressobj(size=size)
    except ImportError:
        pass
    try:
        return import_module("compression.zstd").ZstdCompressor(level=19)
    except ImportError:
        return None


def print_baselines(found: Mapping[str, int | None]) -> None:
    """Print what `baselines` found."""
    table = _table(["", "bytes", "ratio"])
    dense = found["dense"] or 0
    for name, size in found.items():
        table.add_row(name, *(("-", "-") if not size else (f"{size:,}", f"{dense / size:.2f}x")))
    missing = (
        [Text("zstd -19 needs a package that comes with this one: pip install zstandard")]
        if found["zstd -19"] is None
        else []
    )
    _print(_console(), Text(), table, *missing)


def encoded_size(
    tensors: Mapping[str, Tensor],
    coder: str,
    records: Mapping[int, bytes],
    threads: int | None,
    progress: Progress,
) -> int:
    """Bytes of the file that `io.save` would write; nothing is written, and one tensor at a time is in memory.

    Args:
        tensors: by name.
        coder: as of `encode`.
        records: the file's extension records.
        threads: at most so many; None is one a core.
        progress: as of `encode`.
    """
    entries = encode_blobs(tensors, coder, threads, progress, _Nowhere())
    return len(index.write_header(entries, coder, records)) + sum(entry.size for entry in entries)


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


def compare_coders(
    tensors: Mapping[str, Tensor], records: Mapping[int, bytes], threads: int | None, progress: Progress
) -> list[tuple[str, int, float]]:
    """For each coder: its name, the bytes of the file, and the seconds to encode (compiling not counted).

    Args:
        tensors: by name.
        records: the file's extension records.
        threads: at most so many; None is one a core.
        progress: as of `encode`.
    """
    found = []
    for coder in CODERS:
        start = time.perf_counter() - compiled()[0]
        size = encoded_size(tensors, coder, records, threads, progress)
        found.append((coder, size, time.perf_counter() - compiled()[0] - start))
    return found


def print_coders(found: list[tuple[str, int, float]], before: int) -> None:
    """Print what `compare_coders` found, beside the `before` bytes of the source; the smallest in bold."""
    table = _table(["coder", "bytes", "ratio", "seconds"])
    smallest = min(size for _, size, _ in found)
    for coder, size, seconds in found:
        row = coder, f"{size:,}", f"{before / size:.2f}x", f"{seconds:.1f}"
        table.add_row(*row, style="bold" if size == smallest else "")
    _print(_console(), table)

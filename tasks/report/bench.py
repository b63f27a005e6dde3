"""A bench of a run in its report: the picture, the table, and what is said of it in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression._atomic import written
from tasks.report.style import BAR, BLUE, INK, house_style, inline, new_figure, printable
from tasks.report.templates import template
from tasks.report.words import counted, milliseconds
from tasks.secrets import masked

FILE = "bench.json"
BEGIN, END = "<!-- speed -->", "<!-- end of speed -->"  # in a report, around the section


def bench_of(folder: Path) -> dict[str, Any] | None:
    """What was measured of a run; None where nothing was, or it cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return dict(found) if {"ways", "batches", "flops"} <= set(found) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Writes an SVG: how long each way takes for the smallest batch.

    Args:
        result: of a bench.
        path: the picture's.
    """
    with house_style():
        figure = _latency(result, 8)
        with written(path, parents=True) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def inline_picture(key: str, result: Mapping[str, Any]) -> str:
    """The same as SVG inside a page.

    Args:
        key: begins every id in the picture; unique in its page.
        result: of a bench.
    """
    with house_style(INK):
        return inline(_latency(result, 5.2), key, "Milliseconds of a call, by way to run the model")


def _latency(result: Mapping[str, Any], width: float) -> Any:
    """A point a way, from p10 to p99 (of few calls: to the median), on a logarithmic axis."""
    small = str(result["batches"][0])
    rows = [(one["way"], one["batches"][small]) for one in result["ways"] if small in one.get("batches", {})]
    figure, axes = new_figure(width, 1.0 + 0.27 * len(rows))
    for place, (name, one) in enumerate(rows):
        middle, high = one["median_ms"], one["p99_ms"] or one["median_ms"]
        axes.plot([one["p10_ms"], max(high, middle)], [place, place], color=BAR, linewidth=4, solid_capstyle="butt")
        axes.plot(middle, place, "o", color=BLUE, markersize=6)
        axes.annotate(milliseconds(middle), (middle, place), (0, 6), textcoords="offset points", ha="center")
        if name == "dense":
            axes.axvline(middle, color=INK, linewidth=0.6, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_yticks(range(len(rows)), [printable(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.9)
    axes.set_xlabel(f"milliseconds of a call, batch {small}: median, and from p10 to p99")
    return figure


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """What a table has no place for: why ways were left out, notes, FLOPs, energy, and how busy the machine was."""
    for row in result["ways"]:
        if row["why"] is not None:
            yield f"{row['way']}: {row['why']}"
        elif row["note"]:
            yield f"{row['way']}: {row['note']}"
        if why := row.get("memory", {}).get("why"):
            yield f"{row['way']}: memory: {why}"
    yield from _differences(result["ways"])
    yield from _counts(result["flops"])
    yield from _energy(result)
    yield _machine(result["machine"])
    if result["samples"]["repeated"]:
        yield "the validation split has fewer samples than the largest batch: they were repeated"


def _differences(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for of in dict.fromkeys(row.get("of") for row in rows):
        told = [
            f"{row['way']} {'not comparable' if row['difference'] is None else format(row['difference'], '.2g')}"
            for row in rows
            if "difference" in row and row["of"] == of
        ]
        if told:
            yield f"largest difference of an output to {of}: {', '.join(told)}"


def _counts(flops: Mapping[str, Any]) -> Iterator[str]:
    dense, final = flops["dense"], flops["final"]
    share = final["nonzero"] / final["macs"] if final["macs"] else 0.0
    yield (
        f"multiplications a sample: dense {counted(dense['macs'])}, decoded {counted(final['macs'])}, of which "
        f"{counted(final['nonzero'])} ({share:.1%}) with a weight that is not zero"
    )
    if final["left_out"]:
        names = ", ".join(f"{name or 'the model'} ({kind})" for name, kind in final["left_out"].items())
        yield f"multiplications not counted: {names}"


def _energy(result: Mapping[str, Any]) -> Iterator[str]:
    spent = [(row["way"], row["energy"]) for row in result["ways"] if "energy" in row]
    if "why" in result["energy"]:
        yield f"energy: {result['energy']['why']}"
    if spent:
        figures = ", ".join(f"{way} {milliseconds(one['mj'])}" for way, one in spent)
        kind = "NOT MEASURED, " if spent[0][1]["assumed"] else ""
        yield f"energy in mJ a sample ({kind}{spent[0][1]['by']}): {figures}"


def _machine(machine: Mapping[str, Any]) -> str:
    average = "" if machine["average"] is None else f", load average {machine['average']:.1f}"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    told = (
        f"{threads} of {machine['cores']} cores ({machine['cpu']}{average}); at work meanwhile: {machine['own']:.1f} "
        f"cores here, {machine['others']:.1f} elsewhere"
    )
    return f"{told}. THE MACHINE WAS BUSY: trust ratios and CPU time more than times" if machine["busy"] else told


def section_of(folder: Path) -> str:
    """The section of a run's report; where nothing was measured, how to."""
    result = bench_of(folder)
    if result is None:
        return str(template("bench.html.j2").render(bench=None, run=folder.name))
    said, layers = list(sentences(result)), layers_of(result["flops"])
    latency = inline_picture("latency", result)
    return str(template("bench.html.j2").render(bench=result, said=said, layers=layers, latency=latency))


def layers_of(flops: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a layer: multiplications in the dense net, and what is left of them in the decoded one."""
    ends = [{one["name"]: one for one in flops[end]["layers"]} for end in ("dense", "final")]
    return [
        {
            "name": name,
            "kind": (ends[1].get(name) or ends[0][name])["kind"],
            "dense": ends[0].get(name, {}).get("macs"),
            **{key: ends[1].get(name, {}).get(key) for key in ("macs", "nonzero", "density")},
        }
        for name in dict.fromkeys([*ends[0], *ends[1]])
    ]


def renew(page: Path, folder: Path) -> bool:
    """Puts the section into a report that is there; False where it has no place for it, as in older releases.

    Args:
        page: the report.
        folder: of the run that it is about.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        return False
    with written(page) as file:
        file.write(masked(f"{before}{begin}{section_of(folder)}{end}{after}").encode("utf-8", "replace"))
    return True

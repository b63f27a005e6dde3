"""The headline: bytes against loss of EfficientNet-Lite0 and MiniLM, ours and each rival's, in one figure.

`python tests/benchmarks/bench_headline.py FOLDER [--only WORD] [--again] [--draw]`. FOLDER: pictures, see
imagenet_sample.py. Each point is measured once and kept in docs/headline.json, so a command that was killed goes on,
and rivals in an environment of their own are measured by the same command there; what is not installed is said and left
out. `--only` measures points with a word in their names, `--again` also those that are there; `--draw` draws
docs/headline.svg of what is there, and measures nothing; `--pairs` compares points that were measured on this machine
picture by picture (headline_pairs.py). Nothing of ours was chosen on the test inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

DOCS = Path(__file__).parents[2] / "docs"
CACHE = Path(tempfile.gettempdir(), "deep-compression-headline")


@dataclass(frozen=True)
class Point:
    """One way to make a net smaller, at one setting; ``needs`` a package of a distribution."""

    net: str
    way: str
    setting: str
    make: Callable[[Any], Any]
    needs: str = ""
    package: str = ""

    @property
    def name(self) -> str:
        """Its key in the JSON file."""
        return f"{self.net}: {self.way}, {self.setting}"


def points(folder: str) -> Iterator[Point]:
    """All of the figure."""
    import headline_rivals as rivals

    eff, mini = "EfficientNet-Lite0", "MiniLM"
    for ratio in (5, 6, 8, 10, 12):
        yield Point(eff, "reconstruct", f"{ratio}x", lambda net, r=ratio: by_samples(net, ["--ratio", r]))
        yield Point(eff, "dcz compress", f"{ratio}x", lambda net, r=ratio: by_dcz(net, ["--ratio", r]))
    for most in (12_000_000, 9_000_000, 7_500_000, 6_500_000):
        size = ["--target-bytes", most]
        yield Point(mini, "reconstruct", f"{most / 1e6:g} MB", lambda net, size=size: by_samples(net, size))
        yield Point(mini, "dcz compress", f"{most / 1e6:g} MB", lambda net, size=size: by_dcz(net, size))
    for net in (eff, mini):
        for bits in (8, 6, 5, 4):
            yield Point(
                net,
                "NNCodec, rounded a channel",
                f"{bits} bits",
                lambda net, b=bits: rivals.rounded(net, b),
                "nncodec",
                "nncodec",
            )
        for bits in (8, 6, 4, 2):
            yield Point(
                net, "coremltools palettization", f"{bits} bits", lambda net, b=bits: rivals.palette(net, b),
                "coremltools", "coremltools",
            )  # fmt: skip
    yield Point(
        eff, "onnxruntime static int8", "8 bits", lambda net: rivals.static(net, 8), "onnxruntime", "onnxruntime"
    )
    yield Point(
        mini, "onnxruntime dynamic int8", "8 bits", lambda net: rivals.dynamic(net, 8), "onnxruntime", "onnxruntime"
    )
    yield Point(
        mini, "onnxruntime MatMulNBits", "4 bits", lambda net: rivals.by_blocks(net, 4), "onnxruntime", "onnxruntime"
    )
    for bits in (8, 4):
        yield Point(
            mini,
            "torchao weight-only",
            f"{bits} bits",
            lambda net, b=bits: rivals.torchao(net, b),
            "torchao",
            "torchao",
        )


def by_samples(net: Any, size: list[Any]) -> Any:
    """`dcz compress --calibrate`, on samples without labels, vectors in float16; its file read back."""
    recipe = {
        "name": "headline",
        "threads": 1,
        "channels_last": net.test.ndim == 4,
        "python_path": [str(Path(__file__).parent)],
        "stages": [{"stage": "encode"}],
        **net.recipe,
    }
    path = CACHE / f"{net.name}.yaml"
    path.write_text(json.dumps(recipe))
    return by_dcz(net, [*size, "--calibrate", path, "--samples", len(net.calibrate), "--together", 64])


def by_dcz(net: Any, options: list[Any]) -> Any:
    """`dcz compress`, vectors in float16, its file read back; a command that was killed goes on."""
    from safetensors.torch import save_file

    source, small = CACHE / f"{net.name}.safetensors", CACHE / f"{net.name}{''.join(map(str, options[:3]))}.dcz"
    if not source.exists():
        save_file(net.stored(), source)
    command = ["compress", source, small, *options, "--threads", 1]
    subprocess.run(
        [sys.executable, "-m", "deepcompression.cli", *map(str, command)], check=True, stdout=subprocess.DEVNULL
    )
    return small.stat().st_size, net.read(small)


def measured(point: Point, net: Any) -> dict[str, Any]:
    """The figures of a point; what is lost of each input is kept for `pairs`."""
    from headline_nets import judged

    before = spent()
    size, outputs = point.make(net)
    seconds = spent() - before
    losses = net.losses(net.outputs(net.filled(net.state)), outputs)
    torch.save(losses, losses_of(point.name))
    return {
        "bytes": size,
        "cpu_seconds": round(seconds, 1),
        **judged(losses),
        "versions": {name: version_of(name) for name in ("torch", point.package) if name},
        "commit": revision(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
    }


def losses_of(name: str) -> Path:
    """Where what a point loses of each input lies."""
    return CACHE / f"{name.replace(': ', '-').replace(', ', '-')}.pt"


def compare() -> None:
    """The table of pairs, of the points that were measured on this machine."""
    from headline_pairs import COLUMNS, compared
    from numbers_in_docs import write

    rows = json.loads((DOCS / "headline.json").read_text())
    losses = {name: torch.load(losses_of(name)) for name in rows if losses_of(name).exists()}
    found = compared(rows, losses, "EfficientNet-Lite0")
    for one in found:
        print(" | ".join(one))
    packages = {one: version for name in losses for one, version in rows[name]["versions"].items()}
    told = {"command": "python tests/benchmarks/bench_headline.py FOLDER --pairs", "seeds": [0], "commit": revision()}
    told |= {"date": time.strftime("%Y-%m-%d"), "machine": "2 cores, x86-64, Linux", "versions": packages}
    write("headline-pairs", {**told, "columns": COLUMNS, "rows": found})


def spent() -> float:
    """CPU seconds of this process and those that it ran."""
    used = [resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def version_of(name: str) -> str:
    """Of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def revision() -> str:
    """Of this project's code."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def measure(folder: str, only: str, again: bool) -> None:
    """Measures what is not there yet, each point kept as it is done."""
    import headline_nets as nets

    torch.set_num_threads(1)
    CACHE.mkdir(exist_ok=True)
    path = DOCS / "headline.json"
    for point in points(folder):
        rows = json.loads(path.read_text()) if path.exists() else {}
        if only not in point.name or (point.name in rows and not again):
            continue
        if point.needs and importlib.util.find_spec(point.needs) is None:
            print(f"{point.name}: left out, {point.needs} is not installed here", flush=True)
            continue
        net = nets.minilm() if point.net == "MiniLM" else nets.efficientnet(folder)
        try:
            row = measured(point, net)
        except Exception as error:  # a rival that fails here, with these versions, is told and left out
            if not point.needs:
                raise
            print(f"{point.name}: left out, {point.package} failed: {type(error).__name__}: {error}"[:300], flush=True)
            continue
        rows = json.loads(path.read_text()) if path.exists() else {}  # another environment may have added to it
        rows[point.name] = {"net": point.net, "way": point.way, "setting": point.setting, **row}
        path.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        told = {key: value for key, value in row.items() if isinstance(value, int | float)}
        print(point.name, json.dumps(told), flush=True)


def main() -> None:
    """Measures, then draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--only", default="", help="points with this word in their names")
    parser.add_argument("--again", action="store_true", help="measure those that are there too")
    parser.add_argument("--draw", action="store_true", help="draw alone")
    parser.add_argument("--pairs", action="store_true", help="compare alone")
    given = parser.parse_args()
    if given.pairs:
        compare()
        return
    if not given.draw:
        measure(given.folder, given.only, given.again)
    from headline_figure import draw

    draw(json.loads((DOCS / "headline.json").read_text()), DOCS / "headline.svg")


if __name__ == "__main__":
    main()

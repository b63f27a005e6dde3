"""Channels of one range: what the stage `quantize` does with ``equalize: true``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.execution.bench import Bench, Product
from tasks.execution.samples import outputs

if TYPE_CHECKING:
    from deepcompression.structure.constraints import Structure


def equalized(bench: Bench, product: Product) -> Product:
    """The product with channels scaled, so that one scale serves a tensor; it computes what it did."""
    from deepcompression.quantization.equalize import equalize
    from deepcompression.structure.constraints import together

    assert bench.input is not None and product.state is not None
    model = bench.run.edited_model([*bench.input.edits, *product.edits])
    model.load_state_dict(dict(product.state))
    fixed = _fixed(together(bench.input.structure, product.structure))
    made = equalize(model, lambda one: outputs(bench.run, one), fixed)
    return replace(
        product,
        state=made.state,
        report={
            **product.report,
            "equalized": [row.tensor for row in made.layers],
            "methods": [
                *product.report.get("methods", ()),
                {"method": "equalize", "layers": made.layers, "left": made.left},
            ],
        },
        notes=[*product.notes, *_told(made.left)],
    )


def _fixed(structure: Structure) -> dict[str, str]:
    """Why tensors cannot be scaled channel by channel, by name."""
    from deepcompression.network.parametrized import VALUES
    from deepcompression.structure.constraints import SHARED, having, of_order

    found = {name: f"is {word} already" for name, words in structure.items() for word in of_order(words, VALUES)}
    return found | dict.fromkeys(having(structure, SHARED), "shares values")


def _told(left: Mapping[str, str]) -> Iterator[str]:
    """A sentence for all weights that were left for one reason."""
    groups = defaultdict(list)
    for name, why in left.items():
        groups[why].append(name)
    for why, names in groups.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"not equalized: {', '.join(names[:3])}{more}: {why}"

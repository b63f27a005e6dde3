"""Binarization: what weights become, and what goes into layers, of one bit or few; one file each.

Behind each word stands the class that does it. This imports none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from deepcompression import factory

if TYPE_CHECKING:
    from deepcompression.quantization.binary.inputs import BinaryInput
    from deepcompression.quantization.binary.latent import Latent

WEIGHTS: dict[str, str] = {
    "xnor": "deepcompression.quantization.binary.xnor:Xnor",
    "dorefa": "deepcompression.quantization.binary.dorefa_weights:DorefaWeights",
}
ACTIVATIONS: dict[str, str] = {
    "sign": "deepcompression.quantization.binary.sign:Sign",
    "dorefa": "deepcompression.quantization.binary.dorefa_inputs:DorefaInput",
    "scaled_threshold": "deepcompression.quantization.binary.scaled_threshold:ScaledThreshold",
}
MOST_BITS = {"xnor": 1, "sign": 1, "scaled_threshold": 1, "dorefa": 8}  # of each word


def weights_of(word: str) -> type[Latent]:
    """What makes weights so."""
    found: Any = factory.load(WEIGHTS[word])
    return cast("type[Latent]", found)


def inputs_of(word: str) -> type[BinaryInput]:
    """What makes inputs so."""
    found: Any = factory.load(ACTIVATIONS[word])
    return cast("type[BinaryInput]", found)


def misfit(table: dict[str, str], what: str, word: str, bits: object) -> str:
    """Why a word and bits of it are impossible; empty where they are not.

    Args:
        table: ``WEIGHTS`` or ``ACTIVATIONS``.
        what: it is called in messages.
        word: of the table.
        bits: anything.
    """
    if word not in table:
        return f"{what}: kind {word!r} is not known; expected one of {', '.join(table)}"
    most = MOST_BITS[word]
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= most:
        expected = "1; dorefa takes more" if most == 1 else f"1 to {most}"
        return f"{what}: bits {bits} is impossible for {word}, expected {expected}"
    return ""

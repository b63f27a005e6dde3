"""Deep Compression: prune, share, quantize and Huffman-code a network's weights into one small file.

Reading and writing `.dcz` files needs numpy alone; everything about training lives in submodules that import
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcompression.codec.dtypes import RawTensor
    from deepcompression.codec.file import File, inspect, load, save, verify
    from deepcompression.datafree.compress import compress_state

__version__ = "0.3.0"
__all__ = ["File", "RawTensor", "__version__", "compress_state", "inspect", "load", "save", "verify"]


def __getattr__(name: str) -> Any:
    """Import the codec on first use, so that `import deepcompression` stays quick."""
    if name in {"File", "RawTensor", "inspect", "load", "save", "verify"}:
        return getattr(import_module("deepcompression.codec.file"), name)
    if name == "compress_state":
        return import_module("deepcompression.datafree.compress").compress_state
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

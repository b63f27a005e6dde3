"""What a file is that holds no weights for this library, told by its first bytes."""

from __future__ import annotations

import re

LOOKED_AT = 512  # bytes from the beginning that `told` wants
_LFS = b"version https:"
_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype|html|head|\?xml|body)", re.IGNORECASE | re.DOTALL)
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes them; save its weights as .safetensors",
    b"GGUF": "a GGUF file, whose weights are quantized in ways of its own; take the .safetensors that it was made from",
    b"\x1f\x8b": "compressed by gzip; unpack it first (gunzip)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first (unzstd)",
    b"\xfd7zXZ\0": "compressed by xz; unpack it first (unxz)",
    b"BZh": "compressed by bzip2; unpack it first (bunzip2)",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"\x93NUMPY": "one array of numpy; save a mapping of names to tensors, as .safetensors",
}


def told(head: bytes) -> str | None:
    """What a file that begins with `head` is, and what to do; None where that is not known.

    Args:
        head: the first `LOOKED_AT` bytes, or all that there are.
    """
    if not head:
        return "empty; it was perhaps not copied or downloaded to its end"
    if head.startswith(_LFS):
        size = re.search(rb"\nsize (\d+)", head)
        whole = f" ({int(size[1]):,} bytes)" if size else ""
        return f"a pointer of Git LFS, not the file itself{whole}; fetch that by: git lfs pull"
    if _PAGE.match(head):
        return "a web page (HTML), not weights; download the file itself"
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)

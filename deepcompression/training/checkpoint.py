"""The rolling checkpoint of a training loop."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepcompression._atomic import written
from deepcompression.errors import one_line


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes it whole, or not at all.

    Raises:
        StorageError: disk full, or no permission to write.
    """
    with written(path, parents=True) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how torch tells that the operating system refused
            full = shutil.disk_usage(path.parent).free < 1 << 20
            raise OSError(errno.ENOSPC if full else errno.EIO, one_line(error)[:200]) from error


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """What ``save`` wrote; of a damaged file torch's readers raise every kind."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content

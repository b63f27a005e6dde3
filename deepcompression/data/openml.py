"""Images from OpenML, where no local files are."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from deepcompression.errors import DataError, one_line

log = logging.getLogger(__name__)


def fetched(dataset: str, name: str, shape: tuple[int, int, int], size: str, otherwise: str) -> tuple[Tensor, Tensor]:
    """Images (n, *shape) float32 in [0, 1], and classes (n,) int64; kept by scikit-learn, so fetched once.

    Args:
        dataset: OpenML's word for it.
        name: for messages.
        shape: channels, height and width of an image.
        size: of what is fetched, for people.
        otherwise: what to do where OpenML is out of reach, for the message.

    Raises:
        DataError: it is.
    """
    from sklearn.datasets import fetch_openml

    log.warning("%s: fetching from OpenML, some %s, once (kept in ~/scikit_learn_data) ...", name, size)
    try:
        x, y = fetch_openml(dataset, version=1, return_X_y=True, as_frame=False)
    except Exception as error:  # network, TLS, HTTP, parsing: to the user all the same
        reason = one_line(error)[:120]
        raise DataError(
            f"{name}: no local files and OpenML is out of reach ({type(error).__name__}: {reason}); {otherwise}"
        ) from None
    images = torch.from_numpy(np.ascontiguousarray(x, np.float32) / 255).reshape(-1, *shape)
    return images, torch.from_numpy(np.asarray(y).astype(np.int64))

"""Data for the paper's networks, and the forms in which anybody's splits are read."""

from deepcompression.data.images import digits, fashion_mnist, mnist, read_idx, shift, shift_images
from deepcompression.data.splits import Splits, as_splits, split_validation

__all__ = [
    "Splits",
    "as_splits",
    "digits",
    "fashion_mnist",
    "mnist",
    "read_idx",
    "shift",
    "shift_images",
    "split_validation",
]

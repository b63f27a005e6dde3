"""Data for the paper's networks, doors to files that people have, and the forms in which anybody's splits are read."""

from deepcompression.data.answers import answers
from deepcompression.data.cifar import cifar10
from deepcompression.data.pictures import images
from deepcompression.data.shapes import shapes
from deepcompression.data.small_images import digits, fashion_mnist, flip, mnist, read_idx, shift, shift_images
from deepcompression.data.splits import Splits, as_splits, split_validation
from deepcompression.data.tables import tabular
from deepcompression.data.texts import text

__all__ = [
    "Splits",
    "answers",
    "as_splits",
    "cifar10",
    "digits",
    "fashion_mnist",
    "flip",
    "images",
    "mnist",
    "read_idx",
    "shapes",
    "shift",
    "shift_images",
    "split_validation",
    "tabular",
    "text",
]

"""The paper's networks, and others on which methods are measured."""

from deepcompression.models.binary import BinaryMLP, binary_mlp
from deepcompression.models.detector import SSDLite, ssd_lite
from deepcompression.models.paper import (
    DigitsNet,
    LeNet5,
    LeNet300100,
    alexnet,
    digits_net,
    lenet5,
    lenet_300_100,
    vgg16,
)
from deepcompression.models.resnet import ResNet20, resnet20
from deepcompression.models.segmenter import Segmenter, segmenter

__all__ = [
    "BinaryMLP",
    "DigitsNet",
    "LeNet5",
    "LeNet300100",
    "ResNet20",
    "SSDLite",
    "Segmenter",
    "alexnet",
    "binary_mlp",
    "digits_net",
    "lenet5",
    "lenet_300_100",
    "resnet20",
    "segmenter",
    "ssd_lite",
    "vgg16",
]

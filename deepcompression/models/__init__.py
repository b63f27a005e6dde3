"""The paper's networks."""

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

__all__ = ["DigitsNet", "LeNet5", "LeNet300100", "alexnet", "digits_net", "lenet5", "lenet_300_100", "vgg16"]

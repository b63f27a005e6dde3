"""The paper's networks, as Caffe defines them, and one small net for the digits that scikit-learn ships."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class LeNet300100(nn.Module):
    """784-300-100-10, 266,610 parameters (LeCun et al. 1998). Takes (n, 1, 28, 28) or (n, 784)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10)."""
        hidden: Tensor = self.fc1(images.flatten(1)).relu()
        hidden = self.fc2(hidden).relu()
        logits: Tensor = self.fc3(hidden)
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet: conv 20@5x5, pool, conv 50@5x5, pool, fc 500, ReLU, fc 10; 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 1, 28, 28)."""
        maps = self.pool(self.conv1(images))  # (n, 20, 12, 12)
        maps = self.pool(self.conv2(maps))  # (n, 50, 4, 4)
        logits: Tensor = self.fc2(self.fc1(maps.flatten(1)).relu())
        return logits


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers for images (n, 1, 8, 8); 53,002 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.25)
        self.fc1 = nn.Linear(256, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10)."""
        maps = self.pool(self.conv1(images).relu())  # (n, 32, 4, 4)
        maps = self.pool(self.conv2(maps).relu())  # (n, 64, 2, 2)
        hidden = self.fc1(self.drop(maps.flatten(1))).relu()
        logits: Tensor = self.fc2(hidden)
        return logits


def lenet_300_100() -> nn.Module:
    """LeNet-300-100, untrained."""
    return LeNet300100()


def lenet5() -> nn.Module:
    """Caffe's LeNet-5, untrained."""
    return LeNet5()


def digits_net() -> nn.Module:
    """A net for 8x8 digits, untrained."""
    return DigitsNet()


def alexnet(classes: int = 1000) -> nn.Module:
    """Caffe's AlexNet with grouped convolutions (Krizhevsky et al. 2012), untrained; 60,965,224 parameters.

    Takes (n, 3, 227, 227). The dropout before fc7 and fc8 is ``classifier.drop6`` and ``classifier.drop7``.
    """
    features = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(3, 96, 11, stride=4), relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, 2), norm1=_norm(),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2), relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, 2), norm2=_norm(),
        conv3=nn.Conv2d(256, 384, 3, padding=1), relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2), relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2), relu5=nn.ReLU(), pool5=nn.MaxPool2d(3, 2),
    )  # fmt: skip
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(features),
            flatten=nn.Flatten(),
            classifier=_classifier(256 * 6 * 6, classes),
        )
    )


def vgg16(classes: int = 1000) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2014), untrained; 138,357,544 parameters. Takes (n, 3, 224, 224)."""
    features = OrderedDict[str, nn.Module]()
    channels = 3
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for number in range(1, depth + 1):
            features[f"conv{block}_{number}"] = nn.Conv2d(channels, width, 3, padding=1)
            features[f"relu{block}_{number}"] = nn.ReLU()
            channels = width
        features[f"pool{block}"] = nn.MaxPool2d(2)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(features),
            flatten=nn.Flatten(),
            classifier=_classifier(512 * 7 * 7, classes),
        )
    )


def _norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def _whole(features: OrderedDict[str, nn.Module], classifier: nn.Module) -> nn.Module:
    return nn.Sequential(
        OrderedDict[str, nn.Module](features=nn.Sequential(features), flatten=nn.Flatten(), classifier=classifier)
    )


def _classifier(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            fc6=nn.Linear(inputs, 4096), relu6=nn.ReLU(), drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096, 4096), relu7=nn.ReLU(), drop7=nn.Dropout(0.5),
            fc8=nn.Linear(4096, classes),
        )
    )  # fmt: skip

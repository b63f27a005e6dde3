"""Models by a hub's name: built untrained, published weights of a cache, and what is missing in one line."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from deepcompression import factory
from deepcompression.errors import FactoryError, WeightsError
from deepcompression.models import hub
from deepcompression.models.hub_common import Preparation

URL = "https://example.invalid/models/net-0123abcd.pth"


class Entry(SimpleNamespace):
    """One published checkpoint, as torchvision's enums have them."""


class Published(dict):
    def __iter__(self):
        return iter(self.values())


def _preset():
    bilinear = SimpleNamespace(value="bilinear")
    return SimpleNamespace(resize_size=[256], crop_size=[224], mean=[0.5] * 3, std=[0.25] * 3, interpolation=bilinear)


@pytest.fixture
def torchvision(monkeypatch):
    """torchvision, as far as it is asked: one net with a backbone, one published checkpoint."""

    def net(*, weights="DEFAULT", weights_backbone="DEFAULT", num_classes=7):
        assert (weights, weights_backbone) == (None, None)
        return nn.Linear(3, num_classes)

    entry = Entry(name="IMAGENET1K_V1", url=URL, transforms=_preset)
    models = ModuleType("torchvision.models")
    models.list_models = lambda: ["net"]
    models.get_model_builder = lambda name: net
    models.get_model_weights = lambda name: Published(DEFAULT=entry, IMAGENET1K_V1=entry)
    module = ModuleType("torchvision")
    module.models = models
    monkeypatch.setitem(sys.modules, "torchvision", module)


@pytest.mark.usefixtures("torchvision")
def test_a_name_builds_the_untrained_model():
    """Nothing is fetched: weights, of a backbone too, are none unless they are named beside the factory."""
    assert factory.build("torchvision:net", {"num_classes": 2}).out_features == 2
    with pytest.raises(FactoryError, match="weights are named beside the factory"):
        factory.build("torchvision:net", {"weights": "DEFAULT"})
    with pytest.raises(FactoryError, match=r"torchvision has no model 'nets'; the nearest are net"):
        factory.load("torchvision:nets")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18", "transformers:AutoModel"])
def test_a_missing_package_is_one_line(monkeypatch, spec):
    """It says what to install."""
    monkeypatch.setitem(sys.modules, spec.partition(":")[0], None)
    with pytest.raises(FactoryError, match=r"needs \w+: pip install 'deep-compression\[hub\]'"):
        factory.load(spec)


def test_a_torchvision_of_another_torch_is_one_line(monkeypatch):
    """Its wheel on PyPI is for CUDA; beside a CPU build of torch it does not import, for a reason that says nothing."""

    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("deepcompression.models.hub_common.import_module", fails)
    monkeypatch.setattr("deepcompression.models.hub_common.metadata.version", lambda name: "0.28.0")
    with pytest.raises(FactoryError, match=r"torchvision 0\.28\.0 is built for another torch") as caught:
        factory.load("torchvision:resnet18")
    assert torch.__version__ in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("torchvision")
def test_published_weights_come_from_the_cache_or_one_line_says_where_they_belong(tmp_path, monkeypatch):
    """Offline, the file that lies in torch's cache is taken; without it the message names file and folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        WeightsError, match=r"net-0123abcd\.pth is not in .*checkpoints and cannot be fetched"
    ) as caught:
        hub.weights_of("torchvision:net", {}, "hub:default")
    assert "\n" not in str(caught.value)
    path = tmp_path / "checkpoints" / "net-0123abcd.pth"
    path.write_bytes(b"")
    assert hub.weights_of("torchvision:net", {}, "hub:IMAGENET1K_V1") == path
    with pytest.raises(WeightsError, match="has no published weights 'V9'; it has IMAGENET1K_V1"):
        hub.weights_of("torchvision:net", {}, "hub:V9")
    with pytest.raises(WeightsError, match=r"goes with a factory of torchvision, timm, transformers"):
        hub.weights_of("deepcompression.models:lenet5", {}, "hub:default")


@pytest.mark.usefixtures("torchvision")
def test_how_a_model_takes_pictures_is_the_hubs_own_word():
    """Resize, crop, mean and deviation of the published weights."""
    found = hub.preparation_of("torchvision:net", {})
    assert found == Preparation(256, (224, 224), (0.5,) * 3, (0.25,) * 3, "bilinear")


def test_transformers_preparation_is_read_from_its_folder(tmp_path, monkeypatch):
    """Of a folder with preprocessor_config.json; sizes as numbers or by edge."""
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    given = {"do_center_crop": True, "crop_size": {"height": 8, "width": 6}, "size": {"shortest_edge": 9}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**given, "resample": 3, "image_mean": [0, 0, 0]}))
    found = hub.preparation_of("transformers:AutoModelForImageClassification", {"config": str(tmp_path)})
    assert (found.resize, found.crop, found.mean, found.interpolation) == (9, (8, 6), (0, 0, 0), "bicubic")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FactoryError, match=r"has no preprocessor_config\.json"):
        hub.preparation_of("transformers:AutoModelForImageClassification", {"config": str(empty)})


def _real(package):
    """Skips where the environment has no such library. Beside a CPU build of torch, torchvision's wheel lacks operators
    that models do not use: their names are enough for them.
    """
    for name in {"torchvision", package} if package == "timm" else {package}:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if package != "transformers":
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
            for name in ("nms", "qnms"):
                LIBRARIES[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


LIBRARIES: list[torch.library.Library] = []  # an operator's name goes with what defined it


def test_real_torchvision_models_and_their_preparation():
    """Of the library itself: names, arguments, and how pictures are taken."""
    _real("torchvision")
    model = factory.build("torchvision:squeezenet1_1", {"num_classes": 5})
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    found = hub.preparation_of("torchvision:mobilenet_v2", {}, "IMAGENET1K_V1")
    assert (found.resize, found.crop, found.interpolation) == (256, (224, 224), "bilinear")


def test_real_timm_models_and_their_preparation():
    """Of the library itself, a name with a tag too."""
    _real("timm")
    model = factory.build("timm:mobilenetv3_small_050.lamb_in1k", {"num_classes": 5})
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    found = hub.preparation_of("timm:mobilenetv3_small_050", {})
    assert (found.resize, found.crop, found.interpolation) == (256, (224, 224), "bicubic")


def test_real_transformers_models_by_configuration(tmp_path):
    """Of the library itself: by a mapping, and by a folder whose weights are found."""
    _real("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"model_type": "bert", "vocab_size": 30, **small}
    model = factory.build("transformers:AutoModelForSequenceClassification", {"config": config, "num_labels": 3})
    assert model(torch.ones(2, 4, dtype=torch.int64)).logits.shape == (2, 3)
    model.save_pretrained(tmp_path)
    again = factory.build("transformers:AutoModelForSequenceClassification", {"config": str(tmp_path)})
    assert again.config.num_labels == 3 and next(again.parameters()).dtype == torch.float32
    assert hub.weights_of("transformers:AutoModel", {"config": str(tmp_path)}, "hub:default") == tmp_path

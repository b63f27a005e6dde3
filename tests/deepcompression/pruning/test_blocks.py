"""Residual blocks: which there are, which go first, and through a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepcompression import torch as files
from deepcompression.errors import StructureError
from deepcompression.models.resnet import resnet20
from deepcompression.network.edits.apply import apply_all
from deepcompression.pruning.blocks import choose, edits_of, residual_blocks, without


class Squeezed(nn.Module):
    """A gate of the channels, in a block with a shortcut; and a plain pair of layers of one shape."""

    def __init__(self) -> None:
        super().__init__()
        gate = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid()]
        self.gate, self.conv, self.norm = nn.Sequential(*gate), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x))
        return torch.relu(x + found * self.gate(found))


class Token(nn.Module):
    """A block of a transformer, the norm before or behind."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow, self.first = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), first

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.narrow(self.wide(self.norm(x) if self.first else x).relu())
        return x + found if self.first else self.norm(x + found)


def test_modules_with_a_shortcut_are_found_and_no_others() -> None:
    """In a ResNet those that keep the shape; not what only scales its channels, nor two layers without a shortcut; in
    transformers, with the norm before or behind the addition.
    """
    torch.manual_seed(0)
    found = residual_blocks(resnet20().eval(), lambda one: one(torch.randn(2, 1, 28, 28)))
    assert len(found) == 7 and not any(name.endswith("conv1") for name in found)
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(Squeezed(), plain, Squeezed()).eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    assert residual_blocks(model, lambda one: one(torch.randn(2, 4, 6, 6))) == ["0", "2"]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    tokens = nn.Sequential(Token(True), nn.Linear(8, 8), Token(False)).eval()
    assert residual_blocks(tokens, lambda one: one(torch.randn(2, 5, 8))) == ["0", "2"]


def test_blocks_go_by_what_is_lost_and_a_new_model_becomes_the_same(tmp_path: Path) -> None:
    """One whose branch gives nothing goes first; thin is what skipping gives; the last block stays."""
    torch.manual_seed(0)
    build = lambda: nn.Sequential(Token(True), Token(True), Token(True), nn.Linear(8, 2))  # noqa: E731
    model, x = build().eval(), torch.randn(20, 5, 8)
    with torch.no_grad():
        model[1].narrow.weight.mul_(1e-4)
        model[1].narrow.bias.zero_()
        expected = model(x)
        loss = lambda one: float((one(x) - expected).square().mean())  # noqa: E731
        blocks = residual_blocks(model, lambda one: one(x))
        [first] = choose(model, blocks, lambda gone: len(gone) == 1, loss)
        assert first.name == "1" and first.loss < 1e-6 and first.weights == 8 * 16 * 2 + 24 + 16
        gone = choose(model, blocks, lambda gone: len(gone) == 2, loss)
        assert gone[0] == first and gone[1].loss > 1e-3
        with without(model, [one.name for one in gone]):
            skipped = model(x)
        apply_all(model, edits_of(gone))
        assert torch.equal(model(x), skipped)
        files.save(model.state_dict(), tmp_path / "a.dcz", edits=edits_of(gone))
        assert torch.equal(files.load_into(build(), tmp_path / "a.dcz")(x), skipped)
    with pytest.raises(StructureError, match="prune: one of 3 residual blocks must stay, which is more than asked"):
        choose(build(), blocks, lambda gone: False, lambda one: 0.0)

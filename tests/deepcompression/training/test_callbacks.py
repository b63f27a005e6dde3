"""Callbacks of three trainers: the real ones where they are installed, and what they share without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import FactoryError, StructureError
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.l0 import L0
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.training.guest import Guest
from deepcompression.training.method import Method

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
STEPS = 24


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


def methods() -> list[Method]:
    return [GradualPruning({"net.0": 0.25}), TrainedSharing(2)]


def promised(model: nn.Sequential, accounts: list[Any]) -> None:
    weight = model[0].weight.detach()
    assert isinstance(model[0].weight, nn.Parameter) and int((weight != 0).sum()) <= 36
    assert len(weight[weight != 0].unique()) <= 5 and len(model[2].weight.unique()) <= 5
    assert [method.name for method, _ in accounts] == ["prune", "share"]
    assert not model[0]._forward_hooks and not model._forward_hooks


def loader() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)


def test_optimizers_and_schedulers_that_know_no_methods_train_what_there_is() -> None:
    """What a method replaced goes, what it put there is trained, what learns at a rate of its own has it, and the
    scheduler drives it like the rest.
    """
    model, apart = net(), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([*model.parameters(), apart], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    guest = Guest([TrainedSharing({"0": 2}), L0({"2": 10.0}, speed=20)], {})
    session = guest.enter(model)
    guest.adopt([optimizer], [scheduler])
    guest.begin(4)
    first, second = optimizer.param_groups
    trained = {id(one) for group in (first, second) for one in group["params"]}
    assert trained == {id(one) for one in (*model.parameters(), apart)}
    for _ in range(4):
        guest.ready(optimizer)
        optimizer.zero_grad()
        guest.loss(nn.functional.cross_entropy(model(X), Y), (X, Y)).backward()
        optimizer.step()
        scheduler.step()
        guest.stepped()
        assert second["lr"] == pytest.approx(20 * first["lr"])
    guest.leave()
    assert len(session.accounts) == 2 and len(model[0].weight.unique()) <= 5


def test_what_a_guest_cannot_do_is_told() -> None:
    """A training without end, steps before anything is attached, and outputs that nobody saw."""
    from deepcompression.distillation.logits import Distillation

    guest, model = Guest([Distillation()], {"teacher": lambda batch: batch}), net()
    with pytest.raises(StructureError, match="methods are not attached: give the callback to the trainer before"):
        guest.stepped()
    guest.enter(model)
    with pytest.raises(StructureError, match="give it max_epochs or max_steps"):
        guest.begin(float("inf"))
    with pytest.raises(StructureError, match=r"called only a part of the model: name that part, as part=lambda"):
        guest.loss(torch.zeros(()), X)
    guest.leave(failed=True)
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("module", "package"),
    [("in_lightning", "lightning"), ("in_transformers", "transformers"), ("in_mmengine", "mmengine")],
)
def test_a_trainer_that_is_missing_is_one_line(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback out of an import."""
    import importlib
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"deepcompression.training.{module}", raising=False)
    real = __import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *rest, **more)

    monkeypatch.setattr("builtins.__import__", without)
    with pytest.raises(FactoryError, match=f"^{module}: needs {package}: pip install 'deep-compression"):
        importlib.import_module(f"deepcompression.training.{module}")


@pytest.mark.slow
def test_lightning(tmp_path: Path) -> None:
    """In its Trainer, with gradients accumulated; killed half-way and gone on, the same weights."""
    lightning = pytest.importorskip("lightning")
    from deepcompression.training.in_lightning import MethodsCallback

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def training_step(self, batch: Any, number: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def fit(epochs: int, stop: int | None = None, back: Path | None = None) -> tuple[Any, Any]:
        callback, module = MethodsCallback(methods()), Lit()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=2,
            callbacks=[callback, *([Stop(stop)] if stop else [])],
        )  # fmt: skip
        trainer.fit(module, loader(), ckpt_path=back)
        return module, callback

    class Stop(lightning.Callback):  # type: ignore[misc, name-defined]
        def __init__(self, epochs: int) -> None:
            self.epochs = epochs

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch + 1 == self.epochs:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                raise ValueError("killed")

    whole, callback = fit(8)
    promised(whole.net, callback.accounts)
    assert callback.guest.session.now.step == STEPS
    with pytest.raises(ValueError, match="killed"):
        fit(8, stop=4)
    again, callback = fit(8, back=tmp_path / "half.ckpt")
    promised(again.net, callback.accounts)
    assert callback.guest.session.now.step == STEPS
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in whole.state_dict().items())


@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    """In its Trainer, with a teacher; killed half-way and gone on, the same structure."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments
    from transformers.modeling_outputs import SequenceClassifierOutput

    from deepcompression.distillation.logits import Distillation
    from deepcompression.training.in_transformers import MethodsCallback

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.net(x)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)

    teacher = net().eval()
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    def trained(back: str | None = None) -> tuple[Any, Any]:
        callback = MethodsCallback([*methods(), Distillation(weight=0.3)], teacher=lambda batch: teacher(batch["x"]))
        args = TrainingArguments(
            str(tmp_path), num_train_epochs=4, per_device_train_batch_size=16, report_to=[], save_steps=12,
            use_cpu=True, disable_tqdm=True, learning_rate=0.01,
        )  # fmt: skip
        model = Classifier()
        trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=back)
        return model, callback

    whole, callback = trained()
    accounts = callback.accounts
    assert [method.name for method, _ in accounts] == ["prune", "share", "distil"]
    promised(whole.net, accounts[:2])
    assert callback.guest.session.now.step == STEPS
    again, callback = trained(str(tmp_path / "checkpoint-12"))
    promised(again.net, callback.accounts[:2])
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in whole.state_dict().items())


@pytest.mark.slow
def test_mmengine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its Runner, with a small detector and a penalty; killed half-way and gone on, the same structure."""
    pytest.importorskip("mmengine")
    pytest.importorskip("cv2")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # MMEngine 0.10 reads no checkpoint of its own without
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    from deepcompression.training.in_mmengine import MethodsHook

    class Detector(BaseModel):  # type: ignore[misc]
        """A class and a box at each place of a picture."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, pictures: Tensor, boxes: Tensor, mode: str = "tensor") -> Any:
            out = self.head(self.backbone(pictures))
            if mode != "loss":
                return out
            return {
                "loss_cls": nn.functional.binary_cross_entropy_with_logits(out[:, 0], boxes[:, 0]),
                "loss_box": [nn.functional.l1_loss(out[:, 1:], boxes[:, 1:])],
                "mean": out.mean().detach(),
            }

    pictures = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    boxes = (pictures > 0.5).float().expand(-1, 5, -1, -1).contiguous()
    data = torch.utils.data.TensorDataset(pictures, boxes)

    def trained(resume: bool) -> tuple[Any, Any, Any]:
        hook = MethodsHook([GradualPruning({"backbone.0": 0.3}), TrainedSharing({"head": 2}), L0({"backbone.2": 1.0})])
        model = Detector()
        runner = Runner(
            model, str(tmp_path), train_dataloader=torch.utils.data.DataLoader(data, batch_size=8),
            train_cfg={"by_epoch": True, "max_epochs": 6}, resume=resume,
            load_from=str(tmp_path / "epoch_3.pth") if resume else None,
            optim_wrapper={"optimizer": {"type": "Adam", "lr": 0.01}, "accumulative_counts": 2},
            param_scheduler={"type": "MultiStepLR", "milestones": [2], "by_epoch": True},
            custom_hooks=[hook], experiment_name=f"t{resume}", log_level="ERROR",
        )  # fmt: skip
        runner.train()
        return model, hook, runner

    whole, hook, _ = trained(False)
    assert [method.name for method, _ in hook.accounts] == ["prune", "l0", "share"]
    assert hook.guest.session.now.step == 12
    assert int((whole.backbone[0].weight != 0).sum()) <= 0.3 * 72 + 1 and len(whole.head.weight.unique()) <= 5
    assert isinstance(whole.backbone[2].weight, nn.Parameter)
    again, hook, _ = trained(True)
    assert hook.guest.session.now.step == 12
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in whole.state_dict().items())

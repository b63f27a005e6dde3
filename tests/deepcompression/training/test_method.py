"""Methods in training loops that are not ours: bare ones, and Lightning's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.distillation.logits import Distillation
from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.l0 import L0
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.structure import check
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.loop import train
from deepcompression.training.method import Method
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem
from deepcompression.training.session import Session, attach

OWN_LOOP = Path(__file__).parents[3] / "docs" / "own-loop.md"
X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
EPOCHS = 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(EPOCHS):
        yield from zip(X.split(16), Y.split(16), strict=True)


def loop(model: nn.Module, methods: list[Method], rate: float = 0.01, **given: Any) -> Session:
    """A bare loop, as in the docs."""
    with attach(model, methods, EPOCHS * 6, **given) as session:
        optimizer = torch.optim.Adam(session.parameters(lr=rate))
        for batch in batches():
            optimizer.zero_grad()
            outputs = model(batch[0])
            session.loss(nn.functional.cross_entropy(outputs, batch[1]), batch, outputs).backward()
            optimizer.step()
            session.step()
    return session


class Module(nn.Module):
    """A module with the hooks of Lightning's."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net(), steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.session = attach(self.net, [GradualPruning(0.25), TrainedSharing(2)], self.steps)
        return torch.optim.Adam(self.session.parameters(lr=0.01))

    def training_step(self, batch: Any, number: int) -> Tensor:
        outputs = self.net(batch[0])
        return self.session.loss(nn.functional.cross_entropy(outputs, batch[1]), batch, outputs)

    def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
        self.session.step()

    def on_train_end(self) -> None:
        self.session.close()


def promised(module: Module) -> None:
    weight = module.net[0].weight.detach()
    assert int((weight != 0).sum()) <= 36 and len(weight[weight != 0].unique()) <= 4
    assert module.session.now.step == module.steps
    assert [method.name for method, _ in module.session.accounts] == ["prune", "share"]


def test_methods_of_all_kinds_work_in_a_bare_loop() -> None:
    """Zeros of one, gates of another, values of a third and a teacher, side by side: the baked model has them all."""
    model, before, teacher = net(), net(), net().eval()
    with torch.no_grad():
        before[0].weight[:2] = 0
    model.load_state_dict(before.state_dict())
    methods = [
        Distillation(weight=0.3),
        TrainedSharing(2),
        GradualPruning({"0": 0.25}),
        L0({"2": 10.0}, speed=20),
    ]
    session = loop(model, methods, teacher=lambda batch: teacher(batch[0]), structure={"0.weight": ("zeros",)})
    assert [method.name for method, _ in session.accounts] == ["prune", "l0", "share", "distil"]
    for i in (0, 2):
        weight = model[i].weight.detach()
        alive = weight[weight != 0]
        assert 0 < len(alive.unique()) <= 4 and len(alive) < 0.95 * weight.numel()
    assert int((model[0].weight != 0).sum()) <= 36 and bool((model[0].weight[:2] == 0).all())
    for method, account in session.accounts:
        if method.name != "share":
            check.check(plain_state(before), plain_state(model), account.structure)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_bare_loop_gives_the_bits_that_train_gives() -> None:
    """The same method, batches and optimizer: whose loop it is does not matter."""
    ours, theirs = net(), net()
    problem = Problem((X, Y), (X, Y), batch_size=16)
    sgd = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1, "fused": False}}
    # ramp 1: only the last state can be the best
    train(ours, problem, Plan(EPOCHS, sgd, "constant", compute=Compute("cpu")), [GradualPruning(0.25, ramp=1.0)])
    order = Batches(problem.train, 16, Compute("cpu"), torch.Generator().manual_seed(0))
    with attach(theirs, [GradualPruning(0.25, ramp=1.0)], EPOCHS * len(order)) as session:
        optimizer = torch.optim.SGD(session.parameters(), lr=0.1, fused=False)
        for _ in range(EPOCHS):
            for batch in order:
                optimizer.zero_grad()
                outputs = theirs(batch[0])
                session.loss(nn.functional.cross_entropy(outputs, batch[1]), batch, outputs).backward()
                optimizer.step()
                session.step(optimizer)
    assert all(torch.equal(one, theirs.state_dict()[name]) for name, one in ours.state_dict().items())


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([GradualPruning(0.5), L0({"2": 1.0})], r"2\.weight: prune and l0 both claim its sparsity; leave it to one"),
        ([TrainedSharing(2), TrainedSharing(3)], r"0\.weight: share and share both claim its values"),
        ([GradualPruning(0.5, criterion="wanda")], "criterion wanda needs samples of the training data; give attach"),
        ([Distillation()], r"distil needs a teacher; give attach\(\) or train\(\) teacher="),
    ],
)
def test_what_cannot_work_is_refused_before_training(methods: list[Method], message: str) -> None:
    """In one line, and the model is as it was."""
    model = net()
    with pytest.raises(StructureError, match=message):
        attach(model, methods, 10)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "\n" not in message


def test_samples_are_what_a_criterion_measures_on() -> None:
    """Batches as the loop has them are enough, with the model where it is; ``forward`` where it takes other parts."""
    silent = X.clone()
    silent[:, 2] = 0
    for given in ({"samples": [(silent, Y)]}, {"samples": [{"x": silent}], "forward": lambda one, it: one(it["x"])}):
        model = net()
        with torch.no_grad():
            model[0].weight[:, 2] = 100.0
        loop(model, [GradualPruning({"0": 0.5}, criterion="wanda")], rate=0.0, **given)
        assert bool((model[0].weight[:, 2] == 0).all()) and int((model[0].weight != 0).sum()) == 72


def test_hooks_are_enough() -> None:
    """Where training is in callbacks, the same calls and ``close`` give the same structure; going on is told."""
    module = Module(24)
    optimizer = module.configure_optimizers()
    for number, batch in enumerate(batches()):
        optimizer.zero_grad()
        module.training_step(batch, number).backward()
        optimizer.step()
        module.on_train_batch_end(None, batch, number)
    module.on_train_end()
    promised(module)


def test_a_loop_longer_than_it_said_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Schedules have ended: a wrong count of steps must not stay unseen."""
    with attach(net(), [GradualPruning(0.5)], 2) as session:
        for _ in range(4):
            session.step()
    assert [one.getMessage() for one in caplog.records] == [
        "training goes on after its 2 total_steps: methods are done with it"
    ]


def test_lightning_trains_with_methods(tmp_path: Path) -> None:
    """In a real Trainer the same hooks give the same structure."""
    lightning = pytest.importorskip("lightning")

    class Lit(Module, lightning.LightningModule):  # type: ignore[misc, name-defined]
        """The same hooks, called by Lightning."""

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **quiet
    )
    module = Lit(24)
    trainer.fit(module, loader)
    promised(module)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", OWN_LOOP.read_text(encoding="utf-8"), re.S)


def test_the_page_of_the_docs_runs() -> None:
    """What a reader copies works as it stands: the bare loop."""
    names: dict[str, Any] = {}
    exec(blocks()[0], names)
    assert names["density"] == pytest.approx(0.2, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "package"), [(1, "lightning"), (2, "accelerate"), (3, "cv2")])
def test_callbacks_of_the_docs_run(block: int, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it stands, where its trainer is installed."""
    pytest.importorskip({2: "transformers", 3: "mmengine"}.get(block, package))
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks()[0], names)
    exec(blocks()[block], names)
    assert names["density"] == pytest.approx(0.2, abs=0.01)


def test_hooks_of_the_docs_run(tmp_path: Path) -> None:
    """The same calls in hooks of Lightning's, where it is installed."""
    lightning = pytest.importorskip("lightning")
    names: dict[str, Any] = {}
    exec(blocks()[0], names)
    exec(blocks()[4], names)
    module = names["Compressed"](nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False
    )
    trainer.fit(module, torch.utils.data.DataLoader(names["batches"], batch_size=None))
    assert float((module.net[0].weight != 0).float().mean()) == pytest.approx(0.2, abs=0.01)

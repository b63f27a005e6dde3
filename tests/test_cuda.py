"""Every stage and every method on a GPU: DEEPCOMPRESSION_TEST_CUDA=1 python -m pytest tests/test_cuda.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from every_line import Case, of_method, of_stage, small_run
from torch import nn

from deepcompression.distillation.hints import Hints
from deepcompression.training.device import Compute
from deepcompression.training.loop import _Loop, train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem
from deepcompression.training.team import joined
from tasks.execution.run import Run
from tasks.methods import METHODS
from tasks.stages import OTHERS, STAGES

if not torch.cuda.is_available():
    pytest.skip("no CUDA, or not asked for (DEEPCOMPRESSION_TEST_CUDA=1)", allow_module_level=True)

LINES = [*((of_stage, name) for name in (*STAGES, *OTHERS)), *((of_method, name) for name in METHODS)]
ADAM = {"factory": "torch.optim:Adam", "kwargs": {"lr": 0.01}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run on a small net, its dense model, made on the CPU, in the store."""
    with small_run(tmp_path_factory.mktemp("cuda")) as made:
        yield made


@pytest.mark.parametrize(("cases", "name"), LINES, ids=[f"{of.__name__[3:]} {name}" for of, name in LINES])
def test_every_line_works_as_on_the_cpu(
    cases: Callable[[str], list[Case]], name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tensors, constraints and edits, a loss nearby; and stopped in the second epoch it goes on."""
    for number, case in enumerate(cases(name)):
        here = replace(run, device="cuda", store_folder=str(tmp_path / f"s{number}"))
        begun = _copied(case, run, here)
        if case.settings.trains:
            with monkeypatch.context() as patch:
                patch.setattr(_Loop, "_step", _stopping(_Loop._step, 6))
                with pytest.raises(KeyboardInterrupt):
                    case.run(begun)
        found, wanted = case.run(begun), case.run(run)
        assert found.structure.keys() == wanted.structure.keys() and len(found.edits) == len(wanted.edits)
        assert found.numbers["val_loss"] == pytest.approx(wanted.numbers["val_loss"], abs=0.35)


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bfloat16"}, {"channels_last": True}, {"compiled": True}, {"evaluate_precision": "bfloat16"}],
)
def test_options_of_a_training(changes: dict[str, Any]) -> None:
    """A convolutional net learns with each, and ends as ordinary float32 parameters."""
    model = _net()
    done = train(model, _problem(), Plan(6, ADAM, compute=Compute(device="cuda", **changes)), [])
    assert done.fit.best_metric > 0.8 and {one.dtype for one in model.parameters()} == {torch.float32}


def test_the_model_is_on_the_device_before_methods_look_at_it() -> None:
    """Hints run it once at the beginning, to learn shapes."""
    teacher = _net()
    compute = Compute(device="cuda")
    done = train(_net(), _problem(), Plan(2, ADAM, compute=compute), [Hints({"0": "0"})], teacher=teacher)
    assert len(done.fit.history) == 2


def test_a_team_of_one_gpu_by_nccl(tmp_path: Path) -> None:
    """The path of several devices, as far as one shows it: the same weights as without a team."""
    models = _net(), _net()
    plan = Plan(2, ADAM, compute=Compute(device="cuda"))
    with joined(0, 1, tmp_path / "place", "cuda") as team:
        train(models[0], _problem(), plan, [], team=team)
    train(models[1], _problem(), plan, [])
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def _copied(case: Case, run: Run, here: Run) -> Run:
    """The same run, with what the case begins with in its store."""
    case.source(run)
    shutil.copytree(run.store_folder, here.store_folder)
    return here


def _stopping(step: Callable[..., Any], calls: int) -> Callable[..., Any]:
    count = iter(range(1, calls + 1))

    def stopped(*given: Any, **more: Any) -> Any:
        if next(count) == calls:
            raise KeyboardInterrupt
        return step(*given, **more)

    return stopped


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
    )


def _problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 1, 8, 8, generator=generator)
    pair = (x, x[:, 0, :3, 0].argmax(1))
    return Problem(pair, pair, batch_size=24)

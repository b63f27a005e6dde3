"""Sparse activations: thresholds from samples, through a file, and a penalty while training."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepcompression import torch as files
from deepcompression.errors import EditError, StructureError
from deepcompression.network.edits.apply import apply, check_values
from deepcompression.network.edits.quantize_values import Site
from deepcompression.pruning.activation_sparsity import ActivationSparsity
from deepcompression.pruning.activations import Magnitudes, inputs_of, put_thresholds, zeros
from deepcompression.training.method import Context
from deepcompression.training.session import attach

SECOND = Site("2", "input", 0)


def net() -> nn.Sequential:
    """Two layers, the second behind a ReLU."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).eval()


def context(x: torch.Tensor) -> Context:
    """These samples."""
    return Context(samples=lambda _: [x])


@given(st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_at_least_the_part_lies_below_and_never_all(values: list[float], part: float) -> None:
    """For any values: as many as asked for, unless that were all; what is above the threshold stays."""
    seen, value = Magnitudes(), torch.tensor(values)
    seen.add(value)
    below = (value.abs() <= seen.threshold(part)).float().mean()
    rest = value.abs().max() * (1 - 1 / 256)
    assert bool((value == 0).all()) or below < 1 or value.abs().max() < 1e-37
    assert below >= part - 1e-6 or bool((value.abs()[value.abs() > seen.threshold(part)] >= rest).all())


def test_the_part_that_is_asked_for_becomes_zero_and_stays_so_in_the_file(tmp_path: Path) -> None:
    """Of what a ReLU leaves too; a new model, and one that runs from codes, give the same from the file."""
    model, x = net(), torch.randn(400, 6)
    inputs = inputs_of(model, {"2": 0.8, "default": 0.3})
    assert {site.module: part for site, part in inputs.sites.items()} == {"0": 0.3, "2": 0.8}
    dense = model(x)
    found, edits = put_thresholds(model, context(x), inputs.sites, 400)
    shares = zeros(model, found, lambda one: iter([one(x)]))
    assert shares[SECOND] == pytest.approx(0.8, abs=0.03) and shares[Site("0", "input", 0)] == pytest.approx(
        0.3, abs=0.01
    )
    assert not torch.allclose(model(x), dense)
    small = x.where(x.abs() > found[Site("0", "input", 0)], 0)
    hidden = model[0].weight @ small.T + model[0].bias[:, None]
    hidden = hidden.relu().where(hidden > found[SECOND], 0)
    assert torch.allclose(model(x), (model[2].weight @ hidden + model[2].bias[:, None]).T, atol=1e-5)
    files.save(model.state_dict(), tmp_path / "a.dcz", edits=edits)
    assert torch.equal(files.load_into(net(), tmp_path / "a.dcz")(x), model(x))
    assert torch.allclose(files.run(net(), tmp_path / "a.dcz", x[:1], form="codes")(x), model(x), atol=1e-5)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_two_values_are_not_both_made_zero() -> None:
    """Pictures of 0 and 1: nine tenths cannot be had without all, so that what was zero stays alone."""
    x = (torch.rand(100, 6) < 0.2).float()
    assert put_thresholds(net(), context(x), {Site("0", "input", 0): 0.9}, 100)[0] == {Site("0", "input", 0): 0.0}


def test_what_has_no_input_of_its_own_is_refused_when_named() -> None:
    """One line each, before anything trains; NaN among samples, a second threshold, a damaged one of a file."""
    model = net()
    with pytest.raises(StructureError, match=r"^0.bias: no values that go into it can become zero: it is no weight"):
        inputs_of(model, {"0.bias": 0.5})
    with pytest.raises(StructureError, match=r"^2: 1.0 of the values that go into it as zeros; expected 0 to below 1"):
        put_thresholds(net(), context(torch.randn(2, 6)), {SECOND: 1.0}, 2)
    with pytest.raises(StructureError, match=r"^0:input\[0\]: NaN or infinity came by it"):
        put_thresholds(net(), context(torch.full((2, 6), torch.nan)), {Site("0", "input", 0): 0.5}, 2)
    edit = {"kind": "threshold", "sites": ["2:input[0]"]}
    apply(model, edit)
    with pytest.raises(StructureError, match=r"^2.weight: .*they have a threshold already"):
        inputs_of(model, {"2": 0.5})
    assert list(inputs_of(model, {"default": 0.5}).left) == ["2.weight"]
    with pytest.raises(EditError, match="2 has a input_0_threshold already"):
        apply(model, edit)
    with pytest.raises(EditError, match=r"the threshold of 2:input\[0\] must be finite and 0 or above, not -1.0"):
        check_values(model, [edit], {"2.input_0_threshold": torch.tensor(-1.0)})


def _trained(penalty: Any) -> tuple[dict[str, float], Any]:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    method = ActivationSparsity(penalty)
    with attach(model, [method], total_steps=40) as session:
        for step in range(40):
            batch = torch.randn(32, 6)
            outputs = model(batch)
            optimizer.zero_grad()
            session.loss((outputs - batch[:, :3]).square().mean(), batch, outputs).backward()
            optimizer.step()
            session.step()
            if step == 29:
                session.after_epoch(0.0)
        figures = session.after_epoch(0.0)
    assert not model[2]._forward_pre_hooks
    return figures, session.accounts[0][1]


def test_what_goes_into_layers_is_sparser_where_it_costs() -> None:
    """The penalty reaches the gradient, each input's part of zeros is told, and hooks are gone afterwards."""
    free, _ = _trained({"2": 1e-9})
    drawn, account = _trained({"2": 1.0})
    name = "activation_sparsity/zeros/2"
    assert drawn[name] > free[name] + 0.1 and drawn[name] == drawn["activation_sparsity/zeros"]
    assert account.report["inputs"] == [{"layer": "2", "zeros": drawn[name]}]


def test_an_impossible_penalty_is_refused() -> None:
    """Before anything trains."""
    with pytest.raises(StructureError, match="activation_sparsity: default: penalty -1; expected 0 or more"):
        attach(net(), [ActivationSparsity(-1)], total_steps=1)
    with pytest.raises(StructureError, match="activation_sparsity: no layer's input has a penalty above 0"):
        attach(net(), [ActivationSparsity(0)], total_steps=1)
    run: Any = SimpleNamespace()
    from tasks.methods.activation_sparsity import Settings

    with pytest.raises(StructureError, match="it is no weight of a Linear or Conv"):
        Settings(penalty={"0.bias": 1.0}).fits(run, net())

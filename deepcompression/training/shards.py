"""A model in pieces: each of several processes keeps a part of its parameters, gradients and optimizer state.

torch's FullyShardedDataParallel does it, around the whole model at once: what methods look at between steps, and what
is validated and stored, are whole tensors, gathered for as long as that takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import RecipeError
from deepcompression.training.team import Team

WHOLE_TENSORS = ("Adafactor", "LBFGS", "Muon")  # what they do to a part is not what they do to the whole


class Shards:
    """A model between ``__init__`` and ``release``: its parameters are the same objects, with this process's part.

    Parameters of no dimension, and those of another dtype than most, stay whole in each process.

    Args:
        model: on its device, with the same weights in each process.
        team: of the processes.
        loss: of a batch, by the model; all that uses parameters in a step goes on in it.
    """

    def __init__(self, model: nn.Module, team: Team, loss: Callable[[Any], Tensor]) -> None:
        self.model, self.team = model, team
        self._places = [(module, dict(module._parameters)) for module in model.modules()]
        parameters = list(model.parameters())
        self._shapes = {id(one): one.shape for one in parameters}
        most = Counter(one.dtype for one in parameters).most_common(1)[0][0]
        self._split = [one for one in parameters if one.ndim and one.dtype == most]
        whole = [one for one in parameters if not one.ndim or one.dtype != most]
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy  # slow to import

        self._step = _Step(model, loss)
        self._sharded = FullyShardedDataParallel(
            self._step,
            sharding_strategy=ShardingStrategy.FULL_SHARD,
            use_orig_params=True,
            ignored_states=whole,
            device_id=team.fabric.device,
        )
        self._summoned = partial(FullyShardedDataParallel.summon_full_params, self._sharded)

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, with the whole model; its gradients are in pieces after the backward pass."""
        self._step.batch = batch  # not an argument: FSDP would rebuild what users' batches are made of
        loss: Tensor = self._sharded()
        return loss

    def whole(self) -> AbstractContextManager[None]:
        """Parameters are whole within; what is written into them counts. All processes go in and out together."""
        return self._summoned()

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """As ``Team.add_gradients``: FSDP has the mean over processes, the rest has each process's own."""
        self.team.add_gradients(optimizer, without=self._split)
        for one in self._split:
            if one.grad is not None:
                one.grad *= self.team.count

    def clip(self, most: float) -> None:
        """As ``nn.utils.clip_grad_norm_``, of the whole model."""
        split = {id(one) for one in self._split}
        graded = [one for one in self.model.parameters() if one.grad is not None]
        parts = _norm(one.grad for one in graded if id(one) in split).to(self.team.device())
        rest = _norm(one.grad for one in graded if id(one) not in split).to(self.team.device())
        norm = (self.team.total(parts.square()) + rest.square()).sqrt()
        nn.utils.clip_grads_with_norm_(graded, most, norm)

    def optimizer_states(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]] | None:
        """Each process's state of its part, in host memory; for the first process, which stores them."""
        mine = optimizer.state_dict()
        mine["state"] = {key: {name: _host(one) for name, one in of.items()} for key, of in mine["state"].items()}
        states: list[Any] | None = [None] * self.team.count if self.team.first else None
        torch.distributed.gather_object(mine, states)
        return states

    def release(self, state: Mapping[str, Tensor] | None = None) -> None:
        """The model has whole parameters again, the same objects.

        Args:
            state: a whole state_dict that it gets, without a word to other processes (one may be dead); default: what
                all have, gathered by all.
        """
        if state is None:
            with self.whole():
                state = {name: one.detach().clone() for name, one in self.model.state_dict().items()}
        for one in self._split:
            one.data, one.grad = one.new_empty(self._shapes[id(one)]), None
        for module, parameters in self._places:  # FSDP puts in others while a step goes on, and in another order
            module._parameters = dict(parameters)
        self.model.load_state_dict(state)


class _Step(nn.Module):
    """A model and what is done with it in a step, as FSDP wants it: a forward pass."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.batch = model, None
        self._loss = loss

    def forward(self) -> Tensor:
        """The loss of ``batch``."""
        batch, self.batch = self.batch, None
        return self._loss(batch)


def refuse(optimizer: str, compiled: bool) -> None:
    """Refuses what does not go with a model in pieces, before anything trains.

    Args:
        optimizer: module:name, as recipes have it.
        compiled: whether training goes through torch.compile.

    Raises:
        RecipeError: in one line.
    """
    name = optimizer.rpartition(":")[2]
    if name in WHOLE_TENSORS:
        raise RecipeError(
            f"strategy: fsdp: {name} looks at whole tensors, of which each process has a part; take SGD or one of "
            "Adam's kind, or strategy: ddp"
        )
    if compiled:
        raise RecipeError("strategy: fsdp does not go with compile: true; leave one of them out")


def _norm(gradients: Iterable[Tensor | None]) -> Tensor:
    return nn.utils.get_total_norm([one for one in gradients if one is not None])


def _host(one: Any) -> Any:
    return one.cpu() if isinstance(one, Tensor) else one

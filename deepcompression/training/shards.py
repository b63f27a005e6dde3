"""A model in pieces: each of several processes keeps a part of its parameters, gradients and optimizer state.

torch's FullyShardedDataParallel does it, around the whole model at once: what methods look at between steps, and what
is validated and stored, are whole tensors, gathered for as long as that takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError, RecipeError, RunError
from deepcompression.training.optimizers import dense
from deepcompression.training.team import Team

INSTEAD = "take strategy: ddp"
MARK, MARKS = "_fsdp_flattened", ("_is_fsdp_managed_module", "_fsdp_use_orig_params")  # of torch's, on what it took
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
        refuse_model(model)
        self.model, self.team = model, team
        parameters = list(model.parameters())
        for one in parameters:
            if not dense(one):  # FSDP takes what lies in memory
                one.data = one.data.clone(memory_format=torch.contiguous_format)
        self._places = [(module, dict(module._parameters)) for module in model.modules()]
        self._layouts = {id(one): (one.shape, one.stride()) for one in parameters}
        most = Counter(one.dtype for one in parameters if one.is_floating_point()).most_common(1)[0][0]
        self._split = [one for one in parameters if one.ndim and one.dtype == most]
        whole = [one for one in parameters if not one.ndim or one.dtype != most]
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy  # slow to import

        self._used: set[int] = set()
        self._step = _Step(model, loss, self._watch)
        self._sharded = FullyShardedDataParallel(
            self._step,
            sharding_strategy=ShardingStrategy.FULL_SHARD,
            use_orig_params=True,
            ignored_states=whole,
            device_id=team.fabric.device,
        )
        self._summoned = partial(FullyShardedDataParallel.summon_full_params, self._sharded)
        if not all(getattr(one, MARK, False) for one in self._split):
            raise InvariantError("strategy: fsdp: FSDP did not take all parameters")

    @contextmanager
    def working(self, known: Callable[[], Mapping[str, Tensor] | None], start: Mapping[str, Tensor]) -> Iterator[None]:
        """Released afterwards, also where what is within fails.

        Args:
            known: the state that all processes have at the end, if each has a whole one; else it is gathered.
            start: for a failure before any such state.
        """
        try:
            yield
            self.release(known())
        except BaseException:
            self.release(known() or start)
            raise

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, with the whole model; its gradients are in pieces after the backward pass."""
        self._step.batch = batch  # not an argument: FSDP would rebuild what users' batches are made of
        loss: Tensor = self._sharded()
        return loss

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Parameters are whole within; what is written into them counts. All processes go in and out together.

        Raises:
            RunError: somebody holds a weight as a numpy array, whose memory torch cannot give back then.
        """
        try:
            with self._summoned():
                yield
        except RuntimeError as error:
            if "not resizable" not in str(error):
                raise
            raise RunError(
                "strategy: fsdp: a weight is held as a numpy array, whose memory must go; let step, metric or method "
                "take a copy of it (weight.clone().numpy()), or take strategy: ddp"
            ) from error

    def _watch(self) -> None:
        """Notes which parameters get a gradient: FSDP gives zeros to the others, which decay would move."""
        split = {id(one) for one in self._split}
        for module, parameters in self._places:
            for name, one in parameters.items():
                view = getattr(module, name)
                if id(one) in split and view.requires_grad and not view.is_leaf:
                    view.register_hook(partial(self._note, id(one)))

    def _note(self, key: int, gradient: Tensor) -> None:
        self._used.add(key)

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """As ``Team.add_gradients``: FSDP has the mean over processes, the rest has each process's own."""
        self.team.add_gradients(optimizer, without=self._split)
        mine = torch.tensor([float(id(one) in self._used) for one in self._split], device=self.team.device())
        self._used.clear()
        for one, used in zip(self._split, self.team.total(mine).tolist(), strict=True):
            if not used:
                one.grad = None
            elif one.grad is not None:
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
            shape, strides = self._layouts[id(one)]
            one.data, one.grad = torch.empty_strided(shape, strides, dtype=one.dtype, device=one.device), None
            vars(one).pop(MARK, None)  # else it would not be taken by the next FSDP
        for module, parameters in self._places:
            _put_back(module, parameters)
        self.model.load_state_dict(state)


class _Step(nn.Module):
    """A model and what is done with it in a step, as FSDP wants it: a forward pass."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor], begin: Callable[[], None]) -> None:
        super().__init__()
        self.model, self.batch = model, None
        self._loss, self._begin = loss, begin

    def forward(self) -> Tensor:
        """The loss of ``batch``."""
        batch, self.batch = self.batch, None
        self._begin()
        return self._loss(batch)


def _put_back(module: nn.Module, parameters: Mapping[str, nn.Parameter | None]) -> None:
    """FSDP puts in others while a step goes on, in another order, and hides parameters behind attributes."""
    for name in (*parameters, *MARKS):
        vars(module).pop(name, None)
    module._parameters = dict(parameters)
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def refuse_model(model: nn.Module) -> None:
    """Refuses a model that FSDP would train wrongly, or not at all.

    Raises:
        RecipeError: in one line: a parameter has a hook on its gradient; an embedding is cut while it computes; no
            parameter is of floating point.
    """
    for name, one in model.named_parameters():
        if one._backward_hooks or one._post_accumulate_grad_hooks:
            raise RecipeError(f"strategy: fsdp: {name} has a hook on its gradient, which would not run; {INSTEAD}")
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise RecipeError(f"strategy: fsdp: {name} has max_norm, which writes into weights in a step; {INSTEAD}")
    if not any(one.is_floating_point() for one in model.parameters()):
        raise RecipeError(f"strategy: fsdp: no parameter of the model is of floating point; {INSTEAD}")


def refuse(optimizers: Collection[str], compiled: bool) -> None:
    """Refuses what does not go with a model in pieces, before anything trains.

    Args:
        optimizers: names of the optimizer's class, and of those that it is made of.
        compiled: whether training goes through torch.compile.

    Raises:
        RecipeError: in one line.
    """
    for name in sorted(set(optimizers) & set(WHOLE_TENSORS)):
        raise RecipeError(
            f"strategy: fsdp: optimizer {name} looks at whole tensors, of which each process has a part; take SGD or "
            "one of Adam's kind, or strategy: ddp"
        )
    if compiled:
        raise RecipeError("strategy: fsdp does not go with compile: true; leave one of them out")


def _norm(gradients: Iterable[Tensor | None]) -> Tensor:
    return nn.utils.get_total_norm([one for one in gradients if one is not None])


def _host(one: Any) -> Any:
    return one.cpu() if isinstance(one, Tensor) else one

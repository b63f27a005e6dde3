"""Methods at work on one model, in our training loop or in anybody's.

``attach`` brings several together, in the loop of ``loop.train`` or in
anybody's:

    with attach(model, [GradualPruning(0.1)], total_steps) as session:
        optimizer = Adam(session.parameters(lr=1e-3))
        for batch in batches:
            optimizer.zero_grad()
            outputs = model(batch[0])
            session.loss(criterion(outputs, batch[1]), batch, outputs).backward()
            optimizer.step()
            session.step()

Where training is in callbacks, ``session.close()`` stands for the end of ``with``. docs/own-loop.md has both, whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.parametrized import MASK, Holder
from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.structure.constraints import SHARED, Structure, of_kind, of_order
from deepcompression.structure.hold import bake, hold, hold_structure
from deepcompression.training.device import Stay
from deepcompression.training.method import ROLES, SPARSITY, VALUES, Account, Claim, Context, Forward, Method, Now
from deepcompression.training.optimizers import grouped
from deepcompression.training.teacher import Teacher

log = logging.getLogger(__name__)


class Session:
    """Methods at work on one model; made by ``attach``. Leaving it bakes what was held, and fills ``accounts``."""

    def __init__(self, model: nn.Module, methods: Sequence[Method], steps: int, context: Context) -> None:
        self.model, self.now = model, Now(0, steps)
        self.accounts: list[tuple[Method, Account]] = []
        claims = claims_of(model, methods, context.structure)
        claimed = frozenset(claim for some in claims.values() for claim in some)
        self.context = replace(context, claimed=claimed)
        self.methods = sorted(methods, key=lambda method: _place(claims[method]))
        self.labels = labels_of(methods)
        self.groups: list[dict[str, Any]] = []
        try:
            self._attach(claims)
        except BaseException:
            self._release()
            raise

    def _attach(self, claims: Mapping[Method, set[Claim]]) -> None:
        """What was true before is held, but for what methods claim: zeros before their masks, values before theirs."""
        own = {target for method, some in claims.items() if method.holds_zeros for target, _ in some}
        before = {name: words for name, words in self.context.structure.items() if name not in own}
        late = [method for method in self.methods if _place(claims[method]) >= ROLES.index(VALUES)]
        self._hold_zeros(before)
        self._put_in([method for method in self.methods if method not in late])
        values = {name: tuple(of_order(words, AFTER_MASK)) for name, words in before.items()}
        hold_structure(self.model, {name: words for name, words in values.items() if name not in self._taken(VALUES)})
        self._put_in(late)

    def _hold_zeros(self, before: Structure) -> None:
        books = {name: of_kind(words, SHARED)[-1:] for name, words in before.items() if name not in self._taken(VALUES)}
        shared = {name: words[0] for name, words in books.items() if words}
        masked = [name for name, words in before.items() if of_order(words, MASK)]
        free = self._taken(SPARSITY) - set(shared)
        hold(self.model, [name for name in before if name in {*shared, *masked} - free], shared=shared)

    def _put_in(self, methods: Sequence[Method]) -> None:
        for method in methods:
            self.groups += method.attach(self.model, self.context)

    def _taken(self, role: str) -> set[str]:
        return {target for target, one in self.context.claimed if one == role}

    def parameters(self, lr: float | None = None) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: all that trains, then what methods added, with settings of their own.

        Args:
            lr: the learning rate; the optimizer's own where it is left out.

        Raises:
            StructureError: it is left out, and what a method added learns at a multiple of it.
        """
        scales = [group["scale"] for group in self.groups if "scale" in group]
        if scales and lr is None:
            raise StructureError(
                f"what a method added learns at {scales[0]:g} times the model's rate; give session.parameters() lr="
            )
        groups = grouped(self.model.parameters(), self.groups, lr)
        return groups if lr is None else [{"lr": lr, **group} for group in groups]

    def before_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Lets methods act before the step ``now.step``."""
        self.now.optimizer, self.now.changed = optimizer, False
        for method in self.methods:
            method.before_step(self.model, self.now)

    def loss(self, loss: Tensor, batch: Any, outputs: Any) -> Tensor:
        """The loss with what all methods add to it.

        Args:
            loss: the model's own, 0-dim.
            batch: as it was before the step.
            outputs: of the model for it.
        """
        if isinstance(self.context.teacher, Teacher):
            self.context.teacher.forget()
        for method in self.methods:
            loss = method.loss(loss, self.model, batch, outputs)
        return loss

    def after_step(self) -> None:
        """Lets methods act after the optimizer's step."""
        for method in self.methods:
            method.after_step(self.model, self.now)
        self.now.step += 1

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """After each step of a loop of your own: what follows this one, and what comes before the next."""
        self.after_step()
        self.next_step(optimizer)

    def next_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """``before_step``, unless all steps are done; a warning where a loop goes on all the same."""
        if self.now.step < self.now.steps:
            self.before_step(optimizer)
        elif self.now.step == self.now.steps + 1:
            log.warning("training goes on after its %d total_steps: methods are done with it", self.now.steps)

    def after_epoch(self, metric: float) -> dict[str, float]:
        """Lets methods act after an epoch; what they have to log, by ``method/figure``, methods by their labels."""
        for method in self.methods:
            method.after_epoch(self.model, self.now, metric)
        return {
            f"{self.labels[one]}/{name}": value
            for one in self.methods
            for name, value in one.figures(self.model).items()
        }

    @property
    def adds_to_loss(self) -> bool:
        """Whether some method wants batches for a loss of its own."""
        return any(type(method).loss is not Method.loss for method in self.methods)

    @property
    def looks(self) -> bool:
        """Whether some method looks at weights before or after a step."""
        kinds = {type(method) for method in self.methods}
        return any(
            one.before_step is not Method.before_step or one.after_step is not Method.after_step for one in kinds
        )

    @property
    def settled(self) -> float:
        """The fraction of the training from which on a state can be the best: that of the method that takes longest."""
        return max((method.settled for method in self.methods), default=0.0)

    def state_dict(self) -> list[dict[str, Any]]:
        """Of each method what must survive a kill."""
        return [method.state_dict() for method in self.methods]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Goes on from what ``state_dict`` gave."""
        for method, state in zip(self.methods, states, strict=True):
            method.load_state_dict(state)

    def close(self, failed: bool = False) -> None:
        """Bakes what was held and puts back what was changed; fills ``accounts``, unless training failed."""
        self._release()
        if not failed:
            self.accounts = [(method, method.finish(self.model)) for method in reversed(self.methods)][::-1]

    def _release(self) -> None:
        for method in reversed(self.methods):
            method.close(self.model)
        for module in self.model.modules():
            if isinstance(module, Holder):
                module.eval()  # what draws while it trains is baked as it is used afterwards
        bake(self.model)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)


def attach(
    model: nn.Module,
    methods: Sequence[Method],
    total_steps: int,
    *,
    samples: Iterable[Any] | None = None,
    forward: Forward | None = None,
    teacher: nn.Module | Callable[[Any], Any] | None = None,
    structure: Structure | None = None,
    seed: int = 0,
) -> Session:
    """Brings methods into a model for a training loop of your own; see the head of this module.

    Make the optimizer afterwards, of ``session.parameters()``. Methods are attached in the order of what they claim:
    units, zeros, values, activations, nothing.

    Args:
        model: changed in place; ordinary again when the session is left.
        methods: each (tensor, role) is claimed by one of them at most.
        total_steps: steps of the whole training.
        samples: some batches of training data; methods that need none do without.
        forward: (model, batch) -> outputs, for these; default: the model of the batch, or of its first part.
        teacher: a model to learn from, which is put into eval mode, or (batch) -> outputs of one.
        structure: what is true of tensors already and stays so, see ``structure.constraints``.
        seed: of what methods draw.

    Raises:
        StructureError: two methods claim the same, or a method cannot do what it is asked for.
    """
    session = prepared(
        model,
        methods,
        total_steps,
        samples=samples,
        forward=forward,
        teacher=teacher,
        structure=structure,
        seed=seed,
    )
    try:
        session.before_step()
    except BaseException:
        session.close(failed=True)
        raise
    return session


def _teacher(given: nn.Module | Callable[[Any], Any] | None, forward: Forward) -> Teacher | None:
    if isinstance(given, nn.Module):
        return Teacher(partial(forward, given.eval()), given)
    return None if given is None else Teacher(given)


def prepared(
    model: nn.Module,
    methods: Sequence[Method],
    total_steps: int = 1,
    *,
    samples: Iterable[Any] | None = None,
    forward: Forward | None = None,
    teacher: nn.Module | Callable[[Any], Any] | None = None,
    structure: Structure | None = None,
    seed: int = 0,
) -> Session:
    """As ``attach``, before the first step: where a loop tells later how many steps it has, in ``now.steps``.

    Args:
        model: changed in place.
        methods: as for ``attach``, like all the others.
        total_steps: of the whole training, if they are known yet.
        samples: some batches of training data.
        forward: (model, batch) -> outputs, for these.
        teacher: what to learn from.
        structure: what is true of tensors already.
        seed: of what methods draw.
    """
    kept = None if samples is None else list(samples)
    some = None if kept is None else lambda _: kept
    where = Stay(str(next((one.device for one in model.parameters()), "cpu")))
    context = Context(some, seed=seed, compute=where, structure=structure or {})
    context = context if forward is None else replace(context, forward=forward)
    context = replace(context, teacher=_teacher(teacher, context.forward))
    return Session(model, methods, total_steps, context)


def labels_of(methods: Sequence[Method]) -> dict[Method, str]:
    """What each method is called beside the others: its name; a second one of a name is ``name-2``."""
    found: dict[Method, str] = {}
    for method in methods:
        count = sum(other.name == method.name for other in found) + 1
        found[method] = method.name if count == 1 else f"{method.name}-{count}"
    return found


def claims_of(model: nn.Module, methods: Sequence[Method], structure: Structure) -> dict[Method, set[Claim]]:
    """What each method claims.

    Args:
        model: untouched.
        methods: side by side.
        structure: what is true of the model's tensors.

    Raises:
        StructureError: two of them claim the same; or a pattern of one matches nothing.
    """
    claims = {method: method.claims(model, structure) for method in methods}
    _refuse_twice(claims)
    return claims


def _refuse_twice(claims: Mapping[Method, set[Claim]]) -> None:
    owners: dict[Claim, Method] = {}
    for method, some in claims.items():
        for claim in sorted(some):
            if claim in owners:
                target, role = claim
                both = f"{owners[claim].name} and {method.name}"
                raise StructureError(f"{target}: {both} both claim its {role}; leave it to one of them")
            owners[claim] = method


def _place(claims: Iterable[Claim]) -> int:
    return min((ROLES.index(role) for _, role in claims), default=len(ROLES))

"""Several processes that train one model, each on its part of every batch: what they tell each other.

Lightning Fabric says which devices they have and carries what they say. Gradients are added up after the backward
pass, over all that an optimizer trains: what methods put into a model, or train beside it, is among that, and the model
stays the object that it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepcompression.errors import RecipeError
from deepcompression.training.share import Share

log = logging.getLogger(__name__)
PATIENCE = timedelta(hours=6)  # for a process that validates, or reads its data
NEEDS = "devices: several need lightning-fabric: pip install 'deep-compression[fabric]'"


class Team:
    """The processes of one training, as one of them sees them.

    Args:
        fabric: a launched ``lightning_fabric.Fabric``.
        strategy: ``ddp``: each has the whole model; ``fsdp``: a part of it, see ``training.shards``.
    """

    def __init__(self, fabric: Any, strategy: Literal["ddp", "fsdp"] = "ddp") -> None:
        self.fabric, self.strategy = fabric, strategy
        self.rank, self.count = int(fabric.global_rank), int(fabric.world_size)
        self.share = Share(self.rank, self.count)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, and tells."""
        return self.rank == 0

    def device(self) -> str:
        """This process's."""
        return str(self.fabric.device)

    def said(self, value: Any = None) -> Any:
        """What the first process says, to all."""
        return self.fabric.broadcast(value, src=0)

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        return self.fabric.all_reduce(value, reduce_op="sum")  # type: ignore[no-any-return]

    def add_gradients(self, optimizer: torch.optim.Optimizer, without: Iterable[Tensor] = ()) -> None:
        """The gradient of each parameter becomes the sum over processes; one that none has stays None.

        Args:
            optimizer: of what is trained.
            without: parameters that are left as they are.
        """
        left = {id(one) for one in without}
        trained = [one for group in optimizer.param_groups for one in group["params"] if id(one) not in left]
        for dtype in sorted({one.dtype for one in trained}, key=str):
            self._add([one for one in trained if one.dtype == dtype])

    def _add(self, trained: Sequence[Tensor]) -> None:
        has = torch.tensor([one.grad is not None for one in trained], dtype=trained[0].dtype, device=trained[0].device)
        parts = [(torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1) for one in trained]
        flat = torch.cat([*parts, has])
        torch.distributed.all_reduce(flat)  # Fabric's also waits for all at a barrier, each step
        sums = torch.split(flat, [*(len(part) for part in parts), len(has)])
        for one, part, some in zip(trained, sums, sums[-1].tolist(), strict=False):
            # in the parameter's own memory format: torch's fused steps go by memory
            one.grad = torch.empty_like(one).copy_(part.view_as(one)) if some else None

    def agree(self, model: nn.Module, *, said: bool = True) -> None:
        """All go on with the first one's model; statistics of BatchNorm are averaged before.

        Args:
            model: the same one in each process.
            said: whether a warning tells that parameters differed.
        """
        self._average(model)
        state = {name: one for name, one in model.state_dict().items() if one.numel()}
        mine = torch.cat([_bytes(one) for one in state.values()])
        theirs = mine.clone()
        torch.distributed.broadcast(theirs, 0)
        apart = [] if torch.equal(mine, theirs) else _copied(state, theirs)
        wrong = sorted(set(apart) & {name for name, _ in model.named_parameters(remove_duplicate=False)})
        if said and (many := int(self.total(torch.tensor(float(len(wrong)), device=self.fabric.device)))):
            name = wrong[0] if wrong else "a parameter"
            log.warning(
                "devices: processes had come apart in %s (%d in all); the first one's weights count", name, many
            )

    def _average(self, model: nn.Module) -> None:
        norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        parts = [part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]
        if not parts:
            return
        flat = self.total(torch.cat([part.double() for part in parts])) / self.count
        for part, mean in zip(parts, torch.split(flat, [len(part) for part in parts]), strict=True):
            part.copy_(mean)


def _bytes(one: Tensor) -> Tensor:
    return one.detach().contiguous().reshape(-1).view(torch.uint8)


def _copied(state: Mapping[str, Tensor], theirs: Tensor) -> list[str]:
    """The names of those tensors whose bytes were others, which now are these."""
    apart = []
    for (name, one), new in zip(
        state.items(), torch.split(theirs, [one.nbytes for one in state.values()]), strict=True
    ):
        if not torch.equal(_bytes(one), new):
            apart.append(name)
            with torch.no_grad():
                one.copy_(new.clone().view(one.dtype).view(one.shape))
    return apart


def of_all(states: dict[str, Any]) -> dict[str, Any]:
    """Random states as the first process has them on its device, for whichever device another one has."""
    return {**states, "cuda": states["cuda"][:1] * len(states["cuda"])}


def library() -> Any:
    """Fabric, as the package of its own or within lightning.

    Raises:
        RecipeError: neither is installed.
    """
    for name in ("lightning_fabric", "lightning.fabric"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise RecipeError(NEEDS)


def refuse(count: int, device: str, kind: str) -> None:
    """Refuses devices that are not here, before anything trains.

    Args:
        count: of devices.
        device: as the recipe says it.
        kind: cpu, cuda or mps, as it is resolved.

    Raises:
        RecipeError: in one line.
    """
    library()
    if kind not in ("cpu", "cuda"):
        raise RecipeError(f"devices: {count}: several are GPUs of CUDA, or processes on the CPU; {kind} has one device")
    if ":" in device:
        raise RecipeError(f"devices: {count}, but device: {device} names one; say cuda, or devices: 1")
    if kind == "cuda" and (here := torch.cuda.device_count()) < count:
        raise RecipeError(f"devices: {count}: this machine has {here}")


@contextmanager
def joined(rank: int, count: int, place: Path, kind: str, strategy: Literal["ddp", "fsdp"] = "ddp") -> Iterator[Team]:
    """A team of processes on this machine that find each other by a file.

    Args:
        rank: of this process, from 0.
        count: of processes.
        place: a file of the same name in each of them, not there before.
        kind: cpu or cuda; the process takes the device of its number.
        strategy: of the team.
    """
    fabric = library()
    environment = _environment(fabric)(rank, count)
    store = torch.distributed.FileStore(str(place), count)  # type: ignore[attr-defined]
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        found = fabric.strategies.DDPStrategy(process_group_backend=backend, cluster_environment=environment)
        made = fabric.Fabric(accelerator=kind, devices=count, strategy=found)
        made.launch()
        yield Team(made, strategy)
    finally:
        torch.distributed.destroy_process_group()


def _environment(fabric: Any) -> type[Any]:
    base = import_module(f"{fabric.__name__}.plugins.environments").ClusterEnvironment

    class Here(base):  # type: ignore[misc, valid-type]
        """Processes that somebody else started on this machine."""

        creates_processes_externally = True
        main_address, main_port = "localhost", 0  # they have found each other already

        def __init__(self, rank: int, count: int) -> None:
            self.rank, self.count = rank, count

        @staticmethod
        def detect() -> bool:
            """Never by itself."""
            return False

        def world_size(self) -> int:
            """Of all processes."""
            return self.count

        def set_world_size(self, size: int) -> None:
            """It is known."""

        def global_rank(self) -> int:
            """Of this process."""
            return self.rank

        def set_global_rank(self, rank: int) -> None:
            """It is known."""

        def local_rank(self) -> int:
            """All are on one machine."""
            return self.rank

        def node_rank(self) -> int:
            """All are on one machine."""
            return 0

    return Here

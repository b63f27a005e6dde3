"""BatchNorm that stands still for a part of a training."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenNorms:
    """While ``now`` is true, each BatchNorm with running statistics is as in evaluation, whatever its model's mode.

    It uses them, and leaves them as they are; its weights go on learning.
    """

    def __init__(self, model: nn.Module) -> None:
        self.now = False
        norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
        self.count = len(norms)
        self._handles = [norm.register_forward_pre_hook(self._rest) for norm in norms]

    def _rest(self, norm: nn.Module, _: Any) -> None:
        if self.now:
            norm.eval()

    def remove(self) -> None:
        """Lets go of them; the next ``model.train()`` is for them too."""
        for handle in self._handles:
            handle.remove()

"""What the network of a run looks like: a file of nodes with their multiplications, for the report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression.errors import one_line
from tasks.execution.run import Run
from tasks.report.network import FILE
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.measure.flops import Flops

log = logging.getLogger(__name__)
MOST = 2000  # nodes: of more no picture is legible


def leave_network(run: Run, dense: nn.Module, final: nn.Module, forward: Callable[[nn.Module], Any]) -> None:
    """Writes ``network.json``: ``nodes`` of ``network.graph``, and ``macs``: multiplications of one sample, ``dense``
    and ``final``, each ``total``, ``nonzero`` and by layer; or ``why`` there is nothing.

    Args:
        run: the run, in whose folder it is left.
        dense: the dense net.
        final: what became of it.
        forward: runs one of the two on a sample.
    """
    from deepcompression.measure.flops import count_in
    from deepcompression.network.graph import graph

    found: dict[str, Any]
    try:
        nodes = graph(final, forward)
        found = {"nodes": [asdict(one) for one in nodes[:MOST]]} if len(nodes) <= MOST else _too_many(len(nodes))
        found["macs"] = {"dense": _plain(count_in(dense, forward)), "final": _plain(count_in(final, forward))}
    except Exception as error:  # anybody's forward, looked at from within: the report does without
        log.debug("the network cannot be followed", exc_info=error)
        found = {"why": one_line(error)[:300] or type(error).__name__}
    write_json(Path(run.folder) / FILE, found)


def _too_many(count: int) -> dict[str, Any]:
    return {"why": f"the network has {count:,} layers and operations, more than {MOST:,}: it is not drawn"}


def _plain(counted: Flops) -> dict[str, Any]:
    layers = {one.name: [one.macs, one.nonzero] for one in counted.layers}
    return {"total": counted.macs, "nonzero": counted.nonzero, "layers": layers, "left_out": dict(counted.left_out)}

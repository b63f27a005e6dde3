"""Lowers a .pt2 to a .pte for ExecuTorch, with XNNPACK, and runs it: to_executorch.py model.pt2 model.pte"""

import sys
import time
from pathlib import Path
from statistics import median

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

program = torch.export.load(sys.argv[1])
taken = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
sample = tuple(
    torch.rand(one.shape) if one.is_floating_point() else torch.zeros(one.shape, dtype=one.dtype) for one in taken
)
edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
left = {str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"}
Path(sys.argv[2]).write_bytes(edge.to_executorch().buffer)
method = Runtime.get().load_program(sys.argv[2]).load_method("forward")
found, wanted = method.execute(sample)[0], torch.utils._pytree.tree_leaves(program.module()(*sample))[0]
times = []
for _ in range(300):
    started = time.perf_counter()
    method.execute(sample)
    times.append(time.perf_counter() - started)
print(f"largest difference {(found - wanted).abs().max():.3g}, {median(times) * 1e6:.0f} us a call (median of 300)")
print("outside XNNPACK:", sorted(one for one in left if "delegate" not in one and "getitem" not in one) or "nothing")

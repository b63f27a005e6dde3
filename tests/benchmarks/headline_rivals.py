"""How each rival of the headline figure makes a net smaller: bytes, and what the net then gives for the test inputs.

Weights that a rival only stores are read back from what it stored and run by PyTorch; onnxruntime's are run by it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_codec import nnc_encode, nncodec
from bench_ptq import by_onnxruntime
from headline_nets import Net
from torch import Tensor, nn

Made = tuple[int, Tensor]  # bytes, outputs
INT4 = 21  # the opset that has it


def rounded(net: Net, bits: int) -> Made:
    """Integers by the range of each output channel, coded by NNCodec; a scale is two bytes."""
    codec, state, size = nncodec(), net.half(), net.vector_bytes()
    for name in net.matrices:
        rows = net.state[name].reshape(len(net.state[name]), -1)
        scales = (rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).half().float().clamp_min(6e-8)
        whole = (rows / scales).round()
        state[name] = (whole * scales).reshape(net.state[name].shape)
        size += len(nnc_encode(codec, whole.int().numpy().reshape(tuple(net.state[name].shape)))) + 2 * len(scales)
    return size, net.outputs(net.filled(state))


def onnx_of(net: Net, path: Path, made: nn.Module | None = None) -> None:
    """The float net as onnxruntime takes it."""
    torch.onnx.export(
        made or net.filled(net.state), (net.test[:2],), str(path), dynamo=False, opset_version=17,
        dynamic_axes={"inputs": {0: "n"}, "outputs": {0: "n"}}, input_names=["inputs"], output_names=["outputs"],
    )  # fmt: skip


def run_onnx(net: Net, path: Path) -> Tensor:
    """What onnxruntime gives, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"inputs": part.numpy()})[0] for part in net.test.split(16)]
    return torch.from_numpy(np.concatenate(parts))


def static(net: Net, bits: int) -> Made:
    """onnxruntime's static quantization, int8 a channel; activations uint8, by the ranges of the calibration inputs."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx_of(net, source)
        by_onnxruntime(source, target, net.calibrate, True, "MinMax", "inputs")
        return target.stat().st_size, run_onnx(net, target)


def dynamic(net: Net, bits: int) -> Made:
    """onnxruntime's dynamic quantization, int8 a channel, tables too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx_of(net, source)
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
        return target.stat().st_size, run_onnx(net, target)


def by_blocks(net: Net, bits: int) -> Made:
    """onnxruntime's weights of few bits in blocks of 32 (MatMulNBits), tables too (GatherBlockQuantized)."""
    import onnx.version_converter
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "blocks.onnx")
        onnx_of(net, source)
        made = MatMulNBitsQuantizer(
            onnx.version_converter.convert_version(onnx.load(source), INT4),
            bits=bits,
            block_size=32,
            is_symmetric=True,
            op_types_to_quantize=("MatMul", "Gather"),
        )
        made.process()
        made.model.save_model_to_file(str(target))
        return target.stat().st_size, run_onnx(net, target)


def torchao(net: Net, bits: int) -> Made:
    """torchao's integers of weights alone, tables too: int8 a row, int4 in groups of 32; bytes are those of its codes,
    packed, and of its scales."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    made = net.filled(net.half())
    how = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0) if bits == 8 else PerGroup(32)
    )
    quantize_(made, how, filter_fn=lambda module, name: isinstance(module, nn.Linear | nn.Embedding))
    size = net.vector_bytes()
    for one in made.parameters():
        if hasattr(one, "qdata"):
            size += math.ceil(one.qdata.numel() * bits / 8) + one.scale.numel() * 2
    return size, net.outputs(made)


def palette(net: Net, bits: int) -> Made:
    """coremltools' palettization, a codebook a tensor by k-means, read back from the package; the rest is float16."""
    import coremltools as ct
    from coremltools.optimize import coreml

    made, state = folded(net)
    kind = ct.TensorType(shape=net.test[:1].shape, dtype=np.int32 if net.name == "MiniLM" else np.float32)
    inputs = net.test[:1].int() if net.name == "MiniLM" else net.test[:1]
    program = ct.convert(
        torch.jit.trace(made, inputs), inputs=[kind], minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16, skip_model_load=True,
    )  # fmt: skip
    config = coreml.OptimizationConfig(coreml.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=1024))
    small = coreml.palettize_weights(program, config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "small.mlpackage")
        small.save(str(path))
        size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
        tables = _tables(path)
        shutil.rmtree(path)
    halves = {name: one.half().float() if one.is_floating_point() else one for name, one in state.items()}
    made.load_state_dict(halves | _placed(state, tables))
    return size, net.outputs(made)


def folded(net: Net) -> tuple[nn.Module, dict[str, Tensor]]:
    """The net as coremltools sees it: each BatchNorm in the convolution before it."""
    made = net.filled(net.state)
    layers = [(name, one) for name, one in made.named_modules() if isinstance(one, nn.Conv2d | nn.BatchNorm2d)]
    for (_, one), (norm, other) in pairwise(layers):
        if isinstance(one, nn.Conv2d) and isinstance(other, nn.BatchNorm2d):
            weight, bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
                one.weight, one.bias, other.running_mean, other.running_var, other.eps, other.weight, other.bias
            )
            one.weight, one.bias = weight, bias
            made.set_submodule(norm, nn.Identity())
    return made.requires_grad_(False), made.state_dict()


def _tables(path: Path) -> list[np.ndarray[Any, Any]]:
    """The weights that a package has as codes and a table, decoded."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, model.weights_dir)
    ops = program.functions["main"].find_ops(op_type="constexpr_lut_to_dense")
    return [np.asarray(one.materialized_val_inference(), np.float32) for one in ops]


def _placed(state: Mapping[str, Tensor], tables: list[np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Of each tensor the decoded one that is nearest to it, turned or not."""
    found: dict[str, Tensor] = {}
    turned = [torch.from_numpy(one) for table in tables for one in ([table, table.T] if table.ndim == 2 else [table])]
    for name, one in state.items():
        near = [table for table in turned if table.shape == one.shape]
        if near:
            best = min(near, key=lambda table: float((table - one).square().sum()))
            assert float((best - one).square().sum()) < float(one.square().sum()), name
            found[name] = best.contiguous()
    return found

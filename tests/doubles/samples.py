"""Small models and a build in a few lines, for the double's own tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def two_of_four(weight: np.ndarray, axis: int) -> np.ndarray:
    """The weight with the last two of each run of four along an axis set to zero."""
    rows = np.moveaxis(weight.copy(), axis, -1)
    kept = rows.reshape(-1, 4)
    kept[:, 2:] = 0
    return np.ascontiguousarray(np.moveaxis(kept.reshape(rows.shape), -1, axis))


def _finish(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "sample", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def tiny(
    batch: int | str = 2, *, channels: int = 64, dtype: int = TensorProto.FLOAT, sparse: bool = False
) -> onnx.ModelProto:
    """Convolution, ReLU, average over space, matrix product with bias."""
    kind, rng = helper.tensor_dtype_to_np_dtype(dtype), np.random.default_rng(0)
    conv = rng.standard_normal((channels, 8, 3, 3)).astype(kind)
    gemm = rng.standard_normal((channels, 12)).astype(kind)
    if sparse:
        conv, gemm = two_of_four(conv, 1), two_of_four(gemm, 0)
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "gemm.weight", "gemm.bias"], ["y"], name="gemm"),
    ]
    inputs = [helper.make_tensor_value_info("x", dtype, [batch, 8, 6, 6])]
    outputs = [helper.make_tensor_value_info("y", dtype, [batch, 12])]
    return _finish(nodes, inputs, outputs, {"conv.weight": conv, "gemm.weight": gemm, "gemm.bias": np.ones(12, kind)})


def quantized(channels: int = 64, *, output: bool = True) -> onnx.ModelProto:
    """One matrix product, its weight (and its output, if asked) quantized and dequantized in the graph."""
    weight = two_of_four(np.random.default_rng(1).standard_normal((32, channels)).astype(np.float32), 0)
    scales = {"xs": np.float32(0.1), "ws": np.float32(0.05), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "zero"], ["xq"], name="x_q"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "zero"], ["xd"], name="x_dq"),
        helper.make_node("QuantizeLinear", ["w", "ws", "zero"], ["wq"], name="w_q"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "zero"], ["wd"], name="w_dq"),
        helper.make_node("MatMul", ["xd", "wd"], ["m" if output else "y"], name="mm"),
    ]
    if output:
        nodes.append(helper.make_node("QuantizeLinear", ["m", "xs", "zero"], ["mq"], name="m_q"))
        nodes.append(helper.make_node("DequantizeLinear", ["mq", "xs", "zero"], ["y"], name="m_dq"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, channels])]
    return _finish(nodes, inputs, outputs, {"w": weight, **{name: np.array(v) for name, v in scales.items()}})


def single(op: str, *, name: str = "node0", domain: str = "") -> onnx.ModelProto:
    """One operator on a 4 x 4 input."""
    nodes = [helper.make_node(op, ["x"], ["y"], name=name, domain=domain)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])]
    return _finish(nodes, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])], {})


def mixed(op: str = "MatMul") -> onnx.ModelProto:
    """A FLOAT input meets a HALF weight."""
    nodes = [helper.make_node(op, ["x", "w"], ["y"], name="mm")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])]
    return _finish(nodes, inputs, outputs, {"w": np.zeros((4, 4), np.float16)})


def explicit(trt: Any) -> int:
    """Network flags that make the parser work: EXPLICIT_BATCH where there is one."""
    flag = trt.NetworkDefinitionCreationFlag.__members__.get("EXPLICIT_BATCH")
    return 0 if flag is None else 1 << int(flag)


def recorder(trt: Any) -> Any:
    """A logger that keeps what it hears as (severity, text)."""

    class Recorder(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append((severity.name, msg))

        def errors(self) -> list[str]:
            return [text for severity, text in self.lines if severity == "ERROR" and "catchCudaError" not in text]

        def clear(self) -> None:
            self.lines.clear()

    return Recorder()


class Build:
    """Builder, network, parser and configuration of one module, real or double."""

    def __init__(self, trt: Any, *, flags: int | None = None) -> None:
        self.trt = trt
        self.logger = recorder(trt)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(explicit(trt) if flags is None else flags)
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.config = self.builder.create_builder_config()
        if hasattr(trt, "ComputeCapability"):
            self.config.num_compute_capabilities = 1
            self.config.set_compute_capability(trt.ComputeCapability.SM86, 0)

    def parse(self, model: onnx.ModelProto) -> bool:
        return bool(self.parser.parse(model.SerializeToString()))

    def profile(self, *shapes: Any, name: str = "x") -> Any:
        profile = self.builder.create_optimization_profile()
        profile.set_shape(name, *shapes)
        return profile

    def run(self) -> Any:
        return self.builder.build_serialized_network(self.network, self.config)


def plan(trt: Any, model: onnx.ModelProto, *shapes: Any, flags: tuple[str, ...] = (), **settings: Any) -> Any:
    """A plan of a model, with one profile if shapes are given."""
    build = Build(trt)
    assert build.parse(model), build.logger.lines
    if shapes:
        build.config.add_optimization_profile(build.profile(*shapes))
    for flag in flags:
        build.config.set_flag(getattr(trt.BuilderFlag, flag))
    for key, value in settings.items():
        setattr(build.config, key, value)
    return build.run()

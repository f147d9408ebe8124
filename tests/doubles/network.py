"""Networks, their layers and tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.doubles.classes import Field
from tests.doubles.importer import Imported, TensorInfo
from tests.doubles.messages import emit, fail

LAYERS = {
    "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "Gemm": "MATRIX_MULTIPLY", "MatMul": "MATRIX_MULTIPLY",
    "Relu": "ACTIVATION", "Sigmoid": "ACTIVATION", "Tanh": "ACTIVATION", "Clip": "ACTIVATION", "Add": "ELEMENTWISE",
    "Sub": "ELEMENTWISE", "Mul": "ELEMENTWISE", "Div": "ELEMENTWISE", "Concat": "CONCATENATION", "Cast": "CAST",
    "Constant": "CONSTANT", "Gather": "GATHER", "Identity": "IDENTITY", "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE", "MaxPool": "POOLING", "AveragePool": "POOLING", "Softmax": "SOFTMAX",
    "GlobalAveragePool": "REDUCE", "ReduceMean": "REDUCE", "ReduceSum": "REDUCE", "Resize": "RESIZE",
    "Shape": "SHAPE", "Slice": "SLICE", "TopK": "TOPK", "Where": "SELECT",
}  # fmt: skip
"""Layer type of an operator; anything else is a shuffle."""


def layer_names(nodes: list[Any]) -> list[str]:
    """Unique layer names of ONNX nodes, as the parser gives them."""
    names: list[str] = []
    for node in nodes:
        name = node.name or f"node_of_{node.output[0]}"
        unique, count = name, 0
        while unique in names:
            unique, count = f"{name}_{count}", count + 1
        names.append(unique)
    return names


class ITensor:
    """A tensor of a network."""

    name = Field("str", source="info")
    dtype = Field("DataType", source="info", readonly=lambda lib: lib.typed)
    shape = Field("Dims", source="info")
    allowed_formats = Field("int", 8191)
    location = Field("TensorLocation", "DEVICE")
    broadcast_across_batch = Field("bool", default=False)
    is_network_input = property(lambda self: self._.role == "input")
    is_network_output = property(lambda self: self._.role == "output")
    is_shape_tensor = property(lambda _self: False)
    is_execution_tensor = property(lambda _self: True)

    def get_dimension_name(self: Any, index: int) -> str | None:
        names = self._.info.dimension_names
        return (names[index] or None) if 0 <= index < len(names) else None

    def set_dimension_name(self: Any, index: int, name: str) -> None:
        names = list(self._.info.dimension_names)
        names[index] = name
        self._.info.dimension_names = tuple(names)


class ILayer:
    """One ONNX node."""

    name = Field("str")
    type = Field("LayerType", readonly=True)
    metadata = Field("str", "")
    num_ranks = Field("int", 1)
    precision = Field("DataType", "FLOAT")
    num_inputs = property(lambda self: len(self._.inputs))
    num_outputs = property(lambda self: len(self._.outputs))
    precision_is_set = property(lambda self: hasattr(self._, "precision"))

    def get_input(self: Any, index: int) -> Any:
        return self._.network._tensor(self._.inputs[index]) if 0 <= index < len(self._.inputs) else None

    def get_output(self: Any, index: int) -> Any:
        return self._.network._tensor(self._.outputs[index]) if 0 <= index < len(self._.outputs) else None

    def get_output_type(self: Any, index: int) -> Any:
        return self._.network._tensor(self._.outputs[index]).dtype

    def reset_precision(self: Any) -> None:
        vars(self._).pop("precision", None)


class INetworkDefinition:
    """A network, filled by a parser."""

    name = Field("str")
    error_recorder = Field("IErrorRecorder", nullable=True)
    builder = property(lambda self: self._.builder)
    num_inputs = property(lambda self: len(self._.inputs))
    num_outputs = property(lambda self: len(self._.outputs))
    num_layers = property(lambda self: len(self._.layers))
    flags = property(lambda self: self._.flags)
    has_implicit_batch_dimension = property(lambda self: self._.implicit_batch)
    has_explicit_precision = property(lambda _self: False)
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def get_flag(self: Any, flag: Any) -> bool:
        return bool(self._.flags >> int(flag) & 1)

    def _take(self: Any, imported: Imported) -> None:
        """Become what a parser read."""
        made: dict[str, Any] = {}
        for info in [*imported.tensors.values(), *imported.inputs, *imported.outputs]:
            made.setdefault(info.name, self._tensor_info(info))
        self._.tensors = made
        self._.inputs = [made[info.name] for info in imported.inputs]
        self._.outputs = [made[info.name] for info in imported.outputs]
        self._.layers = [
            SimpleNamespace(
                name=name, node=node, type=self._lib.enum("LayerType", LAYERS.get(node.op_type, "SHUFFLE")),
                metadata=f"[ONNX Layer: {node.name}]" if self._lib.generation > 8 else "",
            )
            for name, node in zip(layer_names(imported.nodes), imported.nodes, strict=True)
        ]  # fmt: skip
        self._.model = imported.model

    def _tensor_info(self: Any, info: TensorInfo) -> SimpleNamespace:
        dtype = info.dtype or "FLOAT"
        if not self._lib.has("DataType", dtype):  # TensorRT 8.6 has no 64-bit integers and no BF16
            dtype = {"INT64": "INT32"}.get(dtype, "FLOAT")
        return SimpleNamespace(
            name=info.name, shape=self._lib.dims(info.shape), dtype=self._lib.enum("DataType", dtype),
            dimension_names=info.dimension_names,
        )  # fmt: skip

    def _tensor(self: Any, name: str) -> Any:
        info = self._.tensors.get(name)
        if info is None:
            return None
        inputs, outputs = map(id, self._.inputs), map(id, self._.outputs)
        role = "input" if id(info) in inputs else "output" if id(info) in outputs else ""
        return self._lib.new("ITensor", info=info, role=role, network=self)

    def _at(self: Any, what: str, items: list[Any], index: int) -> Any:
        if 0 <= index < len(items):
            return items[index]
        fail(
            self._lib, self._.builder.logger, self._.error_recorder, f"INetworkDefinition::get{what}", 3,
            "API Usage Error",
            f"Parameter check failed, condition: (0) <= (index) && (index) < (getNb{what}s()). Invalid network "
            f"{what} index: {index}.", f"get{what} at /_src/optimizer/api/network.cpp:2693",
        )  # fmt: skip
        return None

    def get_input(self: Any, index: int) -> Any:
        info = self._at("Input", self._.inputs, index)
        return info and self._lib.new("ITensor", info=info, role="input", network=self)

    def get_output(self: Any, index: int) -> Any:
        info = self._at("Output", self._.outputs, index)
        return info and self._lib.new("ITensor", info=info, role="output", network=self)

    def get_layer(self: Any, index: int) -> Any:
        if not 0 <= index < len(self._.layers):
            size = len(self._.layers)
            text = f"vector::_M_range_check: __n (which is {index}) >= this->size() (which is {size})"
            emit(self._lib, self._.builder.logger, "ERROR", f"Unexpected exception {text}")
            return None
        layer = self._.layers[index]
        return self._lib.new(
            "ILayer", name=layer.name, type=layer.type, metadata=layer.metadata, network=self,
            inputs=[name for name in layer.node.input if name in self._.tensors], outputs=list(layer.node.output),
        )  # fmt: skip

    def __len__(self: Any) -> int:
        return len(self._.layers)

    def __getitem__(self: Any, index: int) -> Any:
        if not 0 <= index < len(self._.layers):
            raise IndexError("Out of bounds")
        return self.get_layer(index)

"""A small builder of ONNX graphs, shared by all generators."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtsparse.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from models._weights import Source, Weight

__all__ = ["Graph"]

OPSET = 17
IR_VERSION = 8
_ONE_FILE_NBYTES = 1_500_000_000  # protobuf ends at 2 GiB; larger models keep their weights in a file beside
_ALIGNMENT = 4096  # bytes; lets readers map the tensors of a side file into memory


class Graph:
    """A graph under construction: nodes now, weights declared now and given values when it is finished.

    Args:
        name: The graph's name.

    Example:
        >>> from models._weights import Weight
        >>> graph = Graph("double")
        >>> x = graph.input("x", TensorProto.FLOAT, ("N", 4))
        >>> w = graph.weight(Weight("w", (4, 8), std=0.1, channels=1))
        >>> graph.output(graph.node("MatMul", x, w, at="fc"), TensorProto.FLOAT, ("N", 8))
        >>> graph.parameters
        32
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: dict[str, Weight] = {}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._node_names: set[str] = set()

    @property
    def parameters(self) -> int:
        """Number of trained values, as published counts have it: without BatchNormalization statistics."""
        return sum(weight.size for weight in self._weights.values() if weight.trained)

    @property
    def nbytes(self) -> int:
        """Size of all weights in bytes."""
        return 4 * sum(weight.size for weight in self._weights.values())

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Add a graph input; a dimension is a length or a symbolic name. Return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Declare a value to be a graph output."""
        self._outputs.append(helper.make_tensor_value_info(value, dtype, shape))

    def weight(self, weight: Weight) -> str:
        """Declare a weight; return its name."""
        if weight.name in self._weights:
            raise ValueError(f"weight {weight.name!r} is declared twice")
        self._weights[weight.name] = weight
        return weight.name

    def constant(self, name: str, value: ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """Add a small fixed tensor, once per name; return its name."""
        array = np.asarray(value, dtype)
        tensor = onnx.numpy_helper.from_array(array, name)
        if self._constants.setdefault(name, tensor) != tensor:
            raise ValueError(f"constant {name!r} has two values")
        return name

    def node(self, op: str, *inputs: str, at: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output.

        Args:
            op: Operator type.
            inputs: Names of the values it reads.
            at: The module that it belongs to, as in ``layer1.0.conv1``; names are made from it.
            output: Name of its output, by default the node's name with ``_output``.
            attributes: The operator's attributes.

        Returns:
            The name of its output.
        """
        name = self._unique(f"{at}/{op}")
        output = output or f"{name}_output"
        self._nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def split(self, value: str, parts: int, *, at: str, axis: int) -> list[str]:
        """Add a Split into equal parts, whose length shape inference must know; return their names."""
        name = self._unique(f"{at}/Split")
        outputs = [f"{name}_output_{part}" for part in range(parts)]
        self._nodes.append(helper.make_node("Split", [value], outputs, name=name, axis=axis))
        return outputs

    def model(self, source: Source) -> onnx.ModelProto:
        """Return the whole model in memory, with the values that a source gives."""
        model = self._without_weights()
        for weight in self._weights.values():
            _declare(model, weight).raw_data = bytes(_raw(source(weight)))
        return model

    def save(self, path: Path, source: Source) -> None:
        """Write the model, whole or not at all; above 1.5 GB the weights go to ``<file name>.data`` beside it.

        Weights are made and written one at a time, so memory stays small.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.nbytes <= _ONE_FILE_NBYTES:
                with _replacing(path) as file:
                    self._write(file, source)
            else:
                beside = path.with_name(f"{path.name}.data")
                with _replacing(path) as file, _replacing(beside) as data:
                    self._write_apart(file, data, beside.name, source)
        except OSError as error:
            raise OutputError("the model cannot be written", where=path, got=error.strerror or error) from error

    def _write(self, file: IO[bytes], source: Source) -> None:
        """Write the model field by field: protobuf takes 10 s and three times the memory for a gigabyte."""
        model = self._without_weights()
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        heads = [_initializer_head(weight) for weight in self._weights.values()]
        file.write(model.SerializeToString())
        file.write(_field_head(onnx.ModelProto, "graph", len(graph) + sum(map(len, heads)) + self.nbytes) + graph)
        for weight, head in zip(self._weights.values(), heads, strict=True):
            file.write(head)
            file.write(_raw(source(weight)))

    def _write_apart(self, file: IO[bytes], data: IO[bytes], location: str, source: Source) -> None:
        """Write the weights to ``data``, and to ``file`` the model that refers to them by that file's name."""
        model = self._without_weights()
        for weight in self._weights.values():
            data.write(b"\0" * (-data.tell() % _ALIGNMENT))
            tensor = _declare(model, weight)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": location, "offset": data.tell(), "length": 4 * weight.size}.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(_raw(source(weight)))
        file.write(model.SerializeToString())

    def _without_weights(self) -> onnx.ModelProto:
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, constants)
        return helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="trtsparse models",
        )

    def _unique(self, name: str) -> str:
        count, unique = 1, name
        while unique in self._node_names:
            unique = f"{name}_{count}"
            count += 1
        self._node_names.add(unique)
        return unique


def _declare(model: onnx.ModelProto, weight: Weight) -> TensorProto:
    """Add the weight's tensor, still without data (protobuf copies what is appended whole)."""
    tensor: TensorProto = model.graph.initializer.add(
        name=weight.name, data_type=TensorProto.FLOAT, dims=weight.shape
    )
    return tensor


def _initializer_head(weight: Weight) -> bytes:
    """Encode an entry of a graph's ``initializer`` up to its data."""
    tensor: bytes = TensorProto(name=weight.name, data_type=TensorProto.FLOAT, dims=weight.shape).SerializeToString()
    tensor += _field_head(TensorProto, "raw_data", 4 * weight.size)
    return _field_head(onnx.GraphProto, "initializer", len(tensor) + 4 * weight.size) + tensor


def _field_head(message: Any, field: str, length: int) -> bytes:
    """Encode what precedes a protobuf field of that many bytes: its number and wire type 2, and the length."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    head = [number << 3 | 2]
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*head, length])


def _raw(values: NDArray[np.float32]) -> memoryview:
    return values.astype("<f4", copy=False).data


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place if the block ends well, and vanishes if not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

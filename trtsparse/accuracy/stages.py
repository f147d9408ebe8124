"""Run a model's main graph piece by piece over many samples, so that every node runs once per sample.

Calibration in the order of the layers needs each layer's input as the already pruned model computes it. Running the
model up to each layer in turn costs as many half forward passes as there are layers; here the values that are still
needed are kept between the pieces, in memory or, above a limit, in temporary files.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from trtsparse.errors import ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import pack, whole
from trtsparse.precision.ort import open_session, ort_errors
from trtsparse.sparsity.trace import subgraphs

__all__ = ["Graph", "Stages", "reads"]

_IN_MEMORY_NBYTES = 1 << 30


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node needs: its inputs, and what graphs inside it take from around them."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names.extend(_captured(graph))
    return names


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own.update(tensor.values.name for tensor in graph.sparse_initializer)
    own.update(name for node in graph.node for name in node.output)
    wanted = [name for node in graph.node for name in reads(node)] + [value.name for value in graph.output]
    yield from (name for name in wanted if name not in own)


class Graph:
    """Who makes which value of a model's main graph, and which values are the same for every input.

    Args:
        model: Its functions inlined.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.proto = model.proto
        graph = self.proto.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.initializers]
        self.nodes = list(graph.node)
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        constant = set(self.initializers) | set(self.sparse)
        for node in self.nodes:
            if constant.issuperset(reads(node)):
                constant.update(node.output)
        self.constant = constant
        self._quantized = any(node.op_type == "DequantizeLinear" for node in self.nodes)

    def session(self, model: OnnxModel) -> Any:
        """A session for a model of these nodes; with Q/DQ it is exact, not fused into integer products."""
        return open_session(model, optimize=not self._quantized)

    def ancestors(self, values: Collection[str], done: Collection[int] = ()) -> set[int]:
        """The nodes that values come from, as positions; what lies behind nodes that are ``done`` is left out."""
        found: set[int] = set()
        wanted = list(values)
        while wanted:
            maker = self.makers.get(wanted.pop())
            if maker is not None and maker not in found and maker not in done:
                found.add(maker)
                wanted.extend(reads(self.nodes[maker]))
        return found

    def piece(
        self,
        positions: Collection[int],
        *,
        inputs: Mapping[str, np.dtype[Any]],
        outputs: Sequence[str],
        weights: Mapping[tuple[str, int], np.ndarray],
    ) -> OnnxModel:
        """A model of some of the nodes, with the constants that they need.

        Args:
            positions: The nodes.
            inputs: Values that are fed, and their types.
            outputs: Values to give back.
            weights: Other values for constants, by where they are stored.
        """
        proto = onnx.ModelProto(ir_version=max(self.proto.ir_version, 4))
        proto.opset_import.extend(self.proto.opset_import)
        graph = proto.graph
        graph.name = self.proto.graph.name
        needed: set[str] = set(outputs)
        for i in sorted(positions):
            node = graph.node.add()
            node.CopyFrom(self.nodes[i])
            needed.update(reads(node))
            self._load_attributes(node, weights)
        graph.initializer.extend(
            self._loaded(tensor, weights) for name, tensor in self.initializers.items() if name in needed
        )
        graph.sparse_initializer.extend(tensor for name, tensor in self.sparse.items() if name in needed)
        for name, dtype in inputs.items():
            graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return pack(proto, name=self.model.name)

    def whole(self, weights: Mapping[tuple[str, int], np.ndarray]) -> OnnxModel:
        """The whole model with other values for some constants."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        loaded = [self._loaded(tensor, weights) for tensor in proto.graph.initializer]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(loaded)
        for node in proto.graph.node:
            self._load_attributes(node, weights)
        return pack(proto, name=self.model.name)

    def _load_attributes(self, node: onnx.NodeProto, weights: Mapping[tuple[str, int], np.ndarray]) -> None:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(self._loaded(attribute.t, weights))
            for graph in subgraphs(node):
                loaded = [self._loaded(tensor, weights) for tensor in graph.initializer]
                del graph.initializer[:]
                graph.initializer.extend(loaded)
                for inner in graph.node:
                    self._load_attributes(inner, weights)

    def _loaded(self, tensor: onnx.TensorProto, weights: Mapping[tuple[str, int], np.ndarray]) -> onnx.TensorProto:
        ref = self.model.ref(tensor)
        if ref is None or ref.key not in weights:
            return whole(self.model, tensor)
        changed = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        changed.raw_data = np.ascontiguousarray(weights[ref.key]).tobytes()
        return changed


class Stages:
    """One pass of all samples through a model, stopped and continued at any value.

    Args:
        graph: The model.
        feeds: The samples; read again for every stage that needs the model's inputs.
        targets: All values that will be asked for, each as often as it will be: nodes that none of them needs are
            never run, and values are dropped when nothing needs them any more.
        weights: Values of constants that differ from the file's, by where they are stored. The caller changes it
            between stages; nodes that ran before do not run again.
    """

    def __init__(
        self,
        graph: Graph,
        feeds: Sequence[Mapping[str, np.ndarray]],
        *,
        targets: Iterable[str],
        weights: Mapping[tuple[str, int], np.ndarray],
    ) -> None:
        self._graph = graph
        self._feeds = feeds
        self._weights = weights
        self._targets = Counter(targets)
        self._wanted = graph.ancestors(self._targets)
        self._done: set[int] = set()
        self._disk = _Disk()
        self._kept = [_Store(self._disk) for _ in range(len(feeds))]

    def close(self) -> None:
        """Remove the temporary files."""
        self._disk.close()

    def advance(self, values: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Compute values for every sample, one after another.

        Raises:
            EngineError: ONNX Runtime fails.
            ModelError: A value that has to be kept is not a tensor.
        """
        graph = self._graph
        moving = [name for name in dict.fromkeys(values) if name not in graph.constant]
        new = graph.ancestors(moving, self._done)
        varying = {i for i in new if not graph.constant.issuperset(graph.nodes[i].output)}
        later = [i for i in self._wanted if i not in self._done and i not in varying]
        still = {name for i in later for name in reads(graph.nodes[i])} | set(self._targets) | set(moving)
        made = {name for i in varying for name in graph.nodes[i].output}
        outputs = [name for name in graph.makers if name in made and name in still]
        run = self._runner(varying, outputs)
        self._targets -= Counter(values)
        kept = {name for i in later for name in reads(graph.nodes[i])} | set(self._targets)
        for i, store in enumerate(self._kept):
            feed = self._feeds[i]
            found = dict(zip(outputs, run(feed, store), strict=True)) if outputs else {}
            yield {name: found[name] if name in found else store.get(name, feed) for name in moving}
            store.update(found, kept)
        self._done |= varying

    def _runner(self, positions: set[int], outputs: Sequence[str]) -> Any:
        graph = self._graph
        needed = {name for i in positions for name in reads(graph.nodes[i])}
        made = {name for i in positions for name in graph.nodes[i].output}
        fed = sorted(name for name in needed - made if name not in graph.constant)
        constants = graph.ancestors([name for name in needed if name in graph.constant])
        session: Any = None

        def run(feed: Mapping[str, np.ndarray], store: _Store) -> list[np.ndarray]:
            nonlocal session
            arrays = {name: store.get(name, feed) for name in fed}
            if session is None:
                piece = graph.piece(
                    positions | constants,
                    inputs={name: array.dtype for name, array in arrays.items()},
                    outputs=outputs,
                    weights=self._weights,
                )
                session = graph.session(piece)
            with ort_errors("ONNX Runtime failed while running the model", where=graph.model.name):
                found: list[np.ndarray] = session.run(list(outputs), arrays)
            for name, value in zip(outputs, found, strict=True):
                if not isinstance(value, np.ndarray):
                    raise ModelError(
                        "a value is not a tensor",
                        where=f"{name!r} in {graph.model.name}",
                        got=type(value).__name__,
                        fix="use method='magnitude'",
                    )
            return found

        return run


class _Disk:
    """Temporary files for what does not fit into memory."""

    def __init__(self) -> None:
        self.in_memory = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def write(self, array: np.ndarray) -> Path:
        """Write an array to a file of its own."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="trtsparse-", ignore_cleanup_errors=True)
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, array, allow_pickle=False)
        return path

    def close(self) -> None:
        """Remove them."""
        if self._folder is not None:
            self._folder.cleanup()


class _Store:
    """Values of one sample between two stages."""

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk
        self._values: dict[str, np.ndarray | Path] = {}

    def get(self, name: str, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """A kept value or an input of the model."""
        if name in feed:
            return feed[name]
        value = self._values[name]
        return value if isinstance(value, np.ndarray) else np.load(value, allow_pickle=False)

    def update(self, found: Mapping[str, np.ndarray], kept: Collection[str]) -> None:
        """Take new values, and drop those that no later stage needs."""
        for name in [name for name in self._values if name not in kept]:
            dropped = self._values.pop(name)
            if isinstance(dropped, Path):
                dropped.unlink()
            else:
                self._disk.in_memory -= dropped.nbytes
        for name, array in found.items():
            if name not in kept:
                continue
            if self._disk.in_memory + array.nbytes > _IN_MEMORY_NBYTES and array.dtype.kind in "biufc":
                self._values[name] = self._disk.write(array)
            else:
                self._values[name] = array
                self._disk.in_memory += array.nbytes

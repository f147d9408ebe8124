"""FP16 and BF16: the typed graph, measured against the original, with what must stay in float32."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx

from trtsparse.errors import ConfigError, PrecisionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_runs
from trtsparse.precision.converted import Converted, KeptNode, check_sparsity
from trtsparse.precision.feeds import check_feeds, random_feeds
from trtsparse.precision.fold import fold
from trtsparse.precision.graph import graphs, pack
from trtsparse.precision.observe import Observer, magnitudes
from trtsparse.precision.origins import Origins
from trtsparse.precision.ort import runner
from trtsparse.precision.search import fewest, rank
from trtsparse.precision.specs import check_outputs
from trtsparse.precision.typed import BF16, FP16, SENTINEL, HalfType, float_values, retype

__all__ = ["MAX_ERROR", "to_half"]

# Of an output's range. Rounding alone was seen to move single elements by up to 0.055 (PP-OCR, 8 images, no character
# read differently); overflow moves them by about 1.
MAX_ERROR = 0.1
_HEADROOM = 2.0  # other inputs than those measured may give larger values
_NO_BF16 = {"ConvTranspose", "GRU", "GlobalLpPool", "LpNormalization", "LpPool", "Shrink"}  # seen in TensorRT-RTX 1.7
_RECURRENT = {"GRU", "LSTM", "RNN"}
_MOVING = {"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


def to_half(
    model: str | os.PathLike[str] | bytes | Any,
    *,
    precision: Literal["fp16", "bf16"] = "fp16",
    keep_fp32: Sequence[str] = (),
    max_error: float = MAX_ERROR,
    feeds: Iterable[Mapping[str, np.ndarray]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Converted:
    """Convert a float32 model to a typed FP16 or BF16 graph, whose inputs and outputs stay float32.

    Constants are folded first. Nodes stay in float32 when they are asked to, when TensorRT has no kernels for them in
    the type (BF16 ConvTranspose, GRU, LpPool and others), when a weight exceeds the type's range or a value half of
    it, and, from the node that adds most noise downwards, until the error is at most ``max_error``. With a recurrent
    node stays what makes its input: TensorRT-RTX 1.7 builds no engine with a Cast to float32 there.

    The error is that of an emulation, in which every value that is 16-bit in the graph is rounded to it while
    products are added in float32, as Tensor Cores do; ONNX Runtime's CPU kernels keep more digits and hide overflow.
    The FP16 graph itself is run in ONNX Runtime too, and the larger error counts; for BF16, ONNX Runtime has too few
    CPU kernels: the graph is not run. Values inside If and Loop bodies are not watched for overflow.

    Args:
        model: A path, bytes, a ModelProto or an OnnxModel, with float32 weights.
        precision: "fp16" or "bf16".
        keep_fp32: Names of nodes ("<op>_<position>" for those without one) or patterns such as "*/norm*". The name of
            a model-local function's call stands for all nodes in it.
        max_error: Relative, as `trtsparse.precision.compare.Comparison` defines it.
        feeds: Real inputs for measuring; by default random ones, which the notes then say.
        shapes: For random inputs, see `trtsparse.precision.feeds.random_feeds`.

    Raises:
        ConfigError: An argument is wrong, or a name in ``keep_fp32`` is not in the model.
        ModelError: An output is not a tensor, or the model's functions or old opset cannot be converted.
        FeedError: The feeds do not fit the model.
        PrecisionError: The error is above ``max_error`` however many nodes stay in float32.
        EngineError: ONNX Runtime does not load or run the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    half = {"fp16": FP16, "bf16": BF16}.get(precision)
    if half is None:
        raise ConfigError("no such precision", where="precision", got=repr(precision), expected="'fp16', 'bf16'")
    check_max_error(max_error)
    original = OnnxModel.open(model)
    check_outputs(original)
    inputs = list(feeds) if feeds is not None else random_feeds(original, shapes=shapes)
    check_feeds(original, inputs)
    notes = [] if feeds is not None else ["compared on random inputs"]
    if half is BF16:
        notes.append("the error is an emulation's: ONNX Runtime cannot run BF16 on a CPU")
    conversion = _Conversion(original, half, inputs)
    kept: dict[str, Any] = dict.fromkeys(conversion.unsupported(), "unsupported")
    kept |= dict.fromkeys(conversion.overflowing(), "overflow")
    origins = Origins(original, conversion.folded)
    kept |= dict.fromkeys(origins.matching(keep_fp32), "asked")

    def with_more(names: Iterable[str]) -> dict[str, Any]:
        return conversion.with_inputs({**dict.fromkeys(names, "error"), **kept})

    error, more = fewest(
        lambda names: conversion.error(with_more(names)), lambda: conversion.ranking(with_more([])), limit=max_error
    )
    if not error <= max_error:
        raise _too_inaccurate(original, half, error, max_error)
    kept = with_more(more)
    converted = conversion.result(kept)
    check_sparsity(original, converted)
    return Converted(
        model=converted,
        precision=half.name,
        kept=tuple(KeptNode(*item) for item in origins.translated(kept).items()),
        error=error,
        limit=max_error,
        notes=tuple(notes),
    )


class _Conversion:
    """Measures one model's conversions."""

    def __init__(self, original: OnnxModel, half: HalfType, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.original = original
        self.half = half
        self.feeds = feeds
        self.folded = fold(original, opset=13 if half is BF16 else 0)  # Cast to bfloat16 came with 13
        self.values = float_values(self.folded)
        self.reference = runner(original)

    @functools.cached_property
    def observed(self) -> Observer:
        """The folded model in float32."""
        return Observer(self.folded.load(), values=self.names, name=self.original.name)

    @property
    def names(self) -> list[str]:
        """All float values that nodes read or make."""
        return list(dict.fromkeys(name for names in self.values.values() for name in names))

    def unsupported(self) -> list[str]:
        """Nodes that TensorRT does not run in the type."""
        nodes = (node for graph in graphs(self.folded.proto.graph) for node in graph.node)
        return [node.name for node in nodes if self.half is BF16 and node.op_type in _NO_BF16]

    def with_inputs(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Also keep what makes the inputs of kept recurrent nodes, past nodes that only move values."""
        found = dict(kept)
        for graph in graphs(self.folded.proto.graph):
            makers = {name: node for node in graph.node for name in node.output}
            pending = [node for node in graph.node if node.name in kept and node.op_type in _RECURRENT]
            while pending:
                node = pending.pop()
                maker = makers.get(node.input[0])
                if maker is not None:
                    found.setdefault(maker.name, found[node.name])
                    pending += [maker] if maker.op_type in _MOVING | _RECURRENT else []
        return found

    def overflowing(self) -> list[str]:
        """Nodes with a weight above the type's range, or a value above half of it."""
        limit = self.half.largest / _HEADROOM
        found = magnitudes(self.observed, self.feeds)
        large = {name for name, magnitude in found.items() if magnitude > limit}
        large |= {tensor.name for tensor in self.folded.proto.graph.initializer if self.exceeds(tensor)}
        return [
            node.name
            for node in self.folded.proto.graph.node
            if not large.isdisjoint((*node.input, *self.values[node.name]))
        ]

    def exceeds(self, tensor: onnx.TensorProto) -> bool:
        """True for a weight with numbers above the type's range; what stands for infinity in masks does not count."""
        if tensor.data_type != onnx.TensorProto.FLOAT or self.half is not FP16:
            return False
        magnitude = np.abs(self.folded.array(tensor))
        return bool(np.any((magnitude > self.half.largest) & (magnitude < SENTINEL)))

    def result(self, keep: Collection[str]) -> OnnxModel:
        """The converted model."""
        return pack(retype(self.folded, half=self.half, keep=keep), name=self.original.name)

    def error(self, keep: Collection[str]) -> float:
        """How far the conversion is from the original."""
        emulated = pack(retype(self.folded, half=self.half, keep=keep, emulate=True), name=self.original.name)
        error = compare_runs(self.reference, runner(emulated), feeds=self.feeds).error
        if self.half is FP16:
            error = max(error, compare_runs(self.reference, runner(self.result(keep)), feeds=self.feeds).error)
        return error

    def ranking(self, kept: Collection[str]) -> list[str]:
        """The nodes not kept yet, first those that add most noise."""
        emulated = retype(self.folded, half=self.half, keep=kept, emulate=True)
        rounded = Observer(emulated, values=self.names, name=self.original.name)
        nodes = self.folded.proto.graph.node
        ranked = rank(nodes, self.values, self.observed, rounded, self.feeds[0])
        return [name for name in ranked if name not in kept and self.values[name]]


def check_max_error(max_error: float) -> None:
    """Refuse an impossible limit."""
    if not max_error > 0:
        raise ConfigError("the largest error must be positive", where="max_error", got=max_error)


def _too_inaccurate(model: OnnxModel, half: HalfType, error: float, limit: float) -> PrecisionError:
    other = "bf16" if half is FP16 else "fp16"
    return PrecisionError(
        f"the {half.name} model is less accurate than asked",
        error=error,
        limit=limit,
        where=model.name,
        fix=f"raise max_error, compare on real inputs (feeds), or try {other}, or tf32 which needs no conversion",
    )

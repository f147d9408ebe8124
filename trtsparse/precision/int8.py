"""INT8 by post-training quantization: explicit Q/DQ, calibrated, measured against the original."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trtsparse.errors import ConfigError, ModelError, PrecisionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_models, compare_runs
from trtsparse.precision.converted import Converted, KeptNode, check_sparsity
from trtsparse.precision.feeds import Feeds, RandomCalibrationWarning, check_feeds, random_feeds, read_feeds
from trtsparse.precision.fold import fold
from trtsparse.precision.graph import graphs, pack
from trtsparse.precision.half import check_max_error, to_half
from trtsparse.precision.observe import Observer
from trtsparse.precision.origins import Origins
from trtsparse.precision.ort import runner
from trtsparse.precision.placement import Placement, candidates, find_layers, place
from trtsparse.precision.quantize import quantize
from trtsparse.precision.ranges import METHODS, measure_ranges
from trtsparse.precision.search import fewest, rank
from trtsparse.precision.specs import check_outputs, input_specs
from trtsparse.precision.typed import float_values

__all__ = ["MAX_ERROR", "to_int8"]

MAX_ERROR = 0.2
_COMPARED = 8  # inputs that errors are measured on: each try runs all of them
_RANDOM = 8
_DYNAMIC = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}


def to_int8(
    model: str | os.PathLike[str] | bytes | Any,
    *,
    calibration: str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]] | None = None,
    method: Literal["minmax", "entropy", "percentile"] = "minmax",
    rest: Literal["fp32", "fp16"] = "fp32",
    keep_fp32: Sequence[str] = (),
    quantize_outputs: bool = False,
    max_error: float = MAX_ERROR,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Converted:
    """Quantize every Conv, Gemm and MatMul with a constant weight, as `trtsparse.precision.placement` explains.

    Quantization is symmetric, of weights per output channel; scales are float32, biases stay float32. Layers stay in
    float32 when they are asked to and, from the one that adds most noise downwards, until the error is at most
    ``max_error``. The error is that of exact Q/DQ arithmetic in ONNX Runtime on up to 8 calibration inputs.
    A model that has Q/DQ already is returned as it is.

    Args:
        model: A path, bytes, a ModelProto or an OnnxModel, with float32 weights.
        calibration: Real inputs, as `trtsparse.precision.feeds.read_feeds` takes them; or "random", which makes a
            model for measuring time but not accuracy, and warns.
        method: "minmax" covers all values seen, "percentile" 99.99 % of them, "entropy" clips where least
            information is lost.
        rest: What is not quantized: "fp32", or "fp16" as `trtsparse.precision.half.to_half` converts it.
        keep_fp32: Names of nodes that are not quantized, or patterns.
        quantize_outputs: Also quantize outputs of layers that no quantized layer reads, except the model's own:
            sparse INT8 kernels were only ever seen chosen where the output is INT8.
        max_error: Relative, as `trtsparse.precision.compare.Comparison` defines it.
        shapes: For random inputs, see `trtsparse.precision.feeds.random_feeds`.

    Raises:
        ConfigError: An argument is wrong or calibration data are missing.
        FeedError: The calibration data do not fit the model: names, data types, shapes.
        ModelError: The model has nothing to quantize, is quantized in a way that TensorRT refuses, or has an output
            that is not a tensor.
        PrecisionError: The error is above ``max_error`` even with half of the layers in float32.
        EngineError: ONNX Runtime does not load or run the model.
        MissingDependencyError: ONNX Runtime is not installed.

    Warns:
        RandomCalibrationWarning: For ``calibration="random"``.
    """
    _check_options(method, rest)
    check_max_error(max_error)
    original = OnnxModel.open(model)
    check_outputs(original)
    if _is_quantized(original):
        note = "the model has Q/DQ already: its quantization was not changed"
        converted = Converted(original, "int8", (), 0.0, max_error, (note,))
        if rest == "fp32":
            return converted
        half = _with_rest(converted, original, keep_fp32, shapes=shapes)
        return _without_int8(half, _int8_layers(half.model))
    feeds = _calibration(original, calibration, shapes)
    conversion = _Conversion(original, feeds, method, quantize_outputs=quantize_outputs)
    asked = conversion.origins.matching(keep_fp32)
    error, more = fewest(
        lambda names: conversion.error({*asked, *names}), lambda: conversion.ranking(asked), limit=max_error
    )
    if not error <= max_error:
        raise _too_inaccurate(original, error, max_error)
    kept = {**dict.fromkeys(more, "error"), **dict.fromkeys(asked, "asked")}
    converted = conversion.converted(kept, error, max_error)
    if rest == "fp32":
        return converted
    half = _with_rest(converted, original, asked, feeds=conversion.compared)
    return _without_int8(half, _int8_layers(converted.model), conversion.origins)


class _Conversion:
    """Quantizes one model in several ways; values are only calibrated once."""

    def __init__(self, original: OnnxModel, feeds: Feeds, method: str, *, quantize_outputs: bool) -> None:
        self.original = original
        self.feeds = feeds
        self.compared = [feeds[i] for i in range(min(len(feeds), _COMPARED))]
        self.method = method
        self.quantize_outputs = quantize_outputs
        self.folded = fold(original, opset=13)  # scales per channel came with 13
        self.origins = Origins(original, self.folded)
        self.layers = find_layers(self.folded)
        if not self.layers:
            raise ModelError(
                "the model has nothing to quantize",
                where=original.name,
                got="no Conv, Gemm or MatMul with a constant float32 weight",
            )
        self.reference = runner(original)

    @functools.cached_property
    def ranges(self) -> dict[str, float]:
        """The thresholds of every value that may be quantized."""
        values = candidates(self.folded, self.layers)
        observer = Observer(self.folded.load(), values=values, name=self.original.name)
        return measure_ranges(observer, self.feeds, method=self.method)

    def place(self, keep: Collection[str]) -> Placement:
        """Where Q/DQ go."""
        return place(self.folded, self.layers, keep=keep, quantize_outputs=self.quantize_outputs)

    def result(self, keep: Collection[str]) -> OnnxModel:
        """The quantized model."""
        return pack(quantize(self.folded, self.place(keep), self.ranges), name=self.original.name)

    def error(self, keep: Collection[str]) -> float:
        """How far the quantized model is from the original."""
        return compare_runs(self.reference, runner(self.result(keep)), feeds=self.compared).error

    def ranking(self, kept: Collection[str]) -> list[str]:
        """The layers not kept yet, first those that add most noise."""
        values = float_values(self.folded)
        names = list(dict.fromkeys(name for layer in self.layers for name in values[layer.node]))
        reference, converted = (
            Observer(model, values=names, name=self.original.name)
            for model in (self.folded.load(), self.result(kept).load())
        )
        layers = {layer.node for layer in self.layers} - set(kept)
        nodes = [node for node in self.folded.proto.graph.node if node.name in layers]
        return rank(nodes, values, reference, converted, self.compared[0])

    def converted(self, kept: Mapping[str, Any], error: float, limit: float) -> Converted:
        """The result with what a report says about it."""
        model = self.result(kept)
        check_sparsity(self.original, model)
        placement = self.place(kept)
        notes = [f"compared on {len(self.compared)} of {len(self.feeds)} calibration inputs"]
        if placement.open_layers:
            notes.append(
                f"the output of {len(placement.open_layers)} of {len(placement.layers)} quantized layers is not "
                "quantized: sparse INT8 kernels were never seen chosen there (quantize_outputs=True changes it)"
            )
        return Converted(
            model=model,
            precision="int8",
            kept=tuple(KeptNode(*item) for item in self.origins.translated(kept).items()),
            error=error,
            limit=limit,
            notes=tuple(notes),
            open_layers=tuple(name for node in placement.open_layers for name in self.origins.layers(node)),
        )


def _check_options(method: str, rest: str) -> None:
    if method not in METHODS:
        raise ConfigError("no such method", where="method", got=repr(method), expected=", ".join(METHODS))
    if rest not in ("fp32", "fp16"):
        raise ConfigError("no such precision", where="rest", got=repr(rest), expected="'fp32', 'fp16'")


def _is_quantized(model: OnnxModel) -> bool:
    """True for a model with explicit Q/DQ.

    Raises:
        ModelError: It is quantized in a way that TensorRT refuses.
    """
    nodes = [node for graph in graphs(model.proto.graph) for node in graph.node]
    refused = sorted({node.op_type for node in nodes if node.op_type in _DYNAMIC})
    if refused:
        raise ModelError(
            "the model is quantized in a way that TensorRT refuses",
            where=model.name,
            got=", ".join(refused),
            expected="a float32 model, or QuantizeLinear and DequantizeLinear with constant scales",
            fix="quantize the float32 model that it was made from",
        )
    return any(node.op_type == "DequantizeLinear" for node in nodes)


def _calibration(model: OnnxModel, source: Any, shapes: Mapping[str, Sequence[int]] | None) -> Feeds:
    """The inputs to calibrate with, all checked."""
    if source is None:
        raise ConfigError(
            "INT8 needs calibration data",
            where=f"calibration, {model.name}",
            expected="a folder of .npz or .npy files, or an iterable of {input name: array}",
            fix='give some hundred real inputs; calibration="random" is enough to measure time',
        )
    if isinstance(source, str) and source == "random":
        warnings.warn(
            RandomCalibrationWarning(
                f"{model.name} is calibrated with random numbers: its INT8 accuracy on real inputs will be bad"
            ),
            stacklevel=3,
        )
        return random_feeds(model, shapes=shapes, count=_RANDOM)
    names = [spec.name for spec in input_specs(model)]
    feeds = read_feeds(source, input_name=names[0] if len(names) == 1 else "")
    check_feeds(model, feeds)
    return feeds


def _with_rest(
    quantized: Converted,
    reference: OnnxModel,
    keep_fp32: Sequence[str],
    *,
    feeds: Feeds | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Converted:
    """Convert what is not quantized to FP16; the error is that of the whole."""
    half = to_half(quantized.model, feeds=feeds, keep_fp32=keep_fp32, shapes=shapes, max_error=quantized.limit)
    compared = feeds if feeds is not None else random_feeds(reference, shapes=shapes)
    error = max(quantized.error, compare_models(reference, half.model, feeds=compared).error)
    if not error <= quantized.limit:
        raise _too_inaccurate(reference, error, quantized.limit)
    instead = [kept.node for kept in quantized.kept if kept.why == "error"]
    note = (f"not quantized, because it cost too much accuracy: {', '.join(instead)}",) if instead else ()
    return dataclasses.replace(
        half,
        precision="int8+fp16",
        error=error,
        notes=(*quantized.notes, *note, *half.notes),
        open_layers=quantized.open_layers,
    )


def _int8_layers(model: OnnxModel) -> set[str]:
    """Names of the Convs, Gemms and MatMuls with explicit Q/DQ, which run in INT8 whatever their output's type is."""
    found = set()
    for graph in graphs(model.proto.graph):
        dequantized: set[str] = set()
        for node in graph.node:
            if node.op_type == "DequantizeLinear" or (node.op_type == "Transpose" and node.input[0] in dequantized):
                dequantized.update(node.output)
            elif node.op_type in ("Conv", "Gemm", "MatMul") and dequantized.issuperset(node.input[:2]):
                found.add(node.name)
    return found


def _without_int8(half: Converted, layers: Collection[str], origins: Origins | None = None) -> Converted:
    """Leave INT8 layers out of what stayed in float32; with ``origins``, call the rest as in the user's model."""
    kept: dict[str, Any] = {node.node: node.why for node in half.kept}
    int8: Collection[str] = layers
    if origins is not None:
        kept, int8 = origins.translated(kept), origins.translated(dict.fromkeys(layers))
    return dataclasses.replace(half, kept=tuple(KeptNode(*item) for item in kept.items() if item[0] not in int8))


def _too_inaccurate(model: OnnxModel, error: float, limit: float) -> PrecisionError:
    return PrecisionError(
        "the int8 model is less accurate than asked",
        error=error,
        limit=limit,
        where=model.name,
        fix="raise max_error, calibrate with more real inputs or another method, or use fp16",
    )

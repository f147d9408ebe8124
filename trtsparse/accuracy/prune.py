"""Prune a model to N:M: by magnitude alone, or with calibration data, so that each layer's output moves least.

Whatever the method, the model keeps all its bytes but those of the pruned weights and, with calibration data, of the
biases that make up for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from trtsparse.accuracy.calibration import Calibration
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity import prune as magnitude
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.prune import PrunedTensor, PruneResult, Selection, describe, ref_of, select
from trtsparse.sparsity.readers import find_readers
from trtsparse.sparsity.values import pack_int4
from trtsparse.sparsity.weights import find_sites

if TYPE_CHECKING:
    from trtsparse.accuracy.calibrate import LayerError, Outcome

__all__ = ["METHODS", "CalibratedResult", "Method", "prune"]

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS = ("magnitude", "wanda", "sparsegpt")


@dataclass(frozen=True)
class CalibratedResult(PruneResult):
    """A model pruned with calibration data.

    Attributes:
        method: What was asked for.
        samples: How many inputs were used.
        layers: What it does to each layer's output, in the order of ``tensors``, less those that were compliant.
    """

    method: str
    samples: int
    layers: tuple[LayerError, ...]

    def to_dict(self) -> dict[str, Any]:
        """The changes and errors as JSON types."""
        layers = [
            {name: list(value) if isinstance(value, tuple) else value for name, value in vars(layer).items()}
            for layer in self.layers
        ]
        return {**super().to_dict(), "method": self.method, "samples": self.samples, "layers": layers}


def prune(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    output: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: Pattern = TWO_FOUR,
    method: Method = "magnitude",
    calibration: Calibration | str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]] | None = None,
    allow_unknown_operators: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PruneResult:
    """Make every eligible weight compliant.

    - "magnitude" zeroes the smallest weights of each group; it needs no data.
    - "wanda" zeroes the smallest products of weight and norm of its input channel.
    - "sparsegpt" chooses group by group and lets the remaining weights make up for what is dropped.

    With calibration data, layers are pruned in their order, each with the inputs that it gets from the layers pruned
    before; biases take back the shift of the mean output; and a layer for which magnitude moves the output less than
    the method asked for is pruned by magnitude. So is a tensor that cannot be calibrated: inside If and Loop bodies,
    read by other operators too, used along two axes, or with more than 16384 columns; the result says why.

    Args:
        model: A path, serialized bytes, or a model in memory. It is not changed, unless ``output`` is its path.
        output: Where to write; without it the result stays in memory. External data files are written beside it.
        include: Globs; only tensors whose name, or a using node's name, matches one. Empty: all.
        exclude: Globs of tensors or nodes to leave alone.
        pattern: N:M.
        method: One of `METHODS`.
        calibration: Real inputs, or a `Calibration` with them. Some hundred suffice; they need no labels.
        allow_unknown_operators: Accept operators of the standard domain that ONNX does not define (plugins); models
            with such operators cannot be calibrated, for ONNX Runtime does not run them.
        progress: Called with (bytes pruned, bytes in all) after every tensor.

    Returns:
        With calibration data, a `CalibratedResult`.

    Raises:
        ModelError: The model cannot be read or contradicts itself.
        ConfigError: A glob matches nothing, the method is unknown, or calibration data are missing.
        PruneError: A tensor named in ``include`` is not eligible, or its uses contradict each other.
        FeedError: The calibration data do not fit the model, or lead to NaN or infinity.
        EngineError: ONNX Runtime does not run the model.
        MissingDependencyError: ONNX Runtime is not installed; only calibration needs it.
        OutputError: ``output`` cannot be written; nothing is left behind.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 1] y)
        ... <float[4, 1] w = {3, 3, 1, 4}> { y = MatMul(x, w) }'''
        >>> feeds = [{"x": np.float32([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])}]  # the first two are always equal
        >>> result = prune(parser.parse_model(text), method="sparsegpt", calibration=Calibration(feeds, damping=1e-9))
        >>> onnx.numpy_helper.to_array(result.model.load().graph.initializer[0]).ravel().round(3).tolist()
        [6.0, 0.0, 0.0, 4.0]
        >>> layer, = result.layers
        >>> round(layer.error, 2), round(layer.magnitude_error, 2)
        (0.14, 0.43)
    """
    check_method(method, has_data=calibration is not None)
    if calibration is None:
        return magnitude.prune(
            model,
            output=output,
            include=include,
            exclude=exclude,
            pattern=pattern,
            allow_unknown_operators=allow_unknown_operators,
            progress=progress,
        )
    from trtsparse.accuracy.calibrate import Calibrator

    opened = OnnxModel.open(model)
    options = calibration if isinstance(calibration, Calibration) else Calibration(calibration)
    sites = find_sites(opened, pattern=pattern, allow_unknown_operators=allow_unknown_operators)
    selection = select(opened, sites, include=include, exclude=exclude, pattern=pattern)
    feeds = options.read(opened)
    calibrator = Calibrator(opened, selection=selection, pattern=pattern, method=method, options=options, feeds=feeds)
    outcomes = list(calibrator.run(progress=progress).values())
    written, tensors = write(calibrator.model, selection, outcomes, output=output)
    layers = tuple(outcome.layer for outcome in outcomes)
    return CalibratedResult(written, str(pattern), tensors, selection.skipped, method, len(feeds), layers)


def check_method(method: str, *, has_data: bool) -> None:
    """Refuse an unknown method, and one that needs calibration data without them."""
    if method not in METHODS:
        raise ConfigError("no such method", where="method", got=repr(method), expected=", ".join(map(repr, METHODS)))
    if method != "magnitude" and not has_data:
        raise ConfigError(
            f"{method!r} needs calibration data",
            where="calibration",
            fix="give real inputs: a folder of .npz files or a list of feeds",
        )


def write(
    model: OnnxModel,
    selection: Selection,
    outcomes: Sequence[Outcome],
    *,
    output: str | os.PathLike[str] | None,
) -> tuple[OnnxModel, tuple[PrunedTensor, ...]]:
    """Copy a model with new values for some of its tensors.

    Args:
        model: The original, every tensor located.
        selection: What the call is about.
        outcomes: The new values.
        output: Where to write; None keeps the copy in memory.

    Returns:
        The copy, opened, and what happened to every tensor that was chosen.
    """
    from trtsparse.accuracy.located import located

    changes = {key: values for outcome in outcomes for key, values in outcome.changes().items()}
    refs = [ref for ref in model.refs() if ref.key in changes]
    target = None if output is None else Path(output)
    with model.copying(target, replaced=refs) as copy:
        there = copy if copy.proto is model.proto else located(copy)  # its bytes may lie elsewhere
        for old, new in zip(model.refs(), there.refs(), strict=True):
            values = changes.pop(old.key, None)  # tied tensors come once for each name
            if values is not None:
                with copy.edit(new) as stored:
                    stored[...] = pack_int4(values) if new.packed else values
    zeroed = {ref_of(outcome.uses).key: outcome.zeroed for outcome in outcomes}
    readers = find_readers(model, selection.chosen)
    tensors = tuple(
        describe(uses, zeroed=zeroed.get(ref_of(uses).key, 0), readers=readers) for uses in selection.chosen
    )
    if output is not None:
        return OnnxModel.open(output), tensors
    return OnnxModel(copy.files, name=copy.name, folder=copy.folder), tensors

"""How a build reaches its precision: by flags, by converting the graph, or because the model has it already."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx

from trtsparse.builder.capabilities import Capabilities
from trtsparse.builder.config import BuildConfig
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import graphs

__all__ = ["Conversion", "Route", "choose_route", "convert", "stored_precision"]

Way = Literal["as is", "flags", "converted graph", "converted graph and flags"]
Feeds = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

_FLOATS = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.DOUBLE: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Route:
    """What will be done.

    Attributes:
        strong: Build a strongly typed network.
        flags: Members of BuilderFlag to set.
        convert: Precisions to convert the graph to, in this order.
        reached: The precision of the result.
    """

    strong: bool
    flags: tuple[str, ...]
    convert: tuple[str, ...]
    reached: str

    @property
    def way(self) -> Way:
        """In the report's words."""
        if self.convert:
            return "converted graph and flags" if self.flags else "converted graph"
        return "flags" if self.flags else "as is"

    @property
    def keeps_fp32(self) -> bool:
        """What the graph has in FP32 stays so: no flag lets TensorRT run it in half precision."""
        return not {"FP16", "BF16"}.intersection(self.flags)


@dataclass(frozen=True)
class Conversion:
    """A converted model and how much it differs from its source.

    Attributes:
        model: What to build.
        kept: Nodes left in FP32.
        error: Largest error, relative to the output range; None where nothing was converted.
        limit: The largest that was allowed.
        steps: What each converter reports.
    """

    model: OnnxModel
    kept: tuple[str, ...] = ()
    error: float | None = None
    limit: float | None = None
    steps: tuple[dict[str, Any], ...] = ()

    @property
    def open_layers(self) -> tuple[str, ...]:
        """Quantized nodes whose output stays floating point."""
        return tuple(name for step in self.steps for name in step.get("open_layers", ()))


def stored_precision(model: OnnxModel) -> str:
    """The precision that most of a model's weights have: "fp32", "fp16", "bf16", or "int8" for Q/DQ models.

    Initializers and Constant nodes count, those of subgraphs and functions too.
    """
    proto = model.proto
    outermost = (proto.graph, *(onnx.GraphProto(node=function.node) for function in proto.functions))
    found = [inner for graph in outermost for inner in graphs(graph)]
    nodes = [node for graph in found for node in graph.node]
    if any(node.op_type == "DequantizeLinear" for node in nodes):
        return "int8"
    constants = [a.t for node in nodes if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    sizes: Counter[str] = Counter()
    for tensor in (*(tensor for graph in found for tensor in graph.initializer), *constants):
        if tensor.data_type in _FLOATS:
            sizes[_FLOATS[tensor.data_type]] += math.prod(tensor.dims)
    if not sizes:
        sizes.update(_FLOATS.get(value.type.tensor_type.elem_type, "fp32") for value in proto.graph.input)
    return sizes.most_common(1)[0][0] if sizes else "fp32"


def choose_route(config: BuildConfig, capabilities: Capabilities, stored: str) -> Route:
    """Decide how to reach ``config.precision``.

    Args:
        config: What was asked for.
        capabilities: Of the installed version.
        stored: The model's `stored_precision`.

    Raises:
        UnsupportedOptionError: Not on this version, or not with the typing asked for.
        ConfigError: Options that this model or this typing gives no meaning to.
    """
    route = _route(config, capabilities, stored)
    if not route.convert:
        _refuse_options_of_conversions(config, stored)
    return route


def convert(
    model: OnnxModel, route: Route, config: BuildConfig, *, samples: Sequence[Feeds], shapes: Shapes | None
) -> Conversion:
    """Convert a model along a route, comparing it with the original.

    Args:
        model: Perhaps pruned.
        route: From `choose_route`.
        config: For the limit and the nodes to keep.
        samples: Real inputs; random ones are used where there are none.
        shapes: Of the random inputs.

    Raises:
        PrecisionError: Less accurate than allowed.
        ConfigError: INT8 without samples to calibrate with.
    """
    result = Conversion(model)
    for precision in route.convert:
        if precision == "int8":
            step = _to_int8(result.model, route, samples, shapes, config)
        else:
            step = _to_half(result.model, precision, samples, shapes, config)
        result = Conversion(
            model=step.model,
            kept=tuple(dict.fromkeys((*result.kept, *(kept.node for kept in step.kept)))),
            error=max(step.error, result.error or 0.0),
            limit=step.limit,
            steps=(*result.steps, step.to_dict()),
        )
    return result


def _route(config: BuildConfig, capabilities: Capabilities, stored: str) -> Route:
    graph_option = _graph_option(config)
    if config.typing == "weak":
        capabilities.require("flag fp16", "typing='weak'")
        if graph_option:
            raise ConfigError(
                f"{graph_option} acts on converted graphs, and flags convert nothing",
                got="typing='weak'",
                expected="typing='auto' or 'strong'",
            )
    if config.typing == "strong" or graph_option:
        capabilities.require("strong typing", graph_option or "typing='strong'")
    if config.typing == "strong" or graph_option or not capabilities.weak_typing:
        return _strong(config, stored)
    flags = _flags(config, capabilities, stored)
    for flag in flags:
        capabilities.require(f"flag {flag.lower()}", f"precision={config.precision!r}")
    convert = ("int8",) if config.precision == "int8" and stored != "int8" else ()
    reached = "int8" if "INT8" in flags else _first(config.precision, stored)
    return Route(strong=False, flags=flags, convert=convert, reached=reached)


def _strong(config: BuildConfig, stored: str) -> Route:
    """The graph says it all: convert unless it is there already."""
    target = "fp16" if config.precision == "best" else config.precision
    if target == "int8":
        ready = stored == "int8" and config.int8_rest != "fp16"
        return Route(strong=True, flags=(), convert=() if ready else ("int8",), reached="int8")
    if target in ("fp16", "bf16") and stored != target:
        return Route(strong=True, flags=(), convert=(target,), reached="int8" if stored == "int8" else target)
    return Route(strong=True, flags=(), convert=(), reached=_first(target, stored))


def _graph_option(config: BuildConfig) -> str | None:
    """The option, if there is one, that needs a converted graph although the precision may be a flag."""
    keep = f"keep_fp32={config.keep_fp32!r}" if config.keep_fp32 else None
    if config.precision == "int8":  # converted in any case, but a flag lets TensorRT run the rest in FP16
        return f"{keep} with int8_rest='fp16'" if keep and config.int8_rest == "fp16" else None
    if config.precision not in ("fp16", "bf16", "best"):
        return None
    return keep or (None if config.max_error is None else f"max_error={config.max_error!r}")


def _refuse_options_of_conversions(config: BuildConfig, stored: str) -> None:
    """What would be ignored is refused."""
    options = {
        f"keep_fp32={config.keep_fp32!r}": bool(config.keep_fp32),
        f"max_error={config.max_error!r}": config.max_error is not None,
    }
    for option in (option for option, given in options.items() if given):
        raise ConfigError(
            f"{option} is about conversions, and the model is not converted",
            got=f"precision={config.precision!r} and a model stored in {stored.upper()}",
            fix=f"leave {option.partition('=')[0]} out",
        )


def _first(asked: str, stored: str) -> str:
    """What is reached where nothing is converted: a model stored in half precision stays so."""
    if asked == "best":
        return "fp16"
    return asked if stored == "fp32" or asked not in ("fp32", "tf32") else stored


def _flags(config: BuildConfig, capabilities: Capabilities, stored: str) -> tuple[str, ...]:
    flags = {
        "fp32": (),
        "tf32": ("TF32",),
        "fp16": ("FP16",),
        "bf16": ("BF16",),
        "int8": ("INT8",) if config.int8_rest == "fp32" or config.keep_fp32 else ("INT8", "FP16"),
        "best": ("FP16", "TF32", *(("BF16",) if "flag bf16" in capabilities.features else ())),
    }[config.precision]
    of_model = {"int8": ("INT8",), "fp16": ("FP16",), "bf16": ("BF16",)}.get(stored, ())
    return tuple(dict.fromkeys((*flags, *of_model)))


def _to_half(
    model: OnnxModel, precision: Any, samples: Sequence[Feeds], shapes: Shapes | None, config: BuildConfig
) -> Any:
    from trtsparse.precision.half import to_half

    return to_half(
        model,
        precision=precision,
        keep_fp32=config.keep_fp32,
        feeds=samples or None,
        shapes=shapes,
        **_limit(config),
    )


def _to_int8(
    model: OnnxModel, route: Route, samples: Sequence[Feeds], shapes: Shapes | None, config: BuildConfig
) -> Any:
    random = config.random_calibration and not samples
    if not samples and not random and stored_precision(model) != "int8":
        raise ConfigError(
            "INT8 needs sample inputs to calibrate with",
            where=f"precision='int8', {model.name}",
            expected="build(..., samples=[{input: array}, ...]), or a model that is quantized already (Q/DQ)",
            fix="random_calibration=True is enough to measure time",
        )
    from trtsparse.precision.int8 import to_int8

    return to_int8(
        model,
        calibration="random" if random else samples or None,
        method=config.calibration,
        rest="fp16" if route.strong and config.int8_rest == "fp16" else "fp32",
        keep_fp32=config.keep_fp32,
        quantize_outputs=config.wants_sparsity,
        shapes=shapes,
        **_limit(config),
    )


def _limit(config: BuildConfig) -> dict[str, Any]:
    return {} if config.max_error is None else {"max_error": config.max_error}

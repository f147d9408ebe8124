"""From an ONNX model to a TensorRT network, with everything the parser refuses."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from trtsparse.builder.advanced import Advanced, apply_parser_flags
from trtsparse.builder.capabilities import Capabilities
from trtsparse.builder.logs import Log
from trtsparse.builder.plan import FLAVOUR_NAMES
from trtsparse.errors import ModelError, OperatorError
from trtsparse.files.model import OnnxModel
from trtsparse.files.protobuf import Buffer
from trtsparse.files.shapes import is_shared

__all__ = ["Parsed", "create_network", "describe_io", "parse"]


class Parsed:
    """A network and what must live as long as it: the real parser's weights die with the parser.

    Attributes:
        network: The INetworkDefinition.
        parser: The OnnxParser that filled it.
    """

    def __init__(self, network: Any, parser: Any) -> None:
        self.network = network
        self.parser = parser


def create_network(trt: Any, builder: Any, capabilities: Capabilities, *, strong: bool) -> Any:
    """An empty network with the flags that this version needs."""
    wanted = ["EXPLICIT_BATCH"] if "explicit batch" in capabilities.features else []
    if strong and "strong typing" in capabilities.features:
        wanted.append("STRONGLY_TYPED")
    flags = 0
    for name in wanted:
        flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
    return builder.create_network(flags)


def parse(
    trt: Any, network: Any, model: OnnxModel, logger: Any, log: Log, *, name: str, settings: Advanced | None = None
) -> Parsed:
    """Fill a network from a model.

    Args:
        trt: The TensorRT module.
        network: Empty.
        model: What to parse.
        logger: For the parser.
        log: What the logger fills.
        name: What messages call the model.
        settings: For the parser's flags.

    Raises:
        OperatorError: Nodes that the parser refuses; all of them are listed.
        ModelError: The parser refuses the model as a whole, or finds no outputs in it.
        UnsupportedOptionError: This version lacks a flag.
    """
    flavour = FLAVOUR_NAMES[trt.__name__.partition(".")[0]]
    before = len(log.messages)
    parser = trt.OnnxParser(network, logger)
    if settings is not None and settings.parser_flags:
        apply_parser_flags(trt, parser, settings, version=Capabilities.of(trt).name)
    parsed = _feed(parser, model)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not parsed or errors:
        raise _refusal(errors, model, log.since(before), flavour, name)
    if network.num_outputs == 0:
        raise ModelError(
            f"{flavour} finds no outputs in the model", where=name, fix="check that the file is the exported model"
        )
    return Parsed(network, parser)


def describe_io(network: Any) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """Inputs and outputs as ``{"name", "dtype", "shape"}``; dynamic dims are -1."""
    inputs = tuple(_describe(network.get_input(index)) for index in range(network.num_inputs))
    outputs = tuple(_describe(network.get_output(index)) for index in range(network.num_outputs))
    return inputs, outputs


_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8_e4m3fn"}


def _describe(tensor: Any) -> dict[str, Any]:
    try:
        shape = [int(dim) for dim in tensor.shape]
    except ValueError:  # a rank that is not known before execution
        shape = []
    return {"name": tensor.name, "dtype": _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()), "shape": shape}


def _feed(parser: Any, model: OnnxModel) -> bool:
    """Hand over the model in the way that copies least."""
    renamed = _with_distinct_dims(model)
    if model.path is not None and renamed is None:
        return bool(parser.parse_from_file(str(model.path)))
    if len(model.files) == 1:
        data = renamed if renamed is not None else model.files[""]
        where = model.path or model.folder
        return bool(parser.parse(data, str(where)) if where else parser.parse(data))
    with tempfile.TemporaryDirectory(prefix="trtsparse-") as folder:  # external data that exists in memory only
        path = Path(folder) / "model.onnx"
        model.save(path)
        if renamed is not None:
            path.write_bytes(renamed)
        return bool(parser.parse_from_file(str(path)))


def _with_distinct_dims(model: OnnxModel) -> Buffer | None:
    """The model file with names such as "?" made distinct; None where that is not needed.

    TensorRT takes dims of one name for equal sizes, and some exporters call every dim "?".
    """
    initializers = {tensor.name for tensor in model.proto.graph.initializer}
    inputs = [value for value in model.proto.graph.input if value.name not in initializers]
    names = Counter(dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param)
    if not any(count > 1 and not is_shared(name) for name, count in names.items()):
        return None
    main = model.files[""]
    whole = onnx.ModelProto.FromString(main.read_bytes() if isinstance(main, Path) else bytes(main))
    for value in whole.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and not is_shared(dim.dim_param):
                dim.dim_param = f"{value.name}_{axis}"
    for value in whole.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and not is_shared(dim.dim_param):
                dim.ClearField("dim_param")
    return bytes(whole.SerializeToString())


def _refusal(errors: list[Any], model: OnnxModel, log: Log, flavour: str, name: str) -> ModelError:
    nodes = tuple(_node_text(error, model) for error in errors if error.node() >= 0)
    if nodes:
        few = "an operator" if len(nodes) == 1 else f"{len(nodes)} operators"
        return OperatorError(
            f"{flavour} refuses {few} of the model",
            nodes=nodes,
            where=name,
            fix="replace them, export with another opset, or give the plugin library that has them (plugins)",
        )
    texts = tuple(dict.fromkeys(error.desc().strip() for error in errors)) or log.errors
    return ModelError(
        f"{flavour} cannot read the model", where=name, got="; ".join(texts) or "no reason given",
        fix="check the model with onnx.checker, or export it again",
    )  # fmt: skip


def _node_text(error: Any, model: OnnxModel) -> str:
    text = " ".join(error.desc().split())
    if "Plugin not found" in text:
        text = "unknown operator, and no plugin of this name is registered"
    elif text == "false":
        text = "not supported"
    name, operator = _node_of(error, model)
    return (
        f"{name or f'{operator}_{error.node()}'!r} ({operator}): {text}"  # as weight sites call nodes without a name
    )


def _node_of(error: Any, model: OnnxModel) -> tuple[str, str]:
    """Name and operator of the refused node; TensorRT 8.6 tells its position alone."""
    if hasattr(error, "node_operator"):
        return error.node_name(), error.node_operator()
    nodes = model.proto.graph.node
    node = nodes[error.node()] if error.node() < len(nodes) else onnx.NodeProto(op_type="node")
    return node.name, node.op_type

"""Models that fit on a page, and requests for them."""

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper, parser

from trtsparse import prune

DTYPES = {
    "FP16": ("float16", np.float16),
    "BF16": ("bfloat16", ml_dtypes.bfloat16),
    "FP32": ("float", np.float32),
    "FP64": ("double", np.float64),
    "INT8": ("int8", np.int8),
    "UINT8": ("uint8", np.uint8),
    "INT16": ("int16", np.int16),
    "INT32": ("int32", np.int32),
    "INT64": ("int64", np.int64),
    "BOOL": ("bool", np.bool_),
}
"""Triton's name of a type in requests to ONNX's and numpy's."""
TEXTS = {
    "scalars": (
        "g (float[3] x, float s) => (float[3] y, float total) { y = Mul(x, s) total = ReduceSum<keepdims = 0>(y) }"
    ),
    "items": "g (int64[n] x) => (int64[n] y) { y = Add(x, x) }",
    "two": "g (float[n, s] a, float[n, s] b) => (float[n, s] y) { y = Add(a, b) }",
    "lookup": "g (int64[n, 1] i) => (float[n, 1] y) <float[4] table = {1, 2, 3, 4}> { y = Gather(table, i) }",
    "fixed": "g (float[2, 3] x) => (float[3, 2] y) { y = Transpose<perm = [1, 0]>(x) }",
}


def from_text(text):
    """A model of ONNX's own text."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')


def every_type(*names):
    """A model that returns each of its inputs, one for each data type."""
    types = {name: DTYPES[name][0] for name in names or DTYPES}
    inputs = ", ".join(f"{onnx}[n, 2] i{name}" for name, onnx in types.items())
    outputs = ", ".join(f"{onnx}[n, 2] o{name}" for name, onnx in types.items())
    nodes = " ".join(f"o{name} = Identity(i{name})" for name in types)
    return from_text(f"g ({inputs}) => ({outputs}) {{ {nodes} }}")


def small_models():
    """Models with and without batches, scalars, all data types, by name."""
    return {**{name: from_text(text) for name, text in TEXTS.items()}, "types": every_type()}


def integer_layer(seed=0):
    """``y = x @ w`` with whole numbers, pruned 2:4: exact whatever the batch."""
    weights = np.random.default_rng(seed).integers(-9, 10, (64, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    dense = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return prune(dense).model.load()


def weights_of(model):
    """The first weight."""
    return numpy_helper.to_array(model.graph.initializer[0])


def infer(client, name, feeds, **options):
    """Send arrays, get arrays.

    Args:
        client: Of tritonclient.http or tritonclient.grpc.
        name: The model's.
        feeds: Input name to array.
        options: Of ``client.infer``.
    """
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    on_grpc = isinstance(client, tritonclient.grpc.InferenceServerClient)
    library = tritonclient.grpc if on_grpc else tritonclient.http
    inputs = []
    for key, array in feeds.items():
        kind = next(triton for triton, (_, dtype) in DTYPES.items() if np.dtype(dtype) == array.dtype)
        inputs.append(library.InferInput(key, array.shape, kind))
        try:
            inputs[-1].set_data_from_numpy(array)
        except InferenceServerException:  # older clients take BF16 as float32
            inputs[-1].set_data_from_numpy(array.astype(np.float32))
    if "outputs" in options:
        options["outputs"] = [library.InferRequestedOutput(output) for output in options["outputs"]]
    answer = client.infer(name, inputs, **options)
    outputs = answer.get_response().outputs if on_grpc else answer.get_response()["outputs"]
    return {entry: answer.as_numpy(entry) for entry in ((o.name if on_grpc else o["name"]) for o in outputs)}


def infer_once(address, name, feeds):
    """As `infer` over gRPC, with a client of its own: for threads."""
    import tritonclient.grpc

    with tritonclient.grpc.InferenceServerClient(address) as client:
        return infer(client, name, feeds)

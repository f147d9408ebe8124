"""Small models, written in few words."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21


def tensor(name, values):
    """An initializer with raw_data."""
    return numpy_helper.from_array(np.asarray(values), name)


def random(*shape, seed=0, dtype=np.float32):
    """Weights without zeros and without ties."""
    size = int(np.prod(shape))
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.arange(1, size + 1)) * generator.choice([-1, 1], size)
    return (values / size).reshape(shape).astype(dtype)


def sparse(*shape, axis, seed=0):
    """Weights that are 2:4 along an axis: the first and third of every four are zero."""
    values = random(*shape, seed=seed)
    np.moveaxis(values, axis, 0)[0::2] = 0
    return values


def model(nodes, initializers=(), *, inputs=None, outputs=None, opset=OPSET, **fields):
    """A model with float inputs and outputs given as name -> shape (None: unknown)."""
    inputs = {"x": [2, 8]} if inputs is None else inputs
    outputs = {"y": None} if outputs is None else outputs
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    ]
    graph = helper.make_graph(list(nodes), "graph", *infos, list(initializers))
    domains = {function.domain for function in fields.get("functions", ())}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **fields)


def matmul(weights, *, rows=2, name="matmul", **options):
    """``y = x @ w`` with the given array as ``w``."""
    weights = np.asarray(weights)
    x = [rows, weights.shape[-2]]
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=name)],
        [tensor("w", weights)],
        inputs={"x": x},
        **options,
    )


def arrays(source):
    """Initializers of a ModelProto or OnnxModel as arrays, by name."""
    proto = source if isinstance(source, onnx.ModelProto) else source.load()
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def save_external(proto, path, **locations):
    """Save a model with the named initializers in external files: w="weights.bin", appended in this order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for initializer in copy.graph.initializer:
        location = locations.get(initializer.name)
        if location is None:
            continue
        file = path.parent / location
        file.parent.mkdir(parents=True, exist_ok=True)
        data, offset = initializer.raw_data, file.stat().st_size if file.exists() else 0
        with file.open("ab") as out:
            out.write(data)
        point_to(initializer, location=location, offset=offset, length=len(data))
    path.write_bytes(copy.SerializeToString())
    return path


def point_to(initializer, **entries):
    """Make an initializer external, with these entries."""
    initializer.ClearField("raw_data")
    initializer.data_location = TensorProto.EXTERNAL
    del initializer.external_data[:]
    for key, value in entries.items():
        initializer.external_data.add(key=key, value=str(value))


def differing(before, after):
    """Indices of the bytes that differ."""
    assert len(before) == len(after)
    return np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))

"""Dims that values have at the least, against shapes that were inferred."""

import numpy as np
import onnx
import pytest
from onnx import helper

import models
from tests.helpers import model, random, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.ranks import least_ranks
from trtsparse.files.model import OnnxModel


def ranks_of(source):
    """What is found, and what ONNX infers, by value."""
    proto = source if isinstance(source, onnx.ModelProto) else onnx.load(source)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    right = {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.HasField("shape")}
    return least_ranks(read_graph(OnnxModel.open(source))), right


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert-base", {"layers": 1, "hidden": 64, "heads": 4, "intermediate": 96, "vocabulary": 99}),
        ("vit-base", {"layers": 1, "hidden": 64, "heads": 4, "intermediate": 96, "image_size": 32}),
        ("resnext50", {"width": 8, "image_size": 64, "num_classes": 9}),
        ("magika", {}),
        ("ppocr-rec", {}),
    ],
)
def test_no_value_of_a_real_model_has_fewer_dims_than_was_found(name, options):
    found, right = ranks_of(models.get(name, **options))
    assert all(found[value] <= rank for value, rank in right.items() if value in found)
    assert sum(found.get(value) == rank for value, rank in right.items()) > len(right) / 2


CASES = {
    "a vector times a matrix": ("MatMul", [(8,), random(8, 4)], {}, 1),
    "a matrix times a vector": ("MatMul", [(2, 8), random(8)], {}, 1),
    "a row of a table": ("Gather", [random(5, 8), np.array(1)], {}, 1),
    "rows of a table": ("Gather", [random(5, 8), np.array([[1, 2]])], {}, 3),
    "a dim more": ("Unsqueeze", [random(5, 8), np.array([0, 1])], {}, 4),
    "a dim less": ("Squeeze", [random(1, 8), np.array([0])], {}, 1),
    "a sum of all": ("ReduceSum", [random(5, 8)], {"keepdims": 0}, 0),
    "a row of sums": ("ReduceSum", [random(5, 8), np.array([0])], {}, 2),
    "expanded": ("Expand", [random(8), np.array([2, 1, 8])], {}, 3),
    "flat": ("Flatten", [random(2, 3, 4)], {}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_no_value_has_fewer_dims_than_was_found(case):
    op, inputs, attributes, rank = CASES[case]
    fed = {f"i{at}": list(shape) for at, shape in enumerate(inputs) if isinstance(shape, tuple)}
    constants = [tensor(f"i{at}", array) for at, array in enumerate(inputs) if not isinstance(array, tuple)]
    node = helper.make_node(op, [f"i{at}" for at in range(len(inputs))], ["y"], **attributes)
    found, right = ranks_of(model([node], constants, inputs=fed))
    assert right["y"] == rank
    assert found["y"] <= rank
    assert found["y"] == rank or op in ("Squeeze", "MatMul")

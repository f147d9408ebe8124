"""Quantized products whose results only quantized products read."""

import numpy as np
import pytest
from onnx import helper

import models
from tests.engines.cusparselt.quantized_programs import activation, check, rewritten
from tests.helpers import model, random, sparse, tensor
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.int8 import to_int8
from trtsparse.precision.quantize import quantize_weight
from trtsparse.sparsity.prune import prune

pytest.importorskip("torch")


def product(source, name, rows, columns):
    """``{name}``: a quantized product of ``{source}_dq`` and a bias; its nodes and constants."""
    values, scales = quantize_weight(sparse(rows, columns, axis=0), axis=1)
    zeros = np.zeros(columns, np.int8)
    constants = [
        tensor(f"{name}_w", values), tensor(f"{name}_s", scales), tensor(f"{name}_z", zeros),
        tensor(f"{name}_b", random(columns, seed=3)),
    ]  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", [f"{name}_{part}" for part in "wsz"], [f"{name}_dq"], axis=1),
        helper.make_node("MatMul", [f"{source}_dq", f"{name}_dq"], [f"{name}_m"], name=name),
        helper.make_node("Add", [f"{name}_m", f"{name}_b"], [name]),
    ]
    return nodes, constants


def chain(*, act="Relu", second_scale=0.02, readers=1, also_output=False):
    """A product, an activation, and products of that."""
    hidden = [f"h{number}" for number in range(readers)]
    parts = [activation("x"), product("x", "fc1", 32, 48), ([helper.make_node(act, ["fc1"], ["h"])], [])]
    for name in hidden:
        scale = np.float32(0.02 if name == "h0" else second_scale)
        parts += [
            ([helper.make_node("Identity", ["h"], [name])], []), activation(name, scale=scale),
            product(name, f"of {name}", 48, 16),
        ]  # fmt: skip
    outputs = {**{f"of {name}": [5, 16] for name in hidden}, **({"h": [5, 48]} if also_output else {})}
    nodes, constants = ([one for part in parts for one in part[which]] for which in (0, 1))
    return model(nodes, constants, inputs={"x": [5, 32]}, outputs=outputs, opset=21)


def chained(graph):
    """Names of the products that give integers."""
    return [node.name for node in graph.nodes if node.op == "QuantizedLinear" and "y_scale" in node.attributes]


@pytest.mark.parametrize(
    ("options", "count", "expected"),
    [
        ({}, 2, ["fc1"]), ({"act": "Gelu"}, 2, ["fc1"]), ({"readers": 2, "second_scale": 0.03}, 3, []),
        ({"readers": 2}, 2, ["fc1"]),  # those two are one product
        ({"also_output": True}, 2, []), ({"act": "Sigmoid"}, 2, []),
    ],
)  # fmt: skip
def test_a_product_gives_integers_where_all_that_read_it_want_the_same(options, count, expected):
    graph = check(chain(**options), tolerance=1e-5, QuantizedLinear=count, QuantizeLinear=0)
    assert chained(graph) == expected


def test_the_first_product_of_each_mlp_of_a_transformer_gives_integers():
    source = prune(models.get("bert-base", layers=2, hidden=64, heads=4, intermediate=128, vocabulary=99)).model
    feeds = random_feeds(source, shapes={"input_ids": (2, 16)}, count=2)
    graph = rewritten(to_int8(source, calibration=list(feeds), max_error=0.5).model)
    assert chained(graph) == [f"encoder.layer.{number}.intermediate.dense/MatMul" for number in range(2)]

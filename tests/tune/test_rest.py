import numpy as np
import onnx
import pytest
from onnx import helper

import models
from tests.helpers import matmul, model, random, tensor
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.weights import find_sites
from trtsparse.tune.gpus import GPUS, LAUNCH_MS
from trtsparse.tune.rest import Work, count_rest


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=outputs[0] + "_" + op, **attributes)


def counted(proto, shapes=None):
    opened = OnnxModel.open(proto)
    sites = find_sites(opened, shapes=shapes)
    products = {site.node for site in sites if site.eligible}
    return count_rest(opened, sites, shapes=shapes, products=products)


def test_a_product_alone_leaves_nothing():
    rest = counted(matmul(random(8, 16)))
    assert rest.fused == rest.unfused == Work()


def test_what_follows_a_product_point_by_point_is_part_of_it():
    proto = model(
        [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["c"]), node("Relu", ["c"], ["y"])],
        [tensor("w", random(8, 16)), tensor("b", random(16))],
    )
    rest = counted(proto)
    assert rest.fused == Work()
    assert rest.unfused == Work(elements=4 * 2 * 16, kernels=2)


def test_a_residual_is_read_by_the_product_that_it_is_added_to():
    proto = model(
        [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "x"], ["y"])],
        [tensor("w", random(8, 8))],
        inputs={"x": [4, 8]},
    )
    assert counted(proto).fused == Work(elements=4 * 8)


def test_a_normalization_is_one_kernel_that_reads_and_writes_once():
    """Decomposed as exporters do it: seven nodes."""
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[-1]), node("Sub", ["x", "mean"], ["d"]),
        node("Pow", ["d", "two"], ["square"]), node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        node("Sqrt", ["variance"], ["root"]), node("Div", ["d", "root"], ["normal"]),
        node("Mul", ["normal", "gain"], ["n"]), node("MatMul", ["n", "w"], ["y"]),
    ]  # fmt: skip
    weights = [tensor("two", np.float32(2)), tensor("gain", random(8)), tensor("w", random(8, 8))]
    rest = counted(model(nodes, weights, inputs={"x": [4, 8]}, opset=17))
    assert rest.fused == Work(elements=2 * 4 * 8, kernels=1)
    assert rest.unfused.kernels == 7


def test_attention_never_writes_its_scores():
    nodes = [
        node("MatMul", ["q", "k"], ["s"]), node("Mul", ["s", "scale"], ["t"]), node("Softmax", ["t"], ["p"]),
        node("MatMul", ["p", "v"], ["y"]),
    ]  # fmt: skip
    shapes = {"q": [2, 16, 8], "k": [2, 8, 16], "v": [2, 16, 8]}
    rest = counted(model(nodes, [tensor("scale", np.float32(0.5))], inputs=shapes))
    one, scores, flops = 2 * 16 * 8, 2 * 16 * 16, 2 * 2 * 2 * 16 * 16 * 8
    assert rest.fused == Work(elements=4 * one, flops=flops, kernels=2)
    assert rest.unfused == Work(elements=4 * one + 6 * scores, flops=flops, kernels=4)


def test_blocks_one_after_another_are_not_fused_across_their_products():
    """The residual stream of a pre-norm encoder leads past the products: what comes after them is another kernel."""
    nodes, before = [], "x"
    for at in range(3):
        nodes += [
            node("ReduceMean", [before], [f"m{at}"], axes=[-1]), node("Sub", [before, f"m{at}"], [f"n{at}"]),
            node("MatMul", [f"n{at}", "w"], [f"f{at}"]), node("Add", [f"f{at}", before], [f"r{at}"]),
        ]  # fmt: skip
        before = f"r{at}"
    proto = model(nodes, [tensor("w", random(8, 8))], inputs={"x": [4, 8]}, outputs={before: None}, opset=17)
    assert counted(proto).fused.kernels == 3


def test_a_grouped_convolution_is_counted_with_its_weights():
    proto = model(
        [node("Conv", ["x", "w"], ["y"], group=2)], [tensor("w", random(16, 4, 1, 1))], inputs={"x": [1, 8, 5, 5]}
    )
    assert counted(proto).fused == Work(elements=(8 + 16) * 25 + 64, flops=2 * 25 * 16 * 4, kernels=1)


def test_reshapes_are_free_and_gathers_read_what_they_write():
    nodes = [
        node("Gather", ["table", "i"], ["e"]), node("Reshape", ["e", "flat"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]  # fmt: skip
    weights = [
        tensor("table", random(1000, 8)), tensor("i", np.int64([1, 2, 3])), tensor("flat", np.int64([3, 8])),
        tensor("w", random(8, 8)),
    ]  # fmt: skip
    rest = counted(model(nodes, weights, inputs={"x": [1]}))
    assert rest.unfused == Work(elements=2 * 24, kernels=1)
    assert rest.fused.elements == 0


def test_unknown_shapes_count_as_nothing_and_given_ones_are_used():
    proto = model(
        [node("Softmax", ["x"], ["s"]), node("MatMul", ["s", "w"], ["y"])],
        [tensor("w", random(8, 8))],
        inputs={"x": ["n", 8]},
    )
    assert counted(proto).unfused.elements == 0
    assert counted(proto, {"x": (4, 8)}).unfused.elements == 64
    with pytest.raises(ConfigError, match="a shape contradicts the model"):
        count_rest(OnnxModel.open(proto), (), shapes={"x": (4, 9)}, products=())


@pytest.mark.parametrize("between", [[], ["Relu"], ["Relu", "Clip"]])
@pytest.mark.parametrize("quantized", [True, False])
def test_outputs_that_are_quantized_right_after_are_found(between, quantized):
    nodes, name = [node("MatMul", ["x", "w"], ["a"])], "a"
    for at, op in enumerate(between):
        nodes.append(node(op, [name], [f"b{at}"]))
        name = f"b{at}"
    after = node("QuantizeLinear", [name, "scale", "zero"], ["y"]) if quantized else node("Softmax", [name], ["y"])
    weights = [tensor("w", random(8, 8)), tensor("scale", np.float32(1)), tensor("zero", np.int8(0))]
    rest = counted(model([*nodes, after], weights))
    assert rest.int8 == ({("a_MatMul",)} if quantized else set())


def test_in_a_body_outputs_that_are_quantized_right_after_are_found_too():
    """The main graph has a product of the same name, whose output stays as it is."""
    value = helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
             node("DequantizeLinear", ["q", "scale", "zero"], ["t"])]  # fmt: skip
    other = helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, None)
    branch = helper.make_node(
        "If", ["c"], ["b"], then_branch=helper.make_graph(nodes, "then", [], [value]),
        else_branch=helper.make_graph([node("Identity", ["x"], ["e"])], "else", [], [other]),
    )  # fmt: skip
    weights = [tensor("w", random(8, 8)), tensor("scale", np.float32(1)), tensor("zero", np.int8(0))]
    plain = helper.make_node("MatMul", ["b", "w"], ["y"], name="a_MatMul")
    proto = model([branch, plain], weights)
    proto.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    rest = counted(proto)
    (inner,) = (site for site in find_sites(OnnxModel.open(proto)) if site.bodies)
    assert rest.int8 == {(*inner.bodies, inner.node)}
    assert inner.node == "a_MatMul"


def test_time_is_what_moves_computes_and_launches():
    gpu = GPUS["h100"]
    work = Work(elements=10**9, flops=10**12, kernels=10)
    assert Work(elements=10**9).ms(gpu, value_nbytes=2, dtype="fp16") == pytest.approx(2e9 / (3350e6 * 0.8))
    assert Work(kernels=10).ms(gpu, value_nbytes=2, dtype="fp16") == pytest.approx(10 * LAUNCH_MS)
    assert work.ms(gpu, value_nbytes=4, dtype="fp16") > work.ms(gpu, value_nbytes=2, dtype="fp16")
    assert work.ms(gpu, value_nbytes=2, dtype="auto") == work.ms(gpu, value_nbytes=2, dtype="fp16")


@pytest.mark.parametrize(
    ("name", "options", "shapes", "kernels"),
    [
        ("bert-base", {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 128, "vocabulary": 50},
         {"input_ids": (2, 16), "token_type_ids": (2, 16)}, 2 * 4 + 1),
        ("vit-base", {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 128, "image_size": 32},
         {"input": (2, 3, 32, 32)}, None),
        ("llm-block", {"hidden": 64, "intermediate": 128}, {"hidden_states": (1, 16, 64)}, 1),
        ("resnext50", {"image_size": 32}, {"input": (1, 3, 32, 32)}, None),
    ],
)  # fmt: skip
def test_real_models_do_less_when_fused_and_something_in_any_case(name, options, shapes, kernels):
    rest = counted(models.get(name, **options), shapes)
    assert 0 < rest.fused.elements < rest.unfused.elements
    assert 0 < rest.fused.kernels < rest.unfused.kernels
    assert rest.fused.flops == rest.unfused.flops
    assert kernels is None or rest.fused.kernels == kernels

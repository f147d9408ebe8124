import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import models
from tests.helpers import matmul, model, random, tensor
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.weights import find_sites
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.sites import dynamic_inputs, eligible_gemms, site_gemm


def gemms(proto, **options):
    found, unknown = eligible_gemms(OnnxModel.open(proto), **options)
    assert unknown == ()
    return found


def conv(weights, x, **attributes):
    return model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)],
        [tensor("w", weights)],
        inputs={"x": x},
    )


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_matmul_is_its_own_product(m, n, k):
    (site,) = gemms(matmul(random(4 * k, n), rows=m))
    assert site.gemm == Gemm(m, n, 4 * k, "fp16")
    assert (site.node, site.op, site.tensor, site.count, site.exact) == ("matmul", "MatMul", "w", 1, True)


def test_all_dims_but_the_last_of_an_activation_are_rows():
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", random(8, 16))], inputs={"x": [2, 3, 5, 8]}
    )
    assert gemms(proto)[0].gemm == Gemm(30, 16, 8, "fp16")


def test_a_weight_on_the_left_is_a_product_too():
    proto = model([helper.make_node("MatMul", ["w", "x"], ["y"])], [tensor("w", random(16, 8))], inputs={"x": [8, 5]})
    assert gemms(proto)[0].gemm == Gemm(5, 16, 8, "fp16")


def test_a_stack_of_weights_is_so_many_products():
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", random(3, 8, 16))], inputs={"x": [3, 5, 8]}
    )
    (site,) = gemms(proto)
    assert (site.gemm, site.count) == (Gemm(5, 16, 8, "fp16"), 3)


@pytest.mark.parametrize("trans", [0, 1])
def test_a_gemm_has_its_weight_either_way(trans):
    weights = random(16, 8) if trans else random(8, 16)
    proto = model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=trans)], [tensor("w", weights)], inputs={"x": [5, 8]}
    )
    assert gemms(proto)[0].gemm == Gemm(5, 16, 8, "fp16")


@pytest.mark.parametrize(
    ("kernel", "attributes", "rows", "exact"),
    [
        ((1, 1), {}, 2 * 12 * 10, True),
        ((1, 1), {"strides": [2, 2]}, 2 * 6 * 5, True),
        ((3, 3), {"pads": [1, 1, 1, 1]}, 2 * 12 * 10, False),
        ((3, 3), {}, 2 * 10 * 8, False),
    ],
)
def test_a_convolution_has_a_row_for_each_pixel_of_its_output(kernel, attributes, rows, exact):
    (site,) = gemms(conv(random(16, 8, *kernel), [2, 8, 12, 10], **attributes))
    assert site.gemm == Gemm(rows, 16, 8 * kernel[0] * kernel[1], "fp16")
    assert (site.count, site.exact) == (1, exact)


def test_only_eligible_sites_are_products():
    assert gemms(conv(random(16, 4, 1, 1), [1, 8, 5, 5], group=2)) == ()
    assert gemms(matmul(random(6, 16))) == ()


@pytest.mark.parametrize(
    ("dtype", "stored", "found"),
    [
        ("auto", np.float32, "fp16"),
        ("auto", np.float16, "fp16"),
        ("bf16", np.float32, "bf16"),
        ("int8", np.float16, "int8"),
    ],
)
def test_the_type_is_that_of_the_weight_unless_another_is_asked(dtype, stored, found):
    (site,) = gemms(matmul(random(8, 16).astype(stored)), dtype=dtype)
    assert site.gemm.dtype == found


@pytest.mark.parametrize(("activation", "dtype"), [(True, "int8"), (False, "fp16")])
@pytest.mark.parametrize("stored", [np.int8, np.float32])
def test_a_product_of_two_quantized_values_is_int8_and_of_one_is_not(activation, dtype, stored):
    node = helper.make_node
    nodes = [
        *([node("QuantizeLinear", ["w0", "scale", "zero"], ["q"])] if stored is np.float32 else []),
        node("DequantizeLinear", ["q" if stored is np.float32 else "w0", "scale", "zero"], ["w1"]),
        node("Transpose", ["w1"], ["w"], perm=[1, 0]),
        node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        node("MatMul", ["xd" if activation else "x", "w"], ["y"]),
    ]
    weights = [
        tensor("w0", np.ones((16, 8), stored)), tensor("scale", np.float32(0.5)), tensor("zero", np.int8(0)),
    ]  # fmt: skip
    assert gemms(model(nodes, weights))[0].gemm == Gemm(2, 16, 8, dtype)


def quantized(activation=np.int8, weight=np.int8, *, x="x", y="y"):
    """Nodes and initializers of a product whose operands are quantized to these types; None: not at all."""
    node = helper.make_node
    nodes, weights = [], [tensor("scale", np.float32(0.5))]
    for name, source, kind in (("x", x, activation), ("w", "w0", weight)):
        if kind is not None:
            zero, q = f"{name}_zero", f"{name}_q"
            weights.append(tensor(zero, np.zeros((), kind)))
            nodes += [
                node("QuantizeLinear", [source, "scale", zero], [q]),
                node("DequantizeLinear", [q, "scale", zero], [f"{name}_d"]),
            ]
    read = [x if activation is None else "x_d", "w0" if weight is None else "w_d"]
    return [*nodes, node("MatMul", read, [y])], [*weights, tensor("w0", random(8, 16))]


E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


@pytest.mark.parametrize(
    ("activation", "weight", "found"),
    [
        (np.int8, np.int8, "int8"), (np.uint8, np.int8, "int8"), (E4M3, E4M3, "fp8_e4m3"), (np.int8, E4M3, "fp16"),
        (E5M2, E5M2, "fp16"), (None, E4M3, "fp16"), (E4M3, None, "fp16"), (np.int16, np.int8, "fp16"),
    ],
)  # fmt: skip
def test_two_operands_of_one_quantized_type_are_multiplied_in_it(activation, weight, found):
    nodes, weights = quantized(activation, weight)
    assert gemms(model(nodes, weights))[0].gemm == Gemm(2, 16, 8, found)


def test_a_weight_that_is_stored_in_fp8_alone_is_multiplied_in_floating_point():
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = [tensor("q", random(8, 16).astype(E4M3)), tensor("s", np.float32(1))]
    assert gemms(model(nodes, weights))[0].gemm == Gemm(2, 16, 8, "fp16")


def test_a_quantized_value_without_a_zero_point_has_the_type_of_its_quantization():
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["xq"], output_dtype=onnx.TensorProto.FLOAT8E4M3FN),
        node("DequantizeLinear", ["xq", "s"], ["xd"]),
        node("DequantizeLinear", ["q", "s"], ["w"]),
        node("MatMul", ["xd", "w"], ["y"]),
    ]
    weights = [tensor("q", random(8, 16).astype(E4M3)), tensor("s", np.float32(1))]
    assert gemms(model(nodes, weights))[0].gemm.dtype == "fp8_e4m3"


def in_a_function():
    nodes, weights = quantized()
    names = ["x", *(weight.name for weight in weights)]
    function = helper.make_function("local", "Product", names, ["y"], nodes, [helper.make_opsetid("", 21)])
    return model([helper.make_node("Product", names, ["y"], domain="local")], weights, functions=[function])


def after_a_function():
    """Inlining moves the positions that nodes without a name are called after."""
    inner = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("local", "Two", ["a"], ["c"], inner, [helper.make_opsetid("", 21)])
    nodes, weights = quantized(x="z")
    return model([helper.make_node("Two", ["x"], ["z"], domain="local"), *nodes], weights, functions=[function])


def body(nodes, output):
    value = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    return helper.make_graph(nodes, output, [], [value])


def in_a_branch(nodes, other):
    return helper.make_node("If", ["c"], ["y"], then_branch=body(nodes, "t"), else_branch=body(other, "e"))


def branched(nodes, weights):
    proto = model(nodes, weights, outputs={nodes[-1].output[0]: None})
    proto.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    return proto


def in_an_if():
    nodes, weights = quantized(y="t")
    return branched([in_a_branch(nodes, [helper.make_node("Identity", ["x"], ["e"])])], weights)


def over_the_edge_of_an_if():
    nodes, weights = quantized(y="t")
    return branched([*nodes[:-1], in_a_branch(nodes[-1:], [helper.make_node("Identity", ["x"], ["e"])])], weights)


@pytest.mark.parametrize("make", [in_a_function, after_a_function, in_an_if, over_the_edge_of_an_if])
def test_quantized_products_are_found_wherever_weights_are(make):
    (site,) = gemms(make())
    assert site.gemm == Gemm(2, 16, 8, "int8")


def test_nodes_of_one_name_each_have_their_own_type():
    nodes, weights = quantized(y="t")
    nodes[-1].name = "mm"
    plain = helper.make_node("MatMul", ["x", "w0"], ["e"], name="mm")
    last = helper.make_node("MatMul", ["y", "v"], ["z"], name="mm")
    proto = branched([in_a_branch(nodes, [plain]), last], [*weights, tensor("v", random(16, 8))])
    found = gemms(proto)
    assert [(one.node, one.gemm.k, one.gemm.dtype) for one in found] == [
        ("mm", 8, "fp16"), ("mm", 8, "int8"), ("mm", 16, "fp16"),
    ]  # fmt: skip


def test_dynamic_shapes_are_asked_for_by_name():
    proto = matmul(random(8, 16), rows="rows")
    with pytest.raises(ConfigError) as caught:
        gemms(proto)
    assert str(caught.value) == (
        "the size of a product depends on shapes that are not known\n"
        "  where: ModelProto, 1 weight sites, the first is matmul\n"
        "  got: x: rowsx8\n"
        "  to fix: give --shapes name:1x3x224x224,... (shapes= in Python)"
    )
    assert gemms(proto, shapes={"x": (7, 8)})[0].gemm.m == 7


def test_inputs_are_dynamic_until_their_sizes_are_known():
    proto = model(
        [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("Add", ["s", "v"], ["y"])],
        [tensor("w", random(4))],
        inputs={"x": ["n", 4], "z": ["n", "m"], "v": None, "w": ["q"]},
    )
    opened = OnnxModel.open(proto)
    assert dynamic_inputs(opened, {}) == ("x: nx4", "z: nxm", "v: of any rank")
    assert dynamic_inputs(opened, {"z": (2, 4)}) == ("v: of any rank",)
    assert dynamic_inputs(opened, {"x": (2, 4)}) == ("z: 2xm", "v: of any rank")


def test_shapes_that_contradict_the_model_are_refused():
    with pytest.raises(ConfigError) as caught:
        gemms(matmul(random(8, 16), rows="rows"), shapes={"x": (7, 9)})
    assert str(caught.value) == (
        "a shape contradicts the model\n  where: shapes\n  got: x: (7, 9)\n  expected: x: (rows, 8)"
    )


def test_sizes_that_do_not_follow_from_the_inputs_are_named():
    nodes = [
        helper.make_node("NonZero", ["x"], ["at"]),
        helper.make_node("Cast", ["at"], ["f"], to=1),
        helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="late"),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="early"),
    ]
    weights = [tensor("w", random(4, 16)), tensor("v", random(8, 16))]
    proto = model(nodes, weights, inputs={"x": [2, 8, 2, 8]}, outputs={"y": None, "z": None})
    found, unknown = eligible_gemms(OnnxModel.open(proto))
    assert ([site.node for site in found], unknown) == (["early"], ("late",))


def test_an_unknown_type_is_refused():
    with pytest.raises(ConfigError) as caught:
        gemms(matmul(random(8, 16)), dtype="fp32")
    assert str(caught.value) == (
        "no such data type of a product\n  where: dtype\n  got: fp32\n"
        "  expected: auto, fp16, bf16, int8, fp8_e4m3, tf32"
    )


def test_a_site_without_a_known_size_is_no_product():
    (site,) = find_sites(OnnxModel.open(matmul(random(8, 16), rows="rows")))
    assert site_gemm(site) is None


def test_every_flop_of_an_encoder_is_in_its_products():
    path = models.get("bert-base", layers=1, hidden=64, heads=2, intermediate=128, vocabulary=50)
    opened = OnnxModel.open(path)
    shapes = {"input_ids": (2, 16), "token_type_ids": (2, 16)}
    sites, _ = eligible_gemms(opened, shapes=shapes)
    assert sorted({(site.gemm.m, site.gemm.n, site.gemm.k) for site in sites}) == [
        (32, 64, 64),
        (32, 64, 128),
        (32, 128, 64),
    ]
    macs = sum(site.macs for site in find_sites(opened, shapes=shapes) if site.eligible)
    assert sum(site.count * site.gemm.flops for site in sites) == 2 * macs


def test_the_1x1_convolutions_of_resnext_are_exact_and_the_others_grouped():
    path = models.get("resnext50", width=16, groups=2, width_per_group=4, image_size=64, num_classes=16)
    sites, _ = eligible_gemms(OnnxModel.open(path), shapes={"input": (2, 3, 64, 64)})
    assert sites
    assert all(site.exact and site.count == 1 for site in sites)
    assert Gemm(2, 16, sites[-1].gemm.k, "fp16") == sites[-1].gemm

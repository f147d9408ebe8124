"""Groups of nodes that become one, and constants whose shapes say that they must not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.engines.cusparselt.programs import check, execute
from tests.helpers import model, random, tensor
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner

pytest.importorskip("torch")
EXAMPLES = settings(max_examples=60, deadline=None)


def with_bias(op, x, w, bias, **attributes):
    """A product and a sum with a constant."""
    nodes = [helper.make_node(op, ["x", "w"], ["m"], **attributes), helper.make_node("Add", ["m", "b"], ["y"])]
    return model(nodes, [tensor("w", random(*w)), tensor("b", random(*bias))], inputs={"x": list(x)}, opset=17)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize(
    ("bias", "adds"),
    [((8,), 1), ((8, 1), 1), ((1, 8), 1), ((8, 1, 1), 0), ((1, 8, 1, 1), 0), ((8, 8, 1), 1), ((1, 1, 8, 1, 1), 1)],
)
def test_a_bias_of_a_convolution_has_a_number_for_each_channel(kernel, bias, adds):
    """Not one for each column or row of as many."""
    source = with_bias("Conv", (1, 4, 8, 8), (8, 4, *kernel), bias, pads=[kernel[0] // 2] * 4)
    counts = check(source)
    assert counts["Add"] == adds
    assert counts["Linear"] == (kernel == (1, 1))


@pytest.mark.parametrize("spatial", [1, 3])
def test_convolutions_of_other_dims_take_their_biases_too(spatial):
    shape = [5, 6, 7][:spatial]
    for bias in ((8, *[1] * spatial), (1, 8, *[1] * spatial)):
        assert check(with_bias("Conv", (1, 4, *shape), (8, 4, *[3] * spatial), bias)) == {"Conv": 1}
    wrong = (8, *[1] * (spatial - 1))
    assert check(with_bias("Conv", (1, 4, *[8] * spatial), (8, 4, *[1] * spatial), wrong))["Add"] == 1


@pytest.mark.parametrize(
    ("bias", "adds"), [((16,), 0), ((1, 16), 1), ((1, 1, 16), 1), ((2, 16), 1), ((1,), 1), ((), 1)]
)
def test_a_sum_that_may_have_more_dims_than_the_product_stays(bias, adds):
    assert check(with_bias("MatMul", (2, 8), (8, 16), bias)) == {"Linear": 1, **({"Add": 1} if adds else {})}


@pytest.mark.parametrize(("bias", "op"), [((16,), "Linear"), ((1, 16), "Linear"), ((2, 1), "Gemm"), ((), "Gemm")])
def test_a_bias_of_gemm_is_a_row(bias, op):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    assert check(model(nodes, [tensor("w", random(8, 16)), tensor("b", random(*bias))])) == {op: 1}


def test_a_convolution_whose_bias_is_computed_stays():
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "c"], ["b"]),
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
    ]
    constants = [tensor("w", random(8, 4, 1, 1)), tensor("c", random(8))]
    assert check(model(nodes, constants, inputs={"x": [1, 4, 3, 5]}, opset=17))["Conv"] == 1


# -- sums and an activation after a product --------------------------------------------------------------------------


def residual(op, x, w, c, *, after="Relu", more=(), **attributes):
    """relu(product + sigmoid(c)), where ``c`` is fed."""
    nodes = [
        helper.make_node(op, ["x", "w", *(["b"] if op != "MatMul" else [])], ["m"], **attributes),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Add", ["s", "m"], ["a"]),
        *([helper.make_node(after, ["a"], ["y"])] if after else [helper.make_node("Identity", ["a"], ["y"])]),
        *more,
    ]
    channels = w[-1] if op == "MatMul" else w[0]
    constants = [tensor("w", random(*w)), tensor("b", random(channels))]
    outputs = dict.fromkeys(["y", *(node.output[0] for node in more)])
    return model(nodes, constants, inputs={"x": list(x), "c": list(c)}, outputs=outputs, opset=17)


@pytest.mark.parametrize("shape", [(2, 16), (1, 16), (16,), (2, 1), (), (3, 2, 16), (2, 1, 2, 16)], ids=str)
def test_what_is_added_to_a_product_before_a_relu_is_part_of_it(shape):
    assert check(residual("MatMul", (2, 8), (8, 16), shape)) == {"Sigmoid": 1, "Linear": 1}
    assert check(residual("Gemm", (2, 8), (16, 8), shape, transB=1)) == {"Sigmoid": 1, "Linear": 1}


@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (8, 1, 1), (5, 6), (6,), (), (2, 8, 1, 6), (3, 2, 8, 5, 6)], ids=str)
def test_the_same_for_a_convolution_that_is_a_product(shape):
    assert check(residual("Conv", (2, 4, 5, 6), (8, 4, 1, 1), shape)) == {"Sigmoid": 1, "Linear": 1}


def test_a_sum_of_two_products_is_part_of_one():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["m"]), helper.make_node("Conv", ["x", "v"], ["n"]),
        helper.make_node("Add", ["m", "n"], ["a"]), helper.make_node("Relu", ["a"], ["y"]),
    ]  # fmt: skip
    constants = [tensor(name, random(8, 4, 1, 1, seed=at)) for at, name in enumerate("wv")]
    assert check(model(nodes, constants, inputs={"x": [1, 4, 3, 5]}, opset=17)) == {"Linear": 2}


@pytest.mark.parametrize("after", ["", "Sigmoid"])
def test_a_sum_without_a_relu_stays(after):
    assert check(residual("MatMul", (2, 8), (8, 16), (2, 16), after=after))["Add"] == 1


@pytest.mark.parametrize("read", ["m", "a"])
def test_a_sum_of_which_something_else_is_read_stays(read):
    more = [helper.make_node("Neg", [read], ["z"])]
    assert check(residual("MatMul", (2, 8), (8, 16), (2, 16), more=more))["Add"] == 1


def test_a_product_that_is_added_to_itself_stays():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "m"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]  # fmt: skip
    assert check(model(nodes, [tensor("w", random(8, 16))], inputs={"x": [2, 8]}))["Add"] == 1


# -- groups that are written out -------------------------------------------------------------------------------------


def full(name, value, shape=()):
    return tensor(name, np.full(shape, value, np.float32))


def root_of_mean_square(x, shape=()):
    """The nodes behind a value, up to ``r``, and their constants, which have some shape."""
    nodes = [
        helper.make_node("Pow", [x, "two"], ["q"]),
        helper.make_node("ReduceMean", ["q"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "epsilon"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", [x, "r"], ["n"]),
    ]
    return nodes, [full("two", 2, shape), full("epsilon", 0.01, shape)]


def rms_norm(x, scale, shape=()):
    nodes, constants = root_of_mean_square("x", shape)
    nodes = [*nodes, helper.make_node("Mul", ["scale", "n"], ["y"])]
    return model(nodes, [*constants, tensor("scale", scale)], inputs={"x": list(x)}, opset=17)


def layer_norm(x, scale, bias, shape=(), **fields):
    nodes, constants = root_of_mean_square("d", shape)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["u"], axes=[-1]),
        helper.make_node("Sub", ["x", "u"], ["d"]),
        *nodes,
        helper.make_node("Mul", ["n", "scale"], ["s"]),
        helper.make_node("Add", ["s", "bias"], ["y"]),
    ]
    constants += [tensor("scale", scale), tensor("bias", bias)]
    return model(nodes, constants, inputs={"x": list(x)}, opset=17, **fields)


def gelu(x, shape=()):
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["p"]),
        helper.make_node("Mul", ["x", "p"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["y"]),
    ]
    constants = [full("root", 2**0.5, shape), full("one", 1, shape), full("half", 0.5, shape)]
    return model(nodes, constants, inputs={"x": list(x)})


@pytest.mark.parametrize(
    ("scale", "fused"), [((8,), 1), ((), 0), ((1,), 0), ((1, 1, 8), 0), ((2, 8), 0), ((2, 1), 0)]
)
def test_norms_are_found_where_their_scale_is_a_vector(scale, fused):
    assert check(rms_norm((2, 8), random(*scale)))["RmsNorm"] == fused
    assert check(layer_norm((2, 8), random(*scale), random(8)))["LayerNormalization"] == fused
    assert check(layer_norm((2, 8), random(8), random(*scale)))["LayerNormalization"] == fused


def of_known_rank(source):
    """The same model with a node at its start that tells the dims of ``x``; nodes else do not say of what is fed."""
    (x,) = source.graph.input
    shape = [dim.dim_value for dim in x.type.tensor_type.shape.dim]
    x.name = "fed"
    source.graph.node.insert(0, helper.make_node("Reshape", ["fed", "shape_of_x"], ["x"]))
    source.graph.initializer.append(tensor("shape_of_x", np.array(shape)))
    return source


@pytest.mark.parametrize(("shape", "fused"), [((), 1), ((1,), 1), ((1, 1, 1), 1), ((1, 1, 1, 1), 0)])
def test_numbers_that_add_dims_make_no_group(shape, fused):
    x = (2, 4, 8)
    assert check(of_known_rank(gelu(x, shape)))["Gelu"] == fused
    assert check(of_known_rank(rms_norm(x, random(8), shape)))["RmsNorm"] == fused
    assert check(of_known_rank(layer_norm(x, random(8), random(8), shape)))["LayerNormalization"] == fused
    assert check(of_known_rank(attention(x, scale=shape)))["Attention"] == fused
    if shape:
        assert check(gelu(x, shape))["Gelu"] == 0
        assert check(gelu((), shape))["Gelu"] == 0


@pytest.mark.parametrize(("shape", "adds"), [((1, 8), 0), ((1, 1, 8), 0), ((1, 1, 1, 8), 1), ((4, 8), 1)])
def test_vectors_may_have_as_many_dims_as_the_values_they_are_for(shape, adds):
    x = (2, 4, 8)
    counts = check(of_known_rank(with_bias("MatMul", x, (8, 8), shape)))
    assert counts == {"Reshape": 1, "Linear": 1, **({"Add": 1} if adds else {})}
    assert check(of_known_rank(rms_norm(x, random(*shape))))["RmsNorm"] == 1 - adds
    norm = check(of_known_rank(layer_norm(x, random(8), random(*shape))))
    assert norm["LayerNormalization"] == 1 - adds


def test_a_centred_value_that_is_an_output_stays():
    source = layer_norm((2, 8), random(8), random(8), outputs={"y": None, "d": None})
    assert check(source)["LayerNormalization"] == 0


def attention(x, *, scale=None, mask=None, values=None):
    """Of a value with itself; a mask or values that are constants of some shape."""
    order = [*range(len(x) - 2), len(x) - 1, len(x) - 2]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=order),
        helper.make_node("MatMul", ["x", "t"], ["s0"]),
        *([] if scale is None else [helper.make_node("Div", ["s0", "scale"], ["s1"])]),
    ]
    if mask is not None:
        nodes.append(helper.make_node("Add", [nodes[-1].output[0], "mask"], ["s2"]))
    nodes.append(helper.make_node("Softmax", [nodes[-1].output[0]], ["p"]))
    nodes.append(helper.make_node("MatMul", ["p", "x" if values is None else "values"], ["y"]))
    constants = [
        full("scale", 2.5, scale or ()),
        tensor("mask", random(*(mask or ()))),
        tensor("values", random(4, 6)),
    ]
    return model(nodes, constants, inputs={"x": list(x)})


@pytest.mark.parametrize(("mask", "fused"), [((4, 4), 1), ((3, 1, 4), 1), ((4,), 0), ((), 0)])
def test_an_attention_takes_masks_that_are_matrices(mask, fused):
    assert check(attention((3, 4, 8), scale=(), mask=mask))["Attention"] == fused


@pytest.mark.parametrize("mask", [(4,), (1,), (4, 4), (2, 1, 4, 4), (2, 3, 1, 4)])
def test_an_attention_takes_computed_masks_of_any_dims(mask):
    source = attention((3, 4, 8), scale=(), mask=(4, 4))
    source.graph.node.insert(0, helper.make_node("Neg", ["given"], ["mask"]))
    (constant,) = (value for value in source.graph.initializer if value.name == "mask")
    source.graph.initializer.remove(constant)
    source.graph.input.append(helper.make_tensor_value_info("given", 1, mask))
    check(source)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("x", [(2, 3, 4, 8), (2, 2, 3, 4, 8)])
@pytest.mark.parametrize("mask", [None, (4, 4)])
def test_a_softmax_along_axis_3_is_one_along_the_last_of_four(x, mask, opset):
    source = attention(x, scale=(), mask=mask)
    (softmax,) = (node for node in source.graph.node if node.op_type == "Softmax")
    softmax.attribute.append(helper.make_attribute("axis", 3))
    source.opset_import[0].version = opset
    assert check(source)["Attention"] == 1


def test_a_product_of_probabilities_with_weights_is_no_attention():
    counts = check(attention((3, 4, 8), scale=(), values=True))
    assert counts["Attention"] == 0
    assert counts["Linear"] == 1


def test_batch_normalisations_of_one_name_stay_apart():
    nodes, constants, last = [], [tensor("w", random(4, 4, 3, 3))], "x"
    for at in range(2):
        names = [f"{kind}{at}" for kind in "sbmv"]
        constants += [tensor(name, np.abs(random(4, seed=at + place))) for place, name in enumerate(names)]
        nodes += [
            helper.make_node("Conv", [last, "w"], [f"c{at}"], pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{at}", *names], [f"n{at}"], name="norm"),
        ]
        last = f"n{at}"
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    source, feeds = model(nodes, constants, inputs={"x": [1, 4, 5, 5]}), {"x": random(1, 4, 5, 5)}
    found, graph = execute(source, feeds)
    assert graph.counts() == {"Conv": 2, "Relu": 1}
    for node in source.graph.node:
        node.name = ""  # ONNX Runtime takes no name twice
    np.testing.assert_allclose(
        found["y"], runner(OnnxModel.open(source), optimize=False)(feeds)["y"], rtol=1e-4, atol=1e-6
    )


# -- any shapes ------------------------------------------------------------------------------------------------------


@st.composite
def beside(draw, shape, *, more=2):
    """Shapes that broadcast with another one: of its last dims or 1, with more dims of 1 before."""
    kept = draw(st.integers(0, len(shape)))
    last = [draw(st.sampled_from([1, size])) for size in shape[len(shape) - kept :]]
    return (*[1] * draw(st.integers(0, more)), *last)


SIZES = st.sampled_from([1, 3, 8])


@EXAMPLES
@given(data=st.data(), lead=st.lists(SIZES, max_size=3), n=SIZES, known=st.booleans())
def test_a_product_and_any_constant_give_what_onnx_runtime_gives(data, lead, n, known):
    source = with_bias("MatMul", (*lead, 8), (8, n), data.draw(beside((*lead, n))))
    check(of_known_rank(source) if known else source, seeds=1)


@EXAMPLES
@given(data=st.data(), spatial=st.lists(SIZES, min_size=1, max_size=3), n=SIZES, large=st.booleans())
def test_a_convolution_and_any_constant_give_what_onnx_runtime_gives(data, spatial, n, large):
    kernel, pads = [3 if large else 1] * len(spatial), [int(large)] * 2 * len(spatial)
    bias = data.draw(beside((2, n, *spatial)))
    check(with_bias("Conv", (2, 3, *spatial), (n, 3, *kernel), bias, pads=pads), seeds=1)


@EXAMPLES
@given(
    data=st.data(),
    x=st.lists(SIZES, min_size=1, max_size=3),
    shape=st.sampled_from([(), (1,), (1, 1)]),
    known=st.booleans(),
)
def test_groups_of_any_shapes_give_what_onnx_runtime_gives(data, x, shape, known):
    scale, bias = (random(*data.draw(beside(x))) for _ in range(2))
    for source in (rms_norm(x, scale, shape), layer_norm(x, scale, bias, shape), gelu(x, shape)):
        check(of_known_rank(source) if known else source, seeds=1)

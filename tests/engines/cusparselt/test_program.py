"""Graphs rewritten and executed with PyTorch on the CPU, against ONNX Runtime."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import helper

import models
from tests.engines.cusparselt.programs import check, execute, plain
from tests.helpers import model, random, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.opaque import Opaques
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program, check_operators
from trtsparse.errors import EngineError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.ort import runner

torch = pytest.importorskip("torch")
SMALL = {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 128}


@pytest.mark.parametrize(
    ("name", "options", "shapes", "fused"),
    [
        ("mlp", {}, None, {"Linear": 3}),
        ("llm-block", {"hidden": 64, "intermediate": 96}, None, {"Linear": 2, "RmsNorm": 1, "Silu": 1}),
        ("bert-base", {**SMALL, "vocabulary": 99}, {"input_ids": (3, 20)}, {"Linear": 8, "Attention": 2, "Gelu": 0}),
        ("bert-base", {**SMALL, "vocabulary": 99, "mask": True}, None, {"Linear": 8, "Attention": 2}),
        ("vit-base", {**SMALL, "image_size": 32, "num_classes": 10}, None, {"Linear": 9, "Attention": 2}),
        (
            "resnext50",
            {"width": 8, "image_size": 64, "num_classes": 9},
            None,
            {"Linear": 34, "BatchNormalization": 0},
        ),
        ("magika", {}, {"bytes": (3, 2048)}, {"Linear": 2}),
        (
            "ppocr-rec",
            {},
            {"x": (1, 3, 48, 160)},
            {"Linear": 48, "Attention": 2, "LayerNormalization": 5, "Gelu": 0},
        ),
        ("ppocr-det", {}, {"x": (1, 3, 64, 96)}, {"Linear": 61, "Gelu": 0, "Identity": 0}),
    ],
)
def test_real_models_give_what_onnx_runtime_gives(name, options, shapes, fused):
    counts = check(models.get(name, **options), shapes)
    assert {op: counts[op] for op in fused} == fused


def test_values_that_describe_shapes_may_be_computed():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["ns"]),
        helper.make_node("Concat", ["ns", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Cast", ["n"], ["count"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["flat", "count"], ["y"]),
    ]
    constants = [
        tensor("first", np.array(0)),
        tensor("zero", np.array([0])),
        tensor("rest", np.array([-1])),
    ]
    check(model(nodes, constants, inputs={"x": ["n", 3, 4]}), {"x": (5, 3, 4)})


def test_local_functions_and_constant_nodes_are_executed():
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=3.0),
        helper.make_node("Twice", ["x"], ["t"], domain="own"),
        helper.make_node("Mul", ["t", "c"], ["y"]),
    ]
    check(model(nodes, functions=[twice], opset=17))


def test_a_group_whose_inner_value_is_read_elsewhere_is_left_alone():
    """GELU's Erf, and a product's sum before its bias, are outputs too."""
    half, root = tensor("half", np.float32(0.5)), tensor("root", np.float32(2**0.5))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Div", ["s", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["p"]),
        helper.make_node("Mul", ["s", "p"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["y"]),
    ]
    weights = [tensor("w", random(8, 4)), tensor("b", random(4)), tensor("one", np.float32(1)), half, root]
    assert check(model(nodes, weights))["Linear"] == 1
    counts = check(model(nodes, weights, outputs={"y": None, "e": None, "m": None}))
    assert counts["Erf"] == 1
    assert counts["Gelu"] == 0
    assert counts["Linear"] == 1


def test_products_of_what_shapes_say_are_computed_in_the_type_of_the_others():
    """As positions that are embedded: integers of the CPU, then a product with weights."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["sizes"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["sizes", "w"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    source = model(nodes, [tensor("w", random(2, 8))])
    check(source)
    graph = fuse(read_graph(OnnxModel.open(source)))

    def halved(_node, weight, _bias):
        return lambda x: torch.nn.functional.linear(x, torch.from_numpy(np.array(weight)).bfloat16())

    program = Program(graph, device="cpu", floating=torch.bfloat16, linear=halved)
    assert program([torch.from_numpy(random(2, 8))])[0].dtype == torch.bfloat16


def test_a_batch_of_nothing_gives_nothing():
    source = models.get("mlp", widths=(16, 8, 4))
    (found,) = execute(source, {"input": np.zeros((0, 16), np.float32)})[0].values()
    assert found.shape == (0, 4)


@pytest.mark.parametrize("parts", [(7, 3), (6, 4), (8, 4)])
def test_the_last_parts_of_a_split_may_be_shorter_or_empty(parts):
    size, count = parts
    names = [f"y{at}" for at in range(count)]
    node = helper.make_node("Split", ["x"], names, axis=0, num_outputs=count)
    source = model([node], [], inputs={"x": [size, 2]}, outputs=dict.fromkeys(names), opset=18)
    x = random(size, 2)
    for name, right in runner(OnnxModel.open(source), optimize=False)({"x": x}).items():
        np.testing.assert_array_equal(execute(source, {"x": x})[0][name], right)


@pytest.mark.parametrize("op", ["Range", "ConstantOfShape", "Shape", "Cast"])
def test_what_shapes_alone_say_is_put_on_the_device_where_it_is_an_output(op):
    """The device "meta" is not the CPU, as a GPU is not."""
    nodes = {
        "Range": [helper.make_node("Size", ["x"], ["n"]), helper.make_node("Range", ["zero", "n", "one"], ["y"])],
        "ConstantOfShape": [
            helper.make_node("Shape", ["x"], ["n"]),
            helper.make_node("ConstantOfShape", ["n"], ["y"]),
        ],
        "Shape": [helper.make_node("Shape", ["x"], ["y"])],
        "Cast": [helper.make_node("Shape", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=1)],
    }[op]
    constants = [tensor("zero", np.array(0)), tensor("one", np.array(1))]
    graph = fuse(read_graph(OnnxModel.open(model(nodes, constants, inputs={"x": [2, 3]}))))
    for floating in (None, torch.bfloat16):
        program = Program(graph, device="meta", floating=floating, linear=plain)
        (found,) = program([torch.empty(2, 3, device="meta")])
        assert found.device.type == "meta"


def test_all_operators_that_are_not_executed_are_named_at_once():
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("Det", ["x"], ["e"], name="second"),
        helper.make_node("Resize", ["x", "", "s"], ["r"], name="third", mode="cubic"),
        helper.make_node("Mystery", ["r"], ["y"], name="fourth", domain="own"),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, [2, 2])],
            [helper.make_tensor_value_info(name, 1, None) for name in ("y", "d", "e")],
            [tensor("s", np.float32([1, 1]))],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )  # fmt: skip
    with pytest.raises(ModelError) as caught:
        check_operators(fuse(read_graph(OnnxModel.open(proto))))
    assert str(caught.value) == (
        "this engine does not execute some of the model's operators\n  where: ModelProto\n"
        "  got: Det (2, first 'first'); Resize with mode 'cubic' with coordinates 'half_pixel' (1, first 'third'); "
        "own.Mystery (1, first 'fourth')\n"
        "  to fix: build a TensorRT engine, or run the model with engine='onnxruntime'"
    )


def test_control_flow_is_refused():
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    proto = model(
        [helper.make_node("If", ["c"], ["y"], name="fork", then_branch=then, else_branch=then)],
        [tensor("c", np.bool_(1))],
    )
    with pytest.raises(ModelError) as caught:
        read_graph(OnnxModel.open(proto))
    assert str(caught.value) == (
        "this engine does not execute graphs inside of nodes\n  where: ModelProto: node 'fork' (If)\n"
        "  to fix: export the model without control flow, or run it with engine='onnxruntime'"
    )


def test_a_step_that_fails_is_named():
    source = model([helper.make_node("Add", ["x", "z"], ["y"], name="it")], inputs={"x": [2, 3], "z": [3]})
    graph = fuse(read_graph(OnnxModel.open(source)))
    with pytest.raises(EngineError) as caught:
        Program(graph, device="cpu", linear=plain)([torch.ones(2, 3), torch.ones(4)])
    assert str(caught.value).startswith(
        "a step failed\n  where: ModelProto: node 'it' (Add)\n  got: The size of tensor a (3)"
    )


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("bert-base", {**SMALL, "vocabulary": 99, "mask": True}, {"input_ids": (3, 20)}),
        ("vit-base", {**SMALL, "image_size": 32, "num_classes": 10}, None),
        ("resnext50", {"width": 8, "image_size": 64, "num_classes": 9}, None),
        ("magika", {}, {"bytes": (3, 2048)}),
        ("ppocr-det", {}, {"x": (1, 3, 64, 96)}),
    ],
)
def test_a_traced_graph_computes_the_same_from_other_values(name, options, shapes):
    source = models.get(name, **options)
    graph = fuse(read_graph(OnnxModel.open(source)))
    opaques = Opaques()
    program = Program(graph, device="cpu", linear=through(opaques))
    first, second = (
        [torch.from_numpy(f[n]) for n in graph.inputs] for f in random_feeds(source, shapes=shapes, count=2)
    )
    with torch.inference_mode():
        right = program(second)
        found = [torch.full_like(value, -1) for value in right]
        traced = program.trace(first, [torch.empty_like(value) for value in right])
        with opaques.current():
            traced(*second, *found)
        torch.testing.assert_close(found, right)
    assert "trtsparse.product" in traced.code


def through(opaques):
    """Makes products that a traced graph calls by their names."""

    def opaque(node, weight, bias):
        compute = plain(node, weight, bias)
        return opaques.enter(node.outputs[0], compute, columns=len(weight), dtype=torch.float32)

    return opaque


def test_a_traced_graph_compiles_once_for_all_engines_of_a_model():
    from torch._dynamo.utils import counters

    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("PyTorch compiles with a C++ compiler on a CPU")
    source = models.get("llm-block", hidden=64, intermediate=96)
    graph = fuse(read_graph(OnnxModel.open(source)))
    feeds = random_feeds(source)[0]
    inputs = [torch.from_numpy(feeds[name]) for name in graph.inputs]
    hits = []
    for _ in range(2):  # engines of the same model
        opaques = Opaques()
        program = Program(graph, device="cpu", linear=through(opaques))
        with torch.inference_mode():
            right = program(inputs)
            found = [torch.full(value.shape, -1, dtype=torch.float64) for value in right]
            compiled = torch.compile(program.trace(inputs, found).forward, fullgraph=True, dynamic=False)
            before = counters["inductor"]["fxgraph_cache_hit"]
            with opaques.current():
                compiled(*inputs, *found)
            torch.testing.assert_close([value.float() for value in found], right)
        hits.append(counters["inductor"]["fxgraph_cache_hit"] - before)
        opaques.close()
    assert hits[1] == 1, "what was compiled for the first serves the second"


def test_weights_of_convolutions_lie_as_tensor_cores_take_them():
    """Else compiled code copies them in every execution."""
    source = models.get("resnext50", width=8, image_size=32, num_classes=9)
    graph = fuse(read_graph(OnnxModel.open(source)))
    program = Program(graph, device="cpu", linear=plain)
    with torch.inference_mode():
        inputs = [torch.zeros(1, 3, 32, 32)]
        traced = program.trace(inputs, [torch.empty_like(value) for value in program(inputs)])
    held = [value for value in vars(traced).values() if isinstance(value, torch.Tensor)]
    weights = [value for value in (*held, *traced.buffers(), *traced.parameters()) if value.dim() == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_a_closed_product_is_forgotten():
    opaques = Opaques()
    product = opaques.enter("fc", lambda x: 2 * x, columns=3, dtype=torch.float32)
    assert product(torch.ones(2, 3)).tolist() == [[2.0] * 3] * 2
    opaques.close()
    opaques.close()
    with pytest.raises(EngineError) as caught:
        product(torch.ones(2, 3))
    assert str(caught.value) == (
        "a product was executed outside of its engine, or after that was closed\n  where: fc\n"
        "  to fix: open the engine again"
    )


def test_a_products_own_error_comes_through_compiled_code():
    from torch.fx.experimental.proxy_tensor import make_fx

    broken = []

    def compute(x):
        if broken:
            raise EngineError("a kernel failed", where="fc")
        return 2 * x

    opaques, x = Opaques(), torch.ones(2, 3)
    product = opaques.enter("fc", compute, columns=3, dtype=torch.float32)
    traced = make_fx(lambda x: product(x) + 1)(x)
    broken.append(True)
    compiled = torch.compile(traced.forward, fullgraph=True, dynamic=False, backend="eager")
    with opaques.current(), pytest.raises(EngineError) as caught:
        compiled(x)
    assert str(caught.value) == "a kernel failed\n  where: fc"

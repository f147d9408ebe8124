"""Values computed in 16 bits, and those made from integers, which are not."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from tests.engines.cusparselt.programs import plain
from tests.helpers import model, random, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.lowering import keeps_exact, lowered
from trtsparse.engines.cusparselt.operators import to_tensor
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner

torch = pytest.importorskip("torch")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
LOWEST = float(np.finfo(np.float32).min)
NODE = helper.make_node


def in_bf16(source, **feeds):
    """The outputs, step by step and as a traced graph; and those of ONNX Runtime in float32."""
    graph = fuse(read_graph(OnnxModel.open(source)))

    def halved(node, weight, bias):
        compute = plain(node, weight, bias)
        return lambda x, *added: compute(x.float(), *(value.float() for value in added)).to(x.dtype)

    program = Program(graph, device="cpu", floating=torch.bfloat16, linear=halved)
    inputs = [torch.from_numpy(feeds[name]) for name in graph.inputs]
    found = dict(zip(graph.outputs, program(inputs), strict=True))
    outputs = [torch.empty_like(value) for value in found.values()]
    program.trace(inputs, outputs)(*inputs, *outputs)
    for value, traced in zip(found.values(), outputs, strict=True):
        torch.testing.assert_close(traced, value, rtol=0, atol=0, equal_nan=True)
    return found, runner(OnnxModel.open(source), optimize=False)(feeds)


def typed(source, **kinds):
    """The model with inputs of other types."""
    for value in source.graph.input:
        if value.name in kinds:
            value.type.tensor_type.elem_type = kinds[value.name]
    return source


def test_angles_of_positions_are_exact():
    inverse = (1 / 10000 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    nodes = [
        NODE("Cast", ["x"], ["p"], to=FLOAT), NODE("Unsqueeze", ["p", "axis"], ["u"]),
        NODE("Mul", ["u", "inverse"], ["a"]), NODE("Cos", ["a"], ["y"]),
    ]  # fmt: skip
    constants = [tensor("inverse", inverse), tensor("axis", np.array([-1]))]
    source = typed(model(nodes, constants, inputs={"x": [1, 2048]}), x=INT64)
    found, right = in_bf16(source, x=np.arange(2048)[None])
    np.testing.assert_allclose(found["y"].numpy(), right["y"], atol=1e-6)


@pytest.mark.parametrize("form", ["matmul", "cast again"])
def test_angles_as_exporters_write_them_are_exact(form):
    inverse = (1 / 10000 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    nodes = [NODE("Unsqueeze", ["x", "axis"], ["u"]), NODE("Cast", ["u"], ["p"], to=FLOAT)]
    if form == "matmul":  # (1, 32, 1) @ (1, 1, 2048)
        constants = [tensor("inverse", inverse[None, :, None]), tensor("axis", np.array([1]))]
        nodes += [NODE("MatMul", ["inverse", "p"], ["m"]), NODE("Transpose", ["m"], ["a"], perm=[0, 2, 1])]
    else:
        constants = [tensor("inverse", inverse), tensor("axis", np.array([-1]))]
        nodes += [NODE("Cast", ["p"], ["q"], to=FLOAT), NODE("Mul", ["q", "inverse"], ["a"])]
    nodes.append(NODE("Cos", ["a"], ["y"]))
    found, right = in_bf16(typed(model(nodes, constants, inputs={"x": [1, 2048]}), x=INT64), x=np.arange(2048)[None])
    np.testing.assert_allclose(found["y"].numpy(), right["y"], atol=1e-6)


def test_a_count_of_a_mask_is_exact():
    nodes = [NODE("Cast", ["x"], ["f"], to=FLOAT), NODE("ReduceSum", ["f", "axis"], ["y"], keepdims=0)]
    source = typed(model(nodes, [tensor("axis", np.array([1]))], inputs={"x": [1, 1000]}), x=INT64)
    found, _ = in_bf16(source, x=(np.arange(1000) < 777).astype(np.int64)[None])
    assert found["y"].tolist() == [777]


def test_a_mask_that_is_fed_hides_a_whole_row_without_nan():
    nodes = [NODE("Add", ["x", "mask"], ["s"]), NODE("Softmax", ["s"], ["y"])]
    mask = np.where([[1, 1, 0, 0], [0, 0, 0, 0]], 0, LOWEST).astype(np.float32)
    x = random(2, 4)
    found, right = in_bf16(model(nodes, [], inputs={"x": [2, 4], "mask": [2, 4]}), x=x, mask=mask)
    np.testing.assert_allclose(found["y"].float().numpy(), right["y"], atol=0.01)


def test_infinity_that_is_fed_is_known_as_such():
    nodes = [NODE("Equal", ["mask", "c"], ["e"]), NODE("Where", ["e", "zero", "x"], ["y"])]
    constants = [tensor("c", np.float32(-np.inf)), tensor("zero", np.float32(0))]
    mask = np.float32([0, -np.inf, 0, -np.inf])
    found, right = in_bf16(
        model(nodes, constants, inputs={"x": [4], "mask": [4]}), x=np.float32([1, 2, 3, 4]), mask=mask
    )
    assert found["y"].tolist() == right["y"].tolist() == [1, 0, 3, 0]


def test_sizes_of_16_bits_are_traced_as_they_are_computed():
    bf16 = onnx.TensorProto.BFLOAT16
    nodes = [
        NODE("Shape", ["x"], ["shape"]), NODE("Gather", ["shape", "first"], ["n"]),
        NODE("Cast", ["n"], ["h"], to=bf16), NODE("Cast", ["flags"], ["b"], to=onnx.TensorProto.BOOL),
        NODE("Where", ["b", "h", "other"], ["w"]), NODE("Cast", ["w"], ["y"], to=FLOAT),
    ]  # fmt: skip
    other = tensor("other", np.array(1.5, ml_dtypes.bfloat16))
    source = typed(
        model(nodes, [tensor("first", np.array(0)), other], inputs={"x": [5, 2], "flags": [3]}), flags=INT64
    )
    graph = fuse(read_graph(OnnxModel.open(source)))
    program = Program(graph, device="cpu", floating=torch.bfloat16, linear=plain)
    inputs, outputs = [torch.zeros(5, 2), torch.tensor([0, 1, 0])], [torch.empty(3)]
    assert program(inputs)[0].tolist() == [1.5, 5, 1.5]
    program.trace(inputs, outputs)(*inputs, *outputs)
    assert outputs[0].tolist() == [1.5, 5, 1.5]


@pytest.mark.parametrize("floating", [None, torch.bfloat16])
def test_a_constant_is_on_the_device_once(floating):
    source = model([NODE("Mul", ["x", "c"], ["y"])], [tensor("c", random(4))], inputs={"x": [2, 4]})
    program = Program(fuse(read_graph(OnnxModel.open(source))), device="cpu", floating=floating, linear=plain)
    program([torch.zeros(2, 4)])
    assert len(program._constants) == 1


def test_integers_are_compared_as_they_are():
    nodes = [
        NODE("Cast", ["x"], ["f"], to=FLOAT), NODE("Equal", ["f", "c"], ["e"]), NODE("Cast", ["e"], ["y"], to=INT64)
    ]  # fmt: skip
    source = typed(model(nodes, [tensor("c", np.float32(301))], inputs={"x": [4]}), x=INT64)
    source.graph.output[0].type.tensor_type.elem_type = INT64
    found, _ = in_bf16(source, x=np.array([299, 300, 301, 302]))
    assert found["y"].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("mask", ["integer", "float"])
def test_a_mask_of_the_lowest_number_hides_and_makes_no_nan(mask):
    """(1 - mask) * lowest: bfloat16 has no such number, and its minus infinity times zero is no number."""
    nodes = [
        *([NODE("Cast", ["mask"], ["m"], to=FLOAT)] if mask == "integer" else [NODE("Identity", ["mask"], ["m"])]),
        NODE("Sub", ["one", "m"], ["hidden"]), NODE("Mul", ["hidden", "lowest"], ["bias"]),
        NODE("Add", ["x", "bias"], ["s"]), NODE("Softmax", ["s"], ["y"]),
    ]  # fmt: skip
    constants = [tensor("one", np.float32(1)), tensor("lowest", np.float32(LOWEST))]
    source = model(nodes, constants, inputs={"x": [3, 4], "mask": [3, 4]})
    source = typed(source, mask=INT64 if mask == "integer" else FLOAT)
    given = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    x = random(3, 4)
    found, right = in_bf16(source, x=x, mask=given if mask == "integer" else given.astype(np.float32))
    assert found["y"].dtype == torch.bfloat16
    np.testing.assert_allclose(found["y"].float().numpy(), right["y"], atol=0.01)


def test_positions_meet_other_values_in_their_type():
    nodes = [
        NODE("Cast", ["ids"], ["f"], to=FLOAT), NODE("Mul", ["f", "half"], ["h"]), NODE("Add", ["x", "h"], ["s"]),
        NODE("MatMul", ["h", "w"], ["m"]), NODE("Add", ["s", "m"], ["y"]),
    ]  # fmt: skip
    constants = [tensor("half", np.float32(0.5)), tensor("w", random(4, 4))]
    outputs = {"y": None, "h": None}
    source = typed(model(nodes, constants, inputs={"x": [3, 4], "ids": [3, 4]}, outputs=outputs), ids=INT64)
    found, right = in_bf16(source, x=random(3, 4), ids=np.arange(300, 312).reshape(3, 4))
    assert found["y"].dtype == torch.bfloat16
    np.testing.assert_array_equal(found["h"].numpy(), right["h"])
    np.testing.assert_allclose(found["y"].float().numpy(), right["y"], rtol=0.02, atol=3)


def test_positions_that_shapes_give_stay_exact_beside_those_that_are_fed():
    nodes = [
        NODE("Shape", ["x"], ["shape"]), NODE("Gather", ["shape", "first"], ["n"]),
        NODE("Range", ["zero", "n", "step"], ["r"]), NODE("Cast", ["r"], ["rf"], to=FLOAT),
        NODE("Cast", ["ids"], ["f"], to=FLOAT), NODE("Sub", ["f", "rf"], ["y"]),
    ]  # fmt: skip
    constants = [tensor(name, np.array(value)) for name, value in {"first": 0, "zero": 0, "step": 1}.items()]
    source = typed(model(nodes, constants, inputs={"x": [700, 2], "ids": [700]}), ids=INT64)
    found, right = in_bf16(source, x=random(700, 2), ids=np.arange(700) * 3)
    np.testing.assert_array_equal(found["y"].numpy(), right["y"])


def test_what_is_computed_with_floats_is_not_exact():
    whole, half, integers = torch.ones(2), torch.ones(2).bfloat16(), torch.ones(2).long()
    assert keeps_exact("Mul", [whole, integers])
    assert keeps_exact("Mul", [np.ones(2, np.float32)])
    assert not keeps_exact("Mul", [whole, half])
    assert not keeps_exact("Mul", [integers])
    assert not keeps_exact("Softmax", [whole])


def test_finite_numbers_stay_finite():
    values = np.array([1, LOWEST, -LOWEST, np.inf, -np.inf, np.nan], np.float32)
    most = torch.finfo(torch.bfloat16).max
    right = torch.tensor([1, -most, most, float("inf"), -float("inf"), float("nan")]).bfloat16()
    torch.testing.assert_close(to_tensor(values, floating=torch.bfloat16), right, equal_nan=True)
    assert to_tensor(values).dtype == torch.float32
    torch.testing.assert_close(lowered(torch.from_numpy(values), torch.bfloat16), right, equal_nan=True)
    assert lowered(torch.ones(2), None).dtype == torch.float32

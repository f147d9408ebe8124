"""Whatever a file holds: a result, or an error that says what is wrong with it. Never anything else."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.helpers import matmul, model, point_to, random, tensor
from trtsparse.errors import ModelError, ModelNotFoundError, OperatorError, OutputError, TrtSparseError
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x10\x00\x00\x00\x10\x08\x02\x00\x00\x00"
ZIP = b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x00\x00!\x00\x8b\xc7"


def busy():
    """A model that has a bit of everything that the code has a rule for."""
    info = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("MatMul", ["b", "tw"], ["to"])], "then", [], [info("to", 1, [2, 8])],
        [tensor("tw", random(8, 8))],
    )  # fmt: skip
    otherwise = helper.make_graph(
        [helper.make_node("Constant", [], ["ew"], value=tensor("", random(8, 8))),
         helper.make_node("MatMul", ["b", "ew"], ["eo"])], "else", [], [info("eo", 1, [2, 8])],
    )  # fmt: skip
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.add(name="value", ref_attr_name="val", type=onnx.AttributeProto.TENSOR)
    function = helper.make_function(
        "local", "F", ["a"], ["o"], [constant, helper.make_node("MatMul", ["a", "w"], ["o"])],
        [helper.make_opsetid("", 21)], attributes=["val"],
    )  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["qw"], axis=1),
        helper.make_node("Gemm", ["x", "qw"], ["a"], transB=1, name="gemm"),
        helper.make_node("DequantizeLinear", ["i4", "s"], ["iw"], axis=0),
        helper.make_node("Transpose", ["iw"], ["it"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "it"], ["b"]),
        helper.make_node("If", ["c"], ["d"], then_branch=then, else_branch=otherwise),
        helper.make_node("Squeeze", ["r", "ax"], ["rs"]),
        helper.make_node("Flatten", ["rs"], ["rf"]),
        helper.make_node("Reshape", ["rf", "shape"], ["rr"]),
        helper.make_node("MatMul", ["d", "rr"], ["e"]),
        helper.make_node("F", ["e"], ["y"], domain="local", val=tensor("", random(8, 8))),
        helper.make_node("Conv", ["image", "cw"], ["o2"], pads=[1, 1, 1, 1]),
    ]
    initializers = [
        tensor("q", np.arange(-32, 32, dtype=np.int8).reshape(8, 8)),
        tensor("s", np.full(8, 0.1, np.float32)),
        tensor("z", np.arange(8, dtype=np.int8)),
        helper.make_tensor("i4", TensorProto.INT4, [8, 8], [i % 16 - 8 for i in range(64)]),
        tensor("shape", np.array([8, 8])),
        tensor("ax", np.array([2, 3])),
        tensor("r", random(8, 8, 1, 1)),
        tensor("cw", random(4, 4, 1, 1)),
    ]
    proto = model(
        nodes, initializers, inputs={"x": [2, 8], "image": [1, 4, 2, 2]}, outputs={"y": [2, 8]}, functions=[function]
    )
    proto.graph.input.append(info("c", TensorProto.BOOL, []))
    return proto.SerializeToString()


BUSY = busy()


def test_the_busy_model_is_whole():
    report = validate(BUSY)
    assert len(report.sites) == 7
    assert report.by_sites.eligible == 7
    assert validate(prune(BUSY).model).compliant


def judged(data):
    """A result or a TrtSparseError; anything else fails the test."""
    try:
        report = validate(data)
        report.to_dict()
        result = prune(data)
        result.to_dict()
    except TrtSparseError as error:
        assert str(error)  # noqa: PT017
        return None
    return report


@settings(max_examples=150)
@given(st.integers(0, len(BUSY) - 1))
def test_a_model_cut_anywhere_is_an_error_or_a_result(cut):
    judged(BUSY[:cut])


def test_a_model_cut_inside_its_graph_is_an_error():
    for cut in range(30, len(BUSY) - 200, 97):
        with pytest.raises(ModelError):
            validate(BUSY[:cut])


@settings(max_examples=300)
@given(st.integers(0, len(BUSY) - 1), st.integers(0, 255))
def test_any_byte_may_be_anything(position, value):
    judged(BUSY[:position] + bytes([value]) + BUSY[position + 1 :])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, len(BUSY) - 1), st.integers(0, 255)), min_size=2, max_size=6))
def test_several_bytes_may_be_anything(changes):
    data = bytearray(BUSY)
    for position, value in changes:
        data[position] = value
    judged(bytes(data))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_model_with_external_data_is_an_error_or_a_result(tmp_path, data):
    proto = matmul(random(8, 4))
    point_to(proto.graph.initializer[0], location="w.bin", offset=64, length=128)
    (tmp_path / "w.bin").write_bytes(bytes(64) + random(8, 4).tobytes())
    good = proto.SerializeToString()
    position, value = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    (tmp_path / "model.onnx").write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
    judged(tmp_path / "model.onnx")
    try:
        prune(tmp_path / "model.onnx", output=tmp_path / "out.onnx")
    except TrtSparseError:
        assert not (tmp_path / "out.onnx").exists()
    assert not list(tmp_path.glob(".trtsparse-*"))
    for path in tmp_path.glob("out.onnx*"):
        path.unlink()


@given(st.binary(max_size=200))
def test_random_bytes_are_an_error(data):
    with pytest.raises(ModelError):
        validate(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (PNG, "this is a PNG image, not an ONNX model"),
        (ZIP, "this is a zip archive, such as a saved engine of cuSPARSELt, not an ONNX model"),
        (b'{"json": true}', "this is JSON text, not an ONNX model"),
        (b"just some text\n" * 20, "not an ONNX file"),
        (bytes(100), "the ONNX file is truncated or damaged"),
    ],
)
def test_other_files_are_not_taken_for_models(tmp_path, data, what):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for call in (validate, prune):
        with pytest.raises(ModelError) as caught:
            call(path)
        first, second = str(caught.value).splitlines()[:2]
        assert first == what
        assert second.startswith(f"  where: {path}")


@pytest.mark.parametrize("call", [validate, prune])
def test_a_missing_file_is_named(tmp_path, call):
    with pytest.raises(ModelNotFoundError) as caught:
        call(tmp_path / "no.onnx")
    assert str(caught.value) == f"there is no such file\n  where: {tmp_path / 'no.onnx'}"


@pytest.mark.parametrize("call", [validate, prune])
def test_unknown_operators_are_listed_by_both(call):
    proto = model(
        [helper.make_node("Swirl", ["x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])],
        [tensor("w", random(8, 4))],
    )
    with pytest.raises(OperatorError) as caught:
        call(proto)
    assert caught.value.nodes == ("Swirl (node 'a', opset 21)",)
    call(proto, allow_unknown_operators=True)


@pytest.mark.parametrize("dims", [[-8, 4], [2**62, 4], [8, 5], [2**31, 2**31], [1] * 40])
def test_dims_that_do_not_fit_the_data_are_an_error(dims):
    proto = matmul(random(8, 4))
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    for call in (validate, prune):
        with pytest.raises(ModelError):
            call(proto)


def test_names_with_nul_are_names(tmp_path):
    proto = matmul(random(8, 4), name="a\0b")
    assert validate(proto).sites[0].node == "a\0b"
    assert prune(proto, include=["a\0b"], output=tmp_path / "out.onnx").zeroed == 16


@pytest.mark.parametrize("output", ["no/such/folder/out.onnx", "file/out.onnx", "nul\0.onnx", "."])
def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path, output):
    (tmp_path / "file").write_text("text")
    with pytest.raises(OutputError) as caught:
        prune(matmul(random(8, 4)), output=tmp_path / output)
    assert caught.value.what == "cannot write the file"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_whose_shapes_contradict_each_other_is_still_judged():
    proto = matmul(random(8, 4), outputs={"y": [7, 7, 7]})
    (site,) = validate(proto).sites
    assert site.eligible


@pytest.mark.parametrize(
    "scale", [np.zeros((2, 8), np.float32), np.zeros((3, 3, 3), np.float32), np.zeros(0, np.float32)]
)
def test_scales_that_do_not_fit_are_a_reason_or_an_error(scale):
    for block in (0, 3, 100, -1, -4):
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=block),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        report = judged(model(nodes, [tensor("q", np.ones((8, 8), np.int8)), tensor("s", scale)]))
        assert report is None or not report.sites[0].eligible

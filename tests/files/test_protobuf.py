"""The walk over serialized models, against protobuf's own parser and writer."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.helpers import model, random, tensor
from trtsparse.errors import ModelError
from trtsparse.files.protobuf import encode_field, fields, rewrite_tensors


def everywhere():
    """A model with a tensor in every place where ONNX allows one, and its tensors' names."""
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=tensor("in a body's attribute", random(2, 2))),
        ],
        "body",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
        [tensor("in a body", random(2, 2))],
    )
    function = helper.make_function(
        "local",
        "F",
        ["a"],
        ["b"],
        [helper.make_node("Constant", [], ["b"], value=tensor("in a function", random(2, 2)))],
        [helper.make_opsetid("", 21)],
        attribute_protos=[helper.make_attribute("value", tensor("a function's default", random(2, 2)))],
    )
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body),
        helper.make_node("F", ["x"], ["z"], domain="local", value=tensor("in an attribute", random(2, 2))),
        helper.make_node("G", [], ["g"], domain="local", values=[tensor("in a list", random(2, 2))], graphs=[body]),
    ]
    proto = model(nodes, [tensor("initializer", random(2, 2))], functions=[function])
    return proto, {
        "initializer",
        "in a body",
        "in a body's attribute",
        "in a function",
        "a function's default",
        "in an attribute",
        "in a list",
    }


def test_every_tensor_of_a_model_is_visited():
    proto, names = everywhere()
    seen = []
    rewrite_tensors(
        proto.SerializeToString(), lambda data, start, end: seen.append(TensorProto.FromString(data[start:end]).name)
    )
    assert set(seen) == names
    assert seen.count("in a body") == 3


def test_a_model_is_copied_byte_for_byte_when_nothing_changes():
    data = everywhere()[0].SerializeToString()
    assert rewrite_tensors(data, lambda *_: None) == data


def test_only_the_visited_tensors_change():
    proto, _ = everywhere()

    def rename(data, start, end):
        changed = TensorProto.FromString(data[start:end])
        changed.name = "x" * 300  # a longer length prefix in every message around it
        return changed.SerializeToString()

    renamed = onnx.ModelProto.FromString(rewrite_tensors(proto.SerializeToString(), rename))
    text, expected = str(renamed), str(proto)
    for name in everywhere()[1]:
        expected = expected.replace(f'"{name}"'.replace("'", "\\'"), '"' + "x" * 300 + '"')
    assert text == expected


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300)))))
def test_fields_are_read_as_they_were_written(written):
    data = b"".join(encode_field(number, value) for number, value in written)
    found = [(f.number, data[f.start : f.end] if f.wire == 2 else f.value) for f in fields(data, 0, len(data))]
    assert found == written


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0b", "not an ONNX file\n  where: byte 0\n  got: protobuf wire type 3"),
        (
            b"\x0a\x05abc",
            (
                "the ONNX file is truncated or damaged\n  where: byte 0\n  got: a field that ends at byte 7\n"
                "  expected: an end at or before byte 5\n  to fix: export or copy the model again"
            ),
        ),
        (
            b"\x00\x01",
            (
                "the ONNX file is truncated or damaged\n  where: byte 0\n  got: a field that ends at byte 2\n"
                "  expected: an end at or before byte 2\n  to fix: export or copy the model again"
            ),
        ),
        (
            b"\x08\xff",
            "the ONNX file is truncated or damaged\n  where: byte 2\n  to fix: export or copy the model again",
        ),
        (
            b"\x08" + b"\xff" * 11,
            "the ONNX file is truncated or damaged\n  where: byte 11\n  to fix: export or copy the model again",
        ),
    ],
)
def test_bytes_that_are_no_message_are_refused(data, message):
    with pytest.raises(ModelError) as caught:
        list(fields(data, 0, len(data)))
    assert str(caught.value) == message


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        found = list(fields(data, 0, len(data)))
    except ModelError:
        return
    assert found[-1].end == len(data) if found else not data

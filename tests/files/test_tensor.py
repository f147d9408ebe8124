"""Tensors as they are stored, against ``onnx.numpy_helper``."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.helpers import model, save_external
from trtsparse.errors import ModelError
from trtsparse.files import tensor as module
from trtsparse.files.model import OnnxModel

TYPES = [
    "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT8", "UINT8", "INT16", "UINT16",
    "INT32", "INT64", "UINT32", "UINT64", "BOOL", "INT4", "UINT4",
]  # fmt: skip
NEWER = ["FLOAT4E2M1", "INT2", "UINT2", "FLOAT6E2M3", "FLOAT6E3M2"]  # not in every onnx from 1.17 on
TYPES += [name for name in NEWER if hasattr(TensorProto, name)]


def opened(proto):
    source = OnnxModel.open(
        model([helper.make_node("Relu", ["x"], ["y"])], [proto]).SerializeToString(),
    )
    return source, source.proto.graph.initializer[0]


def value(name):
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))
    numbers = [[0, 1, 0, 0, 1], [1, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    if not name.endswith("INT2"):
        numbers = [[0, 1, 2, 3, 4], [6, 0, 4, 1, 2], [1, 0, 0, 3, 4]]
    if name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT8", "INT16", "INT32"):
        numbers[2][1] = -2
    return np.array(numbers).astype(dtype)


@pytest.mark.parametrize("raw", [True, False], ids=["raw_data", "typed field"])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_read_from_every_field(name, raw):
    expected = value(name)
    if raw:
        proto = numpy_helper.from_array(expected, "w")
    else:
        proto = helper.make_tensor("w", getattr(TensorProto, name), expected.shape, expected.reshape(-1).tolist())
    assert proto.HasField("raw_data") == raw
    source, stripped = opened(proto)
    assert not stripped.raw_data
    assert not (stripped.int32_data)
    assert not (stripped.float_data)
    assert not (stripped.int64_data)
    found = source.array(stripped)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes() == numpy_helper.to_array(proto).tobytes()
    assert source.ref(stripped).shape == expected.shape


@pytest.mark.parametrize(
    ("name", "shape", "nbytes"),
    [("FLOAT", (3, 5), 60), ("INT4", (3, 5), 8), ("FLOAT4E2M1", (4, 4), 8), ("INT8", (), 1), ("FLOAT", (0, 3), 0)],
)
def test_sizes_count_elements_that_share_bytes(name, shape, nbytes):
    assert module.packed_nbytes(getattr(TensorProto, name), shape) == nbytes


@given(
    st.sampled_from(["INT8", "UINT8", "INT32", "FLOAT16", "BFLOAT16", "INT64", "UINT64"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 17, 200]),
)
def test_varints_are_decoded_and_zeroed_in_place(name, seed, size):
    generator = np.random.default_rng(seed)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name)))
    bits = generator.integers(0, 256, 2 * size * dtype.itemsize, dtype=np.uint8)
    expected = bits.view(dtype).reshape(2, size)
    proto = TensorProto(name="w", data_type=getattr(TensorProto, name), dims=expected.shape)
    field = {"INT64": proto.int64_data, "UINT64": proto.uint64_data}.get(name, proto.int32_data)
    flat = expected.reshape(-1)
    field.extend((flat.view(f"u{dtype.itemsize}") if dtype.kind not in "iu" else flat).tolist())
    source, stripped = opened(proto)
    ref = source.ref(stripped)
    assert source.read(ref).tobytes() == expected.tobytes()
    zeroed = generator.random(expected.shape) < 0.5
    with source.copying(None) as copy, copy.edit(ref) as values:
        values[zeroed] = 0
    edited = numpy_helper.to_array(copy.load().graph.initializer[0])
    wanted = expected.copy()
    wanted[zeroed] = 0
    assert edited.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("old", "new"), [(-1, -128), (-1, 5), (100, 1), (127, 3)], ids=["negative", "shrinks", "one byte", "positive"]
)
def test_an_element_may_change_to_what_fits_its_bytes(old, new):
    source, stripped = opened(helper.make_tensor("w", TensorProto.INT8, [2, 2], [1, old, 2, 3]))
    with source.copying(None) as copy, copy.edit(source.ref(stripped)) as values:
        values[0, 1] = new
    assert numpy_helper.to_array(copy.load().graph.initializer[0]).tolist() == [[1, new], [2, 3]]


def test_an_element_that_does_not_fit_its_bytes_is_refused():
    source, stripped = opened(helper.make_tensor("w", TensorProto.INT8, [2, 2], [1, 2, 3, 4]))

    def fail():
        with source.copying(None) as copy, copy.edit(source.ref(stripped)) as values:
            values[0, 1] = -1

    with pytest.raises(ModelError) as caught:
        fail()
    assert str(caught.value) == (
        "a tensor's elements are stored in too few bytes to be changed in place\n  where: tensor 'w'\n"
        "  to fix: save the model again with raw_data: "
        "numpy_helper.from_array(numpy_helper.to_array(tensor), name)"
    )


def test_too_few_varints_are_refused():
    proto = helper.make_tensor("w", TensorProto.INT8, [2, 2], [1, 2, 3, 4])
    del proto.int32_data[3]
    source, stripped = opened(proto)
    with pytest.raises(ModelError) as caught:
        source.array(stripped)
    assert str(caught.value) == (
        "a tensor's dims and data disagree\n  where: tensor 'w', int32_data\n  got: 3 elements\n"
        "  expected: 4 elements for dims [2, 2]"
    )


def test_small_vectors_stay_in_the_skeleton_and_matrices_do_not():
    small, matrix = np.zeros(256, np.float32), np.zeros((1, 1), np.float32)
    source, stripped = opened(numpy_helper.from_array(small, "w"))
    assert source.ref(stripped) is None
    assert source.array(stripped).tolist() == small.tolist()
    source, stripped = opened(numpy_helper.from_array(np.zeros(257, np.float32), "w"))
    assert source.ref(stripped).nbytes == 1028
    source, stripped = opened(numpy_helper.from_array(matrix, "w"))
    assert source.ref(stripped).nbytes == 4


@pytest.mark.parametrize(
    ("dims", "fact"),
    [
        ([-1, 4], "a tensor has a negative dim\n  where: {where}\n  got: [-1, 4]"),
        (
            [2**62, 4],
            (
                "a tensor's dims are absurd\n  where: {where}\n"
                "  got: [4611686018427387904, 4]: 73786976294838206464 bytes"
            ),
        ),
        ([1] * 65, "a tensor's dims are absurd\n  where: {where}\n  got: 65 dims"),
        (
            [4, 4],
            (
                "a tensor's dims and data disagree\n  where: {where}\n  got: 4 bytes\n"
                "  expected: 64 bytes for dims [4, 4] of float32\n  to fix: export the model again"
            ),
        ),
    ],
)
def test_impossible_dims_are_refused(dims, fact):
    source, stripped = opened(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(4)))
    with pytest.raises(ModelError) as caught:
        source.ref(stripped)
    assert str(caught.value) == fact.format(where="tensor 'w' in bytes")


@pytest.mark.parametrize("dims", [[4, 4], [3], []])
def test_a_tensor_without_data_is_refused(dims):
    source, stripped = opened(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims))
    with pytest.raises(ModelError) as caught:
        source.ref(stripped)
    assert str(caught.value).startswith("a tensor's dims and data disagree\n  where: tensor 'w' in bytes\n  got: ")


def test_an_unknown_data_type_is_refused():
    source, stripped = opened(TensorProto(name="w", data_type=99, dims=[2, 2], raw_data=bytes(4)))
    with pytest.raises(ModelError) as caught:
        source.ref(stripped)
    assert str(caught.value) == "a tensor has an unknown data type\n  where: tensor 'w' in bytes\n  got: 99"


def test_data_in_two_fields_are_refused():
    proto = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2, 3, 4])
    proto.raw_data = bytes(16)
    with pytest.raises(ModelError) as caught:
        opened(proto)
    assert caught.value.what == "a tensor's data is stored in several pieces"


def test_a_skeleton_saved_as_a_model_is_refused():
    source, _ = opened(numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
    with pytest.raises(ModelError) as caught:
        OnnxModel.open(source.proto.SerializeToString())
    assert caught.value.what == "the file is a model's skeleton without its weights"
    assert caught.value.fix == "write models with OnnxModel.save, not their proto"


def test_an_empty_tensor_has_no_place_and_shares_no_bytes(tmp_path):
    values = {
        "a": np.ones((2, 2), np.float32),
        "none": np.zeros((0, 2), np.float32),
        "b": np.ones((1, 2), np.float32),
    }
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"])], [numpy_helper.from_array(*item[::-1]) for item in values.items()]
    )
    source = OnnxModel.open(save_external(proto, tmp_path / "m.onnx", **dict.fromkeys(values, "m.bin")))
    refs = list(source.refs())
    assert [ref.key for ref in refs] == [("m.bin", 0), ("m.bin", -1), ("m.bin", 16)]
    assert [source.read(ref).shape for ref in refs] == [(2, 2), (0, 2), (1, 2)]


def test_names_of_data_types_are_numpys():
    assert module.dtype_name(TensorProto.BFLOAT16) == str(np.dtype(ml_dtypes.bfloat16))
    assert module.dtype_name(12345) == "ONNX data type 12345"

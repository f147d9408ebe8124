"""Weights that several nodes use are pruned once, for all of them; quantized ones by what they stand for."""

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.helpers import arrays, model, point_to, random, tensor
from tests.sparsity.reference import magnitude_pruned
from trtsparse.errors import PruneError
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate
from trtsparse.sparsity.values import pack_int4

# ---- tied weights


def tied(*uses, shape=(8, 8), initializers=()):
    """One tensor used by a Gemm for every element of ``uses``: 0 or 1, the reduction axis."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], [f"y{i}"], transB=axis, name=f"use{i}") for i, axis in enumerate(uses)
    ]
    return model(
        nodes, [tensor("w", random(*shape)), *initializers], outputs={f"y{i}": None for i in range(len(uses))}
    )


def test_a_weight_tied_along_one_axis_is_pruned_once():
    result = prune(tied(0, 0))
    (pruned,) = result.tensors
    assert (pruned.nodes, pruned.axes, pruned.zeroed, result.zeroed) == (("use0", "use1"), (0,), 32, 32)
    assert np.array_equal(arrays(result.model)["w"], magnitude_pruned(random(8, 8), 0))


def test_a_weight_tied_along_two_axes_is_compliant_along_both_and_keeps_the_most():
    result = prune(tied(0, 1))
    (pruned,) = result.tensors
    assert pruned.axes == (0, 1)
    report = validate(result.model)
    assert [site.compliant for site in report.sites] == [True, True]
    values, found = random(8, 8), arrays(result.model)["w"]
    rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
    masks = [np.array(m) for m in itertools.product(rows, repeat=4) if (np.sum(m, axis=0) == 2).all()]
    assert len(masks) == 90
    for i, j in itertools.product((0, 4), repeat=2):
        best = max((np.abs(values[i : i + 4, j : j + 4]) * mask).sum() for mask in masks)
        assert np.abs(found[i : i + 4, j : j + 4]).sum() == pytest.approx(best)
    assert prune(result.model).zeroed == 0


def test_a_weight_tied_along_three_axes_is_refused():
    nodes = [
        helper.make_node("Transpose", ["w"], [f"t{i}"], perm=perm)
        for i, perm in enumerate([(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    ]
    nodes += [helper.make_node("MatMul", ["x", f"t{i}"], [f"y{i}"], name=f"use{i}") for i in range(3)]
    with pytest.raises(PruneError) as caught:
        prune(model(nodes, [tensor("w", random(8, 8, 8))], outputs={"y0": None}))
    assert str(caught.value) == (
        "the tensor is used along more than two axes\n  where: 'w', used by 'use0', 'use1', 'use2'\n"
        "  to fix: exclude it: exclude=['w']"
    )


def test_a_weight_tied_with_different_scales_is_refused():
    nodes = [helper.make_node("DequantizeLinear", ["w", f"s{i}"], [f"d{i}"], axis=0) for i in (0, 1)]
    nodes += [helper.make_node("MatMul", ["x", f"d{i}"], [f"y{i}"], name=f"use{i}") for i in (0, 1)]
    initializers = [tensor("w", np.ones((8, 4), np.int8)), tensor("s0", random(8)), tensor("s1", random(8, seed=1))]
    with pytest.raises(PruneError) as caught:
        prune(model(nodes, initializers))
    assert str(caught.value) == (
        "the tensor is dequantized with different scales\n  where: 'w', used by 'use0', 'use1'\n"
        "  to fix: exclude it: exclude=['w']"
    )
    assert prune(model(nodes, initializers), exclude=["w"]).tensors == ()


def test_same_bytes_with_different_shapes_are_refused(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="one")]
    nodes += [helper.make_node("MatMul", ["a", "v"], ["y"], name="two")]
    w, v = tensor("w", random(8, 4)), tensor("v", random(4, 8))
    for initializer in (w, v):
        point_to(initializer, location="data.bin", offset=0, length=128)
    (tmp_path / "data.bin").write_bytes(random(8, 4).tobytes())
    (tmp_path / "model.onnx").write_bytes(model(nodes, [w, v]).SerializeToString())
    with pytest.raises(PruneError) as caught:
        prune(tmp_path / "model.onnx")
    assert str(caught.value) == (
        "the same bytes are used with different shapes or types\n  where: 'w', used by 'one', 'two'\n"
        "  to fix: exclude it: exclude=['w']"
    )


def test_a_weight_tied_along_two_axes_with_large_groups_is_refused():
    with pytest.raises(PruneError) as caught:
        prune(tied(0, 1), pattern=Pattern(2, 8))
    assert str(caught.value) == (
        "two axes at once are only searched for M up to 4\n  where: 'w'\n  got: 2:8\n"
        "  to fix: exclude it: exclude=['w']"
    )


# ---- quantized weights


def quantized(values, scale, zero=None, *, axis=1, block=0, field="raw", trans=0):
    stored = numpy_helper.from_array(values, "q")
    if field == "typed":
        stored = helper.make_tensor("q", stored.data_type, values.shape, values.reshape(-1).astype(int).tolist())
    initializers = [stored, tensor("s", scale), *([tensor("z", zero)] if zero is not None else [])]
    inputs = ["q", "s", *(["z"] if zero is not None else [])]
    options = {"block_size": block} if block else {}
    return model(
        [
            helper.make_node("DequantizeLinear", inputs, ["w"], axis=axis, **options),
            helper.make_node("Gemm", ["x", "w"], ["y"], transB=trans, name="gemm"),
        ],
        initializers,
        inputs={"x": [2, values.shape[1 if trans else 0]]},
    )


def dequantized(proto):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto if isinstance(proto, onnx.ModelProto) else proto.load())
    del copy.graph.node[1:]
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    return onnx.reference.ReferenceEvaluator(copy).run(None, {"x": np.zeros((2, 8), np.float32)})[0]


@given(
    st.sampled_from(["int8", "uint8", "int4", "uint4"]),
    st.sampled_from(["tensor", "per output", "per input", "blocked"]),
    st.booleans(),
    st.sampled_from([0, 1]),
    st.integers(0, 1000),
)
def test_quantized_weights_are_pruned_by_dequantized_magnitude(dtype, scales, zeros, trans, seed):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    info = ml_dtypes.iinfo(kind)
    generator = np.random.default_rng(seed)
    values = generator.integers(int(info.min), int(info.max) + 1, (8, 8)).astype(kind)
    shape = {"tensor": (), "per output": (8,), "per input": (8,), "blocked": (2, 8)}[scales]
    axis = 0 if scales == "blocked" else (trans if scales == "per input" else 1 - trans)
    scale = generator.uniform(0.01, 1, shape).astype(np.float32)
    zero = generator.integers(int(info.min), int(info.max) + 1, shape).astype(kind) if zeros else None
    proto = quantized(values, scale, zero, axis=axis, block=4 if scales == "blocked" else 0, trans=trans)
    before = dequantized(proto)
    result = prune(proto)
    after = dequantized(result.model)
    moved_before, moved_after = (np.moveaxis(a, trans, -1).reshape(-1, 4) for a in (before, after))
    for old, new in zip(moved_before, moved_after, strict=True):
        if np.count_nonzero(old) <= 2:
            assert np.array_equal(old, new)
            continue
        assert np.count_nonzero(new) <= 2
        assert np.all((new == 0) | (new == old))
        assert np.abs(new).sum() == pytest.approx(np.sort(np.abs(old))[2:].sum(), rel=1e-6)
    assert validate(result.model).compliant
    assert result.zeroed == np.count_nonzero(before != after)
    assert prune(result.model).zeroed == 0


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
def test_quantized_weights_stored_as_varints_are_pruned(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    numbers = np.arange(64).reshape(8, 8) % 16 - (0 if dtype.startswith("u") else 8)
    result = prune(quantized(numbers.astype(kind), np.float32(0.1), field="typed"))
    after = dequantized(result.model)
    assert np.allclose(after, magnitude_pruned(np.float32(0.1) * numbers, 0))
    assert validate(result.model).compliant


def test_float8_weights_with_scales_along_the_reduction_keep_their_fractions():
    values = np.array([[0.5], [0.25], [0.125], [0.75]] * 2).astype(ml_dtypes.float8_e4m3fn)
    scale = np.float32([1, 1, 100, 1, 1, 1, 1, 1])
    result = prune(quantized(values, scale, axis=0))
    found = arrays(result.model)["q"].astype(float).reshape(-1)
    assert found.tolist() == [0, 0, 0.125, 0.75, 0.5, 0, 0, 0.75]


def test_float_weights_that_are_quantized_by_the_graph_are_pruned_as_floats():
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    extra = [tensor("s", np.full(8, 0.01, np.float32)), tensor("z", np.full(8, 3, np.int8))]
    result = prune(model(nodes, [tensor("w", random(8, 4)), *extra]))
    assert np.array_equal(arrays(result.model)["w"], magnitude_pruned(random(8, 4), 0))


def test_an_odd_number_of_int4_weights_keeps_its_length():
    values = np.arange(12).reshape(4, 3).astype(ml_dtypes.uint4)
    odd = np.concatenate([values, values[:1] * 0], axis=0)[:4]
    packed = pack_int4(odd)
    assert packed.nbytes == 6
    assert pack_int4(np.arange(3).astype(ml_dtypes.uint4)).tolist() == [0x10, 0x02]


@pytest.mark.parametrize("slab", [32, 64, 1 << 22])
def test_large_quantized_and_tied_tensors_are_pruned_in_pieces(monkeypatch, slab):
    from trtsparse.sparsity import values as module

    monkeypatch.setattr(module, "_SLAB", slab)
    found = arrays(prune(tied(0, 1, shape=(16, 32))).model)["w"]
    monkeypatch.setattr(module, "_SLAB", 1 << 22)
    assert np.array_equal(found, arrays(prune(tied(0, 1, shape=(16, 32))).model)["w"])
    numbers = np.random.default_rng(0).integers(-128, 128, (8, 64)).astype(np.int8)
    scale, zero = random(64), np.random.default_rng(1).integers(-9, 9, 64).astype(np.int8)
    whole = arrays(prune(quantized(numbers, scale, zero)).model)["q"]
    monkeypatch.setattr(module, "_SLAB", slab)
    assert np.array_equal(arrays(prune(quantized(numbers, scale, zero)).model)["q"], whole)


def test_a_tied_embedding_is_pruned_and_its_other_reader_is_named():
    """A language model's output projection often shares its weights with the embedding's Gather."""
    weights = np.random.default_rng(0).standard_normal((16, 8), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["w", "ids"], ["x"], "embedding"),
            helper.make_node("Transpose", ["w"], ["wt"], "transpose", perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["y"], "head"),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    (pruned,) = prune(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)).tensors
    assert (pruned.nodes, pruned.axes, pruned.zeroed) == (("head",), (1,), 64)
    assert pruned.also_read_by == ("Gather 'embedding'",)

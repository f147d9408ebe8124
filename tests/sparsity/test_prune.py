"""Pruning changes the bytes of eligible weights and nothing else, wherever they are stored."""

import os

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.helpers import arrays, differing, matmul, model, point_to, random, save_external, sparse, tensor
from tests.sparsity.reference import magnitude_pruned
from trtsparse.errors import ConfigError, ModelError, OutputError, PruneError
from trtsparse.files.model import OnnxModel
from trtsparse.files.protobuf import encode_field
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spans(proto, names):
    """Byte ranges of the named initializers' raw_data in the serialized model."""
    data = proto.SerializeToString()
    found = set()
    for initializer in proto.graph.initializer:
        if initializer.name in names:
            start = data.index(initializer.raw_data)
            assert data.find(initializer.raw_data, start + 1) < 0
            found.update(range(start, start + len(initializer.raw_data)))
    return found


def rich():
    """A model with everything that a careless rewrite loses."""
    constant = helper.make_node("Constant", [], ["cw"], value=tensor("", random(8, 8, seed=5)))
    inner = helper.make_function(
        "local", "Inner", ["a"], ["b"],
        [constant, helper.make_node("MatMul", ["a", "cw"], ["b"], name="in function")],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Inner", ["x"], ["a"], domain="local", doc_string="calls"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="first"),
        helper.make_node("Add", ["b", "bias"], ["c"]),
        helper.make_node("MatMul", ["c", "odd"], ["y"], name="not eligible"),
    ]
    initializers = [tensor("w", random(8, 6)), tensor("bias", random(6, seed=2)), tensor("odd", random(6, 4, seed=3))]
    proto = model(nodes, initializers, functions=[inner], producer_name="exporter", doc_string="about")
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    helper.set_model_props(proto, {"author": "someone", "": "empty key"})
    proto.graph.metadata_props.add(key="k", value="v")
    proto.graph.initializer[0].doc_string = "weights"
    proto.graph.node[1].metadata_props.add(key="namespace", value="a.b")
    proto.graph.quantization_annotation.add(tensor_name="w")
    return proto


def test_nothing_but_the_bytes_of_eligible_weights_changes():
    proto = rich()
    unknown = encode_field(999, b"a field of tomorrow") + encode_field(1000, 7)
    before = proto.SerializeToString() + unknown
    result = prune(before)
    after = result.model.load()
    saved = bytes(result.model.files[""])
    assert saved.endswith(unknown)
    changed = set(differing(before, saved).tolist())
    constant = proto.functions[0].node[0].attribute[0].t
    start = before.index(constant.raw_data)
    allowed = spans(proto, {"w"}) | set(range(start, start + 256))
    assert changed
    assert changed <= allowed
    assert np.array_equal(arrays(after)["w"], magnitude_pruned(random(8, 6), 0))
    in_function = numpy_helper.to_array(after.functions[0].node[0].attribute[0].t)
    assert np.array_equal(in_function, magnitude_pruned(random(8, 8, seed=5), 0))
    assert [(o.domain, o.version) for o in after.opset_import] == [("", 21), ("local", 1), ("com.microsoft", 1)]
    assert {t.tensor: (t.zeroed, t.parameters, t.axes) for t in result.tensors} == {
        "w": (24, 48, (0,)),
        **{t.tensor: (32, 64, (0,)) for t in result.tensors if t.tensor != "w"},
    }
    assert result.skipped == (("odd", "reduction of 6 is not a multiple of 4"),)


def test_the_source_is_not_changed(tmp_path):
    proto = rich()
    before = proto.SerializeToString()
    prune(proto)
    assert proto.SerializeToString() == before
    opened = OnnxModel.open(before)
    prune(opened)
    assert opened.load().SerializeToString() == before
    path = tmp_path / "model.onnx"
    path.write_bytes(before)
    prune(path, output=tmp_path / "pruned.onnx")
    assert path.read_bytes() == before


def test_a_file_written_differs_in_the_same_bytes_as_one_kept_in_memory(tmp_path):
    result = prune(rich(), output=tmp_path / "pruned.onnx")
    in_memory = bytes(prune(rich()).model.files[""])
    assert (tmp_path / "pruned.onnx").read_bytes() == in_memory
    assert result.model.path == tmp_path / "pruned.onnx"
    assert contents(tmp_path).keys() == {"pruned.onnx"}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("field", ["raw_data", "typed"])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float16", "bfloat16", "int8", "uint8", "int4", "uint4", "float8_e4m3fn", "float8_e5m2"],
)
def test_every_type_is_pruned_in_every_field(dtype, field, axis):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    numbers = np.random.default_rng(1).permutation(np.arange(64) % 15 + 1).reshape(8, 8)
    if not dtype.startswith("u"):
        numbers = (numbers - 8) * (1 if "int" in dtype else 0.25)
    values = numbers.astype(kind)
    proto = numpy_helper.from_array(values, "w")
    if field == "typed":
        proto = helper.make_tensor("w", proto.data_type, values.shape, values.reshape(-1).tolist())
        assert not proto.HasField("raw_data")
    chain = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["x", "c"], ["y"], transB=axis, name="gemm"),
    ]
    result = prune(model(chain, [proto]))
    found = arrays(result.model)["w"]
    assert found.dtype == kind
    assert np.array_equal(found.astype(float), magnitude_pruned(values.astype(float), axis))
    assert result.zeroed == np.count_nonzero(found.astype(float) != values.astype(float))
    assert validate(result.model).compliant


def test_weights_in_an_ifs_bodies_are_pruned():
    def branch(name):
        constant = helper.make_node("Constant", [], [name], value=tensor("", random(8, 4, seed=len(name))))
        product = helper.make_node("MatMul", ["x", name], [f"{name}_out"], name=f"use {name}")
        return helper.make_graph(
            [constant, product], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, [2, 4])]
        )

    proto = model([helper.make_node("If", ["c"], ["y"], then_branch=branch("yes"), else_branch=branch("no"))])
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    pruned = prune(proto).model.load()
    for attribute in pruned.graph.node[0].attribute:
        value = numpy_helper.to_array(attribute.g.node[0].attribute[0].t)
        assert np.array_equal(value, magnitude_pruned(random(8, 4, seed=len(attribute.g.name)), 0))


# ---- external data


def chain_of(count=3):
    names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"m{i}") for i in range(count)]
    return model(nodes, [tensor(f"w{i}", random(8, 8, seed=i)) for i in range(count)], outputs={"y": [2, 8]})


def expected_chain(count=3):
    return {f"w{i}": magnitude_pruned(random(8, 8, seed=i), 0).tolist() for i in range(count)}


def chain_values(path):
    return {name: value.tolist() for name, value in arrays(OnnxModel.open(path)).items()}


@pytest.fixture
def external(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return save_external(chain_of(), folder / "model.onnx", w0="one.bin", w1="sub/two.bin", w2="one.bin")


def test_external_weights_are_pruned_into_another_folder(external, tmp_path):
    before = contents(external.parent)
    (tmp_path / "to").mkdir()
    prune(external, output=tmp_path / "to/pruned.onnx")
    assert contents(external.parent) == before
    after = contents(tmp_path / "to")
    assert after.keys() == {"pruned.onnx", "one.bin", "sub/two.bin"}
    assert after["pruned.onnx"] == before["model.onnx"]
    assert {name: len(after[name]) for name in ("one.bin", "sub/two.bin")} == {"one.bin": 512, "sub/two.bin": 256}
    assert chain_values(tmp_path / "to/pruned.onnx") == expected_chain()


def test_external_weights_are_pruned_beside_their_source(external):
    before = contents(external.parent)
    prune(external, output=external.parent / "pruned.onnx")
    after = contents(external.parent)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"pruned.onnx", "pruned.onnx.data", "pruned.onnx.1.data"}
    assert chain_values(external.parent / "pruned.onnx") == expected_chain()
    onnx.checker.check_model(str(external.parent / "pruned.onnx"))


def test_external_weights_are_pruned_in_place(external):
    before = contents(external.parent)
    prune(external, output=external)
    after = contents(external.parent)
    assert after.keys() == before.keys()
    assert after["model.onnx"] == before["model.onnx"]
    assert chain_values(external) == expected_chain()


def test_an_embedded_model_is_pruned_in_place(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(chain_of().SerializeToString())
    path.chmod(0o640)
    prune(str(path), output=str(path))
    assert contents(tmp_path).keys() == {"model.onnx"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert chain_values(path) == expected_chain()


@pytest.mark.parametrize("offset", [1, 2, 3, 4097])
def test_external_weights_at_unaligned_offsets_are_pruned_and_their_neighbours_are_not(tmp_path, offset):
    proto = matmul(random(8, 4))
    data = b"\xaa" * offset + proto.graph.initializer[0].raw_data + b"\xbb" * 5
    point_to(proto.graph.initializer[0], location="w.bin", offset=offset, length=128)
    (tmp_path / "w.bin").write_bytes(data)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    prune(tmp_path / "model.onnx", output=tmp_path / "model.onnx")
    expected = magnitude_pruned(random(8, 4), 0).tobytes()
    assert (tmp_path / "w.bin").read_bytes() == b"\xaa" * offset + expected + b"\xbb" * 5


def test_a_result_in_memory_is_saved_with_its_external_files(external, tmp_path):
    result = prune(external)
    before = contents(external.parent)
    (tmp_path / "to").mkdir()
    result.model.save(tmp_path / "to/pruned.onnx")
    assert chain_values(tmp_path / "to/pruned.onnx") == expected_chain()
    result.model.save(external.parent / "pruned.onnx")
    assert chain_values(external.parent / "pruned.onnx") == expected_chain()
    after = contents(external.parent)
    assert {name: after[name] for name in before} == before


def test_an_error_in_the_middle_leaves_every_file_as_it_was(external, monkeypatch):
    before = contents(external.parent)

    def fail(*_):
        raise ZeroDivisionError

    for output in (external, external.parent / "pruned.onnx"):
        with pytest.raises(ZeroDivisionError):
            prune(external, output=output, progress=fail)
    assert contents(external.parent) == before

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        prune(external, output=external)
    assert contents(external.parent) == before


@pytest.mark.parametrize(
    ("other", "shift"), [("weight", 4), ("weight", 124), ("bias", 0), ("bias", 4), ("bias", 124)]
)
def test_two_tensors_that_share_bytes_of_a_file_are_refused(tmp_path, other, shift):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    nodes += [helper.make_node("MatMul" if other == "weight" else "Add", ["x", "v"], ["y"])]
    w, v = tensor("w", random(8, 4)), tensor("v", random(8, 2) if other == "weight" else random(2, 8))
    point_to(w, location="data.bin", offset=0, length=128)
    point_to(v, location="data.bin", offset=shift, length=64)
    (tmp_path / "data.bin").write_bytes(random(512).tobytes())
    (tmp_path / "model.onnx").write_bytes(model(nodes, [w, v]).SerializeToString())
    before = contents(tmp_path)
    with pytest.raises(ModelError) as caught:
        prune(tmp_path / "model.onnx", output=tmp_path / "pruned.onnx")
    message = str(caught.value)
    assert message.startswith("two tensors share bytes of the same file\n  where: ")
    assert "'w'" in message
    assert "'v'" in message
    assert contents(tmp_path) == before


def test_two_names_for_the_same_bytes_are_one_tensor(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["x", "v"], ["y"])]
    w, v = tensor("w", random(8, 4)), tensor("v", random(8, 4))
    for initializer in (w, v):
        point_to(initializer, location="data.bin", offset=0, length=128)
    (tmp_path / "data.bin").write_bytes(random(8, 4).tobytes())
    (tmp_path / "model.onnx").write_bytes(model(nodes, [w, v]).SerializeToString())
    result = prune(tmp_path / "model.onnx")
    assert [(t.tensor, len(t.nodes), t.zeroed) for t in result.tensors] == [("w", 2, 16)]
    assert validate(result.model).compliant


# ---- include and exclude


def names(result):
    return [tensor.tensor for tensor in result.tensors]


def test_include_and_exclude_take_globs_of_tensors_and_nodes():
    assert names(prune(chain_of(), include=["w[01]"])) == ["w0", "w1"]
    assert names(prune(chain_of(), include=["m2"])) == ["w2"]
    assert names(prune(chain_of(), exclude=["w1"])) == ["w0", "w2"]
    assert names(prune(chain_of(), exclude=["m*"])) == []
    result = prune(chain_of(), include=["w0", "w1"], exclude=["m0"])
    assert names(result) == ["w1"]
    assert result.skipped == (("w0", "excluded (node 'm0')"), ("w2", "not included"))


def test_what_is_left_out_keeps_its_bytes():
    result = prune(chain_of(), include=["w1"])
    found = arrays(result.model)
    assert np.array_equal(found["w0"], random(8, 8, seed=0))
    assert np.array_equal(found["w1"], magnitude_pruned(random(8, 8, seed=1), 0))


def test_a_name_with_brackets_is_found_as_it_is_written():
    proto = matmul(random(8, 4), name="layer[0].conv")
    assert names(prune(proto, include=["layer[0].conv"])) == ["w"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(option):
    with pytest.raises(ConfigError) as caught:
        prune(matmul(random(8, 4), name="classifier"), **{option: ["classifer"]})
    assert str(caught.value) == (
        f"no weight or node has this name\n  where: {option}\n  got: classifer\n  expected: for example classifier\n"
        "  to fix: `trtsparse validate` lists the names; * and ? are wildcards"
    )


def test_a_name_in_a_model_without_weights_is_refused():
    with pytest.raises(ConfigError) as caught:
        prune(model([helper.make_node("Relu", ["x"], ["y"])]), include=["w"])
    assert caught.value.expected == "a model with weights"


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("float64", "data type float64: Sparse Tensor Cores do not take it"),
        ("int32", "data type int32: Sparse Tensor Cores do not take it"),
        ("float4_e2m1fn", "data type float4_e2m1fn: Sparse Tensor Cores do not take it"),
    ],
)
def test_a_tensor_named_that_cannot_be_pruned_is_refused_with_the_reason(dtype, reason):
    values = np.ones((8, 4)).astype(getattr(ml_dtypes, dtype, None) or dtype)
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("MatMul", ["x", "c"], ["y"], name="m")]
    with pytest.raises(PruneError) as caught:
        prune(model(nodes, [tensor("w", values)]), include=["w"])
    assert str(caught.value) == (
        f"the tensor cannot be pruned\n  where: 'w', used by node 'm'\n  got: {reason}\n"
        "  to fix: leave it out of `include`"
    )
    assert names(prune(model(nodes, [tensor("w", values)]), include=["w*"])) == []


# ---- compliant and empty


def test_compliant_tensors_keep_every_byte_even_minus_zeros():
    values = sparse(8, 4, axis=0)
    values[0] = -0.0
    before = matmul(values).SerializeToString()
    result = prune(before)
    assert bytes(result.model.files[""]) == before
    assert [(t.tensor, t.zeroed) for t in result.tensors] == [("w", 0)]


def test_pruning_twice_changes_nothing_more(tmp_path):
    prune(rich(), output=tmp_path / "once.onnx")
    result = prune(tmp_path / "once.onnx", output=tmp_path / "twice.onnx")
    assert result.zeroed == 0
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "twice.onnx").read_bytes()


@pytest.mark.parametrize(
    "proto", [model([helper.make_node("Relu", ["x"], ["y"])]), matmul(random(6, 4)), matmul(np.zeros((0, 4), "f4"))]
)
def test_a_model_without_eligible_weights_is_copied(tmp_path, proto):
    result = prune(proto, output=tmp_path / "copy.onnx")
    assert (result.tensors, result.zeroed) == ((), 0)
    assert (tmp_path / "copy.onnx").read_bytes() == proto.SerializeToString()


def test_a_pattern_may_be_a_text():
    result = prune(matmul(random(8, 4)), pattern="1:4")
    assert (result.pattern, validate(result.model, pattern="1:4").compliant) == ("1:4", True)
    with pytest.raises(ConfigError) as caught:
        prune(matmul(random(8, 4)), pattern=4)
    assert str(caught.value) == "not a pattern\n  where: pattern\n  got: 4\n  expected: a Pattern, or text as '2:4'"


@pytest.mark.parametrize("pattern", [Pattern(1, 2), Pattern(1, 4), Pattern(4, 8), Pattern(3, 8)])
def test_other_patterns_are_pruned_by_magnitude_too(pattern):
    result = prune(matmul(random(8, 4)), pattern=pattern)
    assert np.array_equal(arrays(result.model)["w"], magnitude_pruned(random(8, 4), 0, pattern.n, pattern.m))
    assert result.pattern == str(pattern)


def test_the_result_as_json_types():
    assert prune(matmul(random(8, 4), name="m")).to_dict() == {
        "schema": "trtsparse.prune/1",
        "model": "ModelProto",
        "pattern": "2:4",
        "zeroed": 16,
        "tensors": [{"tensor": "w", "nodes": ["m"], "axes": [0], "parameters": 32, "zeroed": 16, "also_read_by": []}],
        "skipped": [],
    }


def test_progress_ends_at_the_whole():
    calls = []
    prune(chain_of(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(256, 768), (512, 768), (768, 768)]

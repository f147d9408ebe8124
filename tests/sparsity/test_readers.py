"""What else reads a pruned tensor is named, whatever the tensor is called there; what does not is not."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.helpers import arrays, model, point_to, random, save_external, tensor
from trtsparse.sparsity.prune import prune

PRODUCT = helper.make_node("MatMul", ["x", "w"], ["h"], name="product")
ROWS = tensor("rows", np.int64([0, 1]))


def gather(table):
    return helper.make_node("Gather", [table, "rows"], ["y"], name="lookup")


def readers(nodes, *, weight=None, more=(), tensor_name="w", **options):
    """Who also reads the one tensor that is pruned."""
    initializers = [tensor("w", random(8, 8) if weight is None else weight), ROWS, *more]
    (pruned,) = prune(model(nodes, initializers, opset=17, **options)).tensors
    assert pruned.tensor == tensor_name
    return pruned.also_read_by


def branch(nodes, output):
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


CHAINS = {
    "directly": ([], "w"),
    "Identity": ([helper.make_node("Identity", ["w"], ["v"])], "v"),
    "Cast": ([helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT16)], "v"),
    "a reshape whose shape is not known": ([helper.make_node("Reshape", ["w", "shape"], ["v"])], "v"),
    "Transpose and Cast": (
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("Cast", ["t"], ["v"], to=TensorProto.FLOAT16),
        ],
        "v",
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_reader_is_named_behind(name):
    nodes, table = CHAINS[name]
    shape = {"shape": [2]} if "shape" in name else {}
    found = readers([PRODUCT, *nodes, gather(table)], inputs={"x": [2, 8], **shape})
    assert found == ("Gather 'lookup'",)


def test_a_reader_in_a_branch_is_named_and_a_name_that_hides_the_tensor_there_is_not():
    reading = branch([helper.make_node("Neg", ["w"], ["a"], name="inner")], "a")
    hiding = branch([helper.make_node("Sin", ["x"], ["w"]), helper.make_node("Neg", ["w"], ["b"], name="other")], "b")
    choose = helper.make_node("If", ["yes"], ["y"], then_branch=reading, else_branch=hiding)
    assert readers([PRODUCT, choose], more=[tensor("yes", np.bool_(1))]) == ("Neg 'inner'",)


def function(name, parameters):
    body = [helper.make_node("Gather", [parameters[1], parameters[0]], ["out"])]
    return helper.make_function("own", name, list(parameters), ["out"], body, [helper.make_opsetid("", 17)])


@pytest.mark.parametrize(("given", "count"), [("w", 1), ("table", 0)])
@pytest.mark.parametrize("parameters", [("a", "w"), ("w", "a")])
def test_names_inside_a_function_are_its_own(given, count, parameters):
    call = helper.make_node("Lookup", ["rows", given], ["y"], domain="own")
    found = readers(
        [PRODUCT, call],
        more=[tensor("table", random(8, 8, seed=1))],
        functions=[function("Lookup", parameters)],
    )
    assert len(found) == count
    assert all(reader.startswith("Gather ") for reader in found)


def test_another_name_for_the_same_bytes_is_the_same_tensor(tmp_path):
    w, table = tensor("w", random(8, 8)), tensor("table", random(8, 8))
    for initializer in (w, table):
        point_to(initializer, location="data.bin", offset=0, length=256)
    (tmp_path / "data.bin").write_bytes(random(8, 8).tobytes())
    proto = model([PRODUCT, gather("table")], [w, table, ROWS], opset=17)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (pruned,) = prune(tmp_path / "model.onnx", output=tmp_path / "pruned.onnx").tensors
    assert (pruned.tensor, pruned.also_read_by) == ("w", ("Gather 'lookup'",))


def test_an_empty_tensor_at_the_same_place_of_a_file_is_another(tmp_path):
    nodes = [
        helper.make_node("Resize", ["x", "roi", "scales"], ["h"], name="up", mode="nearest"),
        helper.make_node("Conv", ["h", "w"], ["y"], name="conv"),
    ]
    stored = {"scales": np.float32([1, 1, 2, 2]), "roi": np.zeros(0, np.float32), "w": random(8, 8, 1, 1)}
    proto = model(nodes, [tensor(*item) for item in stored.items()], inputs={"x": [1, 8, 4, 4]})
    save_external(proto, tmp_path / "m.onnx", **dict.fromkeys(stored, "m.bin"))
    (pruned,) = prune(tmp_path / "m.onnx", output=tmp_path / "pruned.onnx").tensors
    assert (pruned.tensor, pruned.also_read_by) == ("w", ())


def test_a_product_of_constants_reads_its_first_operand():
    nodes = [helper.make_node("MatMul", ["w", "v"], ["folded"], name="constants"), PRODUCT]
    nodes.append(helper.make_node("MatMul", ["h", "folded"], ["y"], name="last"))
    assert readers(nodes, more=[tensor("v", random(8, 8, seed=1))]) == ("MatMul 'constants'",)


def test_a_use_as_a_weight_that_is_not_eligible_and_one_as_a_bias_are_reads():
    nodes = [
        PRODUCT,
        helper.make_node("Gemm", ["x", "w", "w"], ["g"], name="both"),
        helper.make_node("Reshape", ["w", "split"], ["r"]),
        helper.make_node("MatMul", ["z", "r"], ["y"], name="merged"),
    ]
    found = readers(nodes, inputs={"x": [8, 8], "z": [4, 16]}, more=[tensor("split", np.int64([16, 4]))])
    assert found == ("Gemm 'both'", "MatMul 'merged'")


def test_an_output_that_is_the_tensor_is_named():
    nodes = [PRODUCT, helper.make_node("Identity", ["w"], ["y"])]
    assert readers(nodes, outputs={"h": None, "y": None}) == ("output 'y'",)


def test_what_reads_no_values_is_no_reader():
    nodes = [
        PRODUCT,
        helper.make_node("Shape", ["w"], ["s"]),
        helper.make_node("CastLike", ["h", "w"], ["y"]),
    ]
    assert readers(nodes) == ()


def test_several_uses_as_a_weight_and_an_operator_of_another_domain():
    nodes = [
        PRODUCT,
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("MatMul", ["h", "v"], ["i"], name="again"),
        helper.make_node("MatMul", ["i", "w"], ["y"], name="plugin", domain="com.microsoft.nchwc"),
    ]
    proto = model(nodes, [tensor("w", random(8, 8))], opset=17)
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    (pruned,) = prune(proto).tensors
    assert pruned.nodes == ("product", "again")
    assert pruned.also_read_by == ("MatMul 'plugin'",)


def test_a_half_table_behind_casts_is_named_and_only_its_zeros_change():
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["wide"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"], name="head"),
        helper.make_node("Cast", ["w"], ["table"], to=TensorProto.FLOAT),
        gather("table"),
    ]
    proto = model(nodes, [tensor("w", random(8, 8).astype(np.float16)), ROWS], opset=17)
    result = prune(proto)
    (pruned,) = result.tensors
    assert (pruned.nodes, pruned.also_read_by) == (("head",), ("Gather 'lookup'",))
    after, before = arrays(result.model)["w"], random(8, 8).astype(np.float16)
    assert np.array_equal(after[after != 0], before[after != 0])

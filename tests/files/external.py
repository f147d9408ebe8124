"""A model of three products, and what is in a folder."""

from onnx import helper

from tests.helpers import model, random, tensor


def three(*, second="w2"):
    """Three MatMuls in a row with weights w1, w2, w3."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("MatMul", ["a", second], ["b"]),
        helper.make_node("MatMul", ["b", "w3"], ["y"]),
    ]
    return model(nodes, [tensor(f"w{i}", random(8, 8, seed=i)) for i in (1, 2, 3)])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""Sites of small models."""

from onnx import helper

from tests.helpers import model, tensor
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.weights import find_sites


def sites(proto, **options):
    return find_sites(OnnxModel.open(proto), **options)


def only(proto, **options):
    (site,) = sites(proto, **options)
    return site


def behind(chain, values, *, extra=(), weight="w2", inputs=None, op="MatMul", **options):
    """A MatMul whose second operand is ``weight``, made by the chain from the initializer ``w``."""
    nodes = [*chain, helper.make_node(op, ["x", weight], ["y"], name="consumer", **options)]
    return model(nodes, [tensor("w", values), *extra], inputs=inputs)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), name=op.lower(), **attributes)

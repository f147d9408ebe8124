"""Every order that `trtsparse.accuracy.permute` might choose, tried at random: the outputs must stay as they are."""

import numpy as np
from onnx import TensorProto, helper

from tests.helpers import tensor
from trtsparse.accuracy.permutation_axes import leaves
from trtsparse.accuracy.permutation_groups import find_layout
from trtsparse.accuracy.permutation_model import prepared
from trtsparse.accuracy.permute import _apply, _changes
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_models
from trtsparse.precision.feeds import random_feeds
from trtsparse.sparsity.pattern import TWO_FOUR
from trtsparse.sparsity.weights import find_sites

TOLERANCE = 2e-5
IMAGE = [2, 3, 8, 8]


def layout_of(source, *, excluded=()):
    """What may be permuted in a model."""
    view = prepared(OnnxModel.open(source))
    sites = find_sites(view)
    return find_layout(
        view,
        sites,
        pattern=TWO_FOUR,
        included=[site for site in sites if site.eligible],
        excluded=[site for site in sites if site.tensor in excluded],
    )


def shuffled(source, *, seed=0):
    """The model with all channels that may be permuted in a random order, and the names of what changed."""
    opened = OnnxModel.open(source)
    layout = layout_of(opened)
    free = dict.fromkeys(
        leaf
        for stored in layout.stored.values()
        for axis in stored.axes
        for leaf in leaves(axis)
        if not leaf.reason and leaf.size > 1
    )
    random = np.random.default_rng(seed)
    orders = {leaf: np.roll(random.permutation(leaf.size), 1) for leaf in free}
    orders = {leaf: order[::-1] if (order == np.arange(leaf.size)).all() else order for leaf, order in orders.items()}
    changes = _changes(layout, orders)
    with opened.copying(None) as copy:
        _apply(opened, copy, changes)
    keys = {change.ref.key for change in changes}
    names = {name for key, stored in layout.stored.items() if key in keys for name in stored.names}
    return copy, names


def assert_unchanged(source, *, seed=0, feeds=None, tolerance=TOLERANCE):
    """Shuffle all channels that may be; the outputs are the same. Gives the names of what changed."""
    copy, names = shuffled(source, seed=seed)
    feeds = random_feeds(OnnxModel.open(source), count=2) if feeds is None else feeds
    found = compare_models(source, copy, feeds=feeds)
    assert found.error <= tolerance, (found.per_output, sorted(names))
    return names


class Net:
    """A model under construction: values are names, weights are random."""

    def __init__(self, opset=17, seed=0):
        self.opset = opset
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []
        self.random = np.random.default_rng(seed)

    def input(self, name, shape, kind=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, name, *shape, positive=False, dtype=np.float32):
        values = self.random.standard_normal(shape) * max(np.prod(shape[1:]), 1) ** -0.5
        return self.constant(name, (np.abs(values) + 0.5 if positive else values).astype(dtype))

    def constant(self, name, values):
        self.weights.append(tensor(name, np.asarray(values)))
        return name

    def ints(self, *values):
        return self.constant(f"ints{len(self.weights)}", np.array(values, np.int64))

    def node(self, op, *inputs, outputs=1, domain="", name="", **attributes):
        number = len(self.nodes)
        names = [f"{op.lower()}{number}"] if outputs == 1 else [f"{op.lower()}{number}_{i}" for i in range(outputs)]
        name = name or f"{op}{number}"
        self.nodes.append(helper.make_node(op, list(inputs), names, name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, name, x, inputs, outputs, *, kernel=1, groups=1, bias=True):
        given = [x, self.weight(name, outputs, inputs // groups, kernel, kernel)]
        given += [self.weight(f"{name}_bias", outputs)] if bias else []
        return self.node("Conv", *given, group=groups, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2, name=name)

    def linear(self, name, x, inputs, outputs):
        product = self.node("MatMul", x, self.weight(name, inputs, outputs), name=name)
        return self.node("Add", product, self.weight(f"{name}_bias", outputs))

    def output(self, name, kind=TensorProto.FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def model(self, *outputs, **fields):
        for name in outputs:
            self.output(name)
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.weights)
        domains = sorted({node.domain for node in self.nodes} - {""})
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10, **fields)


def image_net(between, *, channels=16, outputs=8, opset=17, reads=None):
    """conv a -> what the test is about -> conv z."""
    net = Net(opset)
    x = net.conv("a", net.input("x", IMAGE), 3, channels, kernel=3)
    y = between(net, x)
    return net.model(net.conv("z", y, reads or channels, outputs))


def token_net(between, *, channels=16, opset=17, reads=None):
    """matmul a -> what the test is about -> matmul z, on (N, S, C)."""
    net = Net(opset)
    x = net.linear("a", net.input("x", ["N", "S", 12]), 12, channels)
    y = between(net, x)
    return net.model(net.linear("z", y, reads or channels, 8))


def left_alone(model):
    """Tensor name to the reason why its channels keep their order."""
    return dict(layout_of(model).left_alone)

"""Networks grown at random compute the same with all of their channels shuffled."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.accuracy.permuting import Net, assert_unchanged


def grow_conv(net, at, choice, x, size, _values):
    outputs = 8 * (1 + choice % 3)
    return [(net.conv(at, x, size, outputs, kernel=1 + 2 * (choice % 2)), outputs)]


def grow_relu(net, _at, _choice, x, size, _values):
    return [(net.node("LeakyRelu", x), size)]


def grow_norm(net, at, _choice, x, size, _values):
    vectors = [net.weight(f"{at}_{i}", size, positive=True) for i in range(4)]
    return [(net.node("BatchNormalization", x, *vectors), size)]


def grow_residual(net, _at, choice, x, size, values):
    alike = [value for value, other in values if other == size]
    return [(net.node("Add", x, alike[choice % len(alike)]), size)]


def grow_concat(net, _at, choice, x, size, values):
    other, more = values[choice // 3 % len(values)]
    return [(net.node("Concat", x, other, axis=1), size + more)] if size + more < 60 else []


def grow_split(net, _at, _choice, x, size, _values):
    if size <= 4:
        return []
    first, second = net.node("Split", x, net.ints(4, size - 4), outputs=2, axis=1)
    return [(first, 4), (second, size - 4)]


def grow_depthwise(net, at, _choice, x, size, _values):
    return [(net.conv(at, x, size, size, kernel=3, groups=size), size)]


def grow_grouped(net, at, _choice, x, size, _values):
    return [(net.conv(at, x, size, 8, groups=2), 8)]


def grow_gate(net, at, _choice, x, size, _values):
    gate = net.conv(at, net.node("GlobalAveragePool", x), size, size)
    return [(net.node("Mul", x, net.node("Sigmoid", gate)), size)]


def grow_tokens(net, at, _choice, x, size, _values):
    tokens = net.node("Transpose", net.node("Reshape", x, net.ints(0, size, 16)), perm=[0, 2, 1])
    product = net.node("MatMul", tokens, net.weight(at, size, 8))
    return [(net.node("Reshape", net.node("Transpose", product, perm=[0, 2, 1]), net.ints(0, 8, 4, 4)), 8)]


def grow_mean(net, _at, _choice, x, size, _values):
    return [(net.node("Sub", x, net.node("ReduceMean", x, axes=[1])), size)]


GROW = [
    grow_conv, grow_relu, grow_norm, grow_residual, grow_concat, grow_split, grow_depthwise, grow_grouped, grow_gate,
    grow_tokens, grow_mean,
]  # fmt: skip


def grown(steps):
    """A network of the given layers, each on an earlier value that the choice picks."""
    net = Net()
    values = [(net.conv("first", net.input("x", [1, 3, 4, 4]), 3, 8), 8)]
    for number, (grow, choice) in enumerate(steps):
        x, size = values[choice % len(values)]
        values += grow(net, f"w{number}", choice, x, size, values)
    read = values[1:] or values
    total = net.node("Concat", *(value for value, _ in read), axis=1)
    return net.model(net.conv("last", total, sum(size for _, size in read), 4))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(GROW), st.integers(0, 30)), min_size=1, max_size=9), st.integers(0, 5))
def test_random_networks_compute_the_same_with_all_channels_shuffled(steps, seed):
    assert_unchanged(grown(steps), seed=seed, tolerance=1e-4)

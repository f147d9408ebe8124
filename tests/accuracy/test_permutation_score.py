"""What a search looks at, and the exact sums that decide."""

import numpy as np
import pytest

import trtsparse.accuracy.permutation_score as module
import trtsparse.accuracy.permute as permuting
from tests.accuracy.permuting import Net, layout_of
from trtsparse.accuracy.permutation_score import cost, sample, score
from trtsparse.accuracy.permute import permute
from trtsparse.sparsity.pattern import TWO_FOUR, keep_mask


def conv_net(*, inputs=16, outputs=24):
    net = Net()
    x = net.node("Relu", net.conv("a", net.input("x", [1, 3, 4, 4]), 3, inputs))
    return net.model(net.conv("z", x, inputs, outputs, kernel=3))


def channels_of(model):
    layout = layout_of(model)
    (channels,) = layout.channels
    return layout, channels


def test_every_kernel_element_is_a_row():
    layout, channels = channels_of(conv_net())
    (weights,) = [layout.model.array(t) for t in layout.model.proto.graph.initializer if t.name == "z"]
    rows = sample(layout, channels)
    assert rows.shape == (24 * 9, 16)
    assert np.array_equal(rows, np.abs(np.moveaxis(weights, 1, -1).reshape(-1, 16)))
    kept = np.abs(weights * keep_mask(weights, axis=1)).sum(dtype=np.float64)
    assert score(layout, channels, pattern=TWO_FOUR).kept == pytest.approx(kept)


def test_the_score_of_an_order_is_that_of_the_permuted_weights():
    layout, channels = channels_of(conv_net())
    order = np.random.default_rng(0).permutation(16)
    rows = sample(layout, channels)[:, order]
    kept = (rows * keep_mask(rows, axis=1)).sum(dtype=np.float64)
    assert score(layout, channels, pattern=TWO_FOUR, order=order).kept == pytest.approx(kept)


def test_quantized_weights_count_with_what_they_stand_for():
    net = Net(21)
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    values = net.random.integers(-90, 90, (8, 16)).astype(np.int8)
    scale, zero = net.random.random(8).astype(np.float32), np.arange(8, dtype=np.int8)
    names = (net.constant("z", values), net.constant("scale", scale), net.constant("zero", zero))
    model = net.model(net.node("Gemm", x, net.node("DequantizeLinear", *names, axis=0), transB=1))
    layout, channels = channels_of(model)
    numbers = (values.astype(np.float32) - zero[:, None]) * scale[:, None]
    assert np.allclose(sample(layout, channels), np.abs(numbers))


def test_large_weights_are_sampled_alike_in_every_call(monkeypatch):
    layout, channels = channels_of(conv_net())
    whole = cost(channels)
    monkeypatch.setattr(module, "_SAMPLE", 16 * 50)
    rows = sample(layout, channels)
    assert rows.shape == (50, 16)
    assert np.array_equal(rows, sample(layout, channels))
    assert cost(channels) == whole * 50 / 216


def test_an_order_that_only_the_sample_likes_is_not_taken(monkeypatch):
    """The sample says that channels 0 to 7 are large; all rows together say that the order as it was is best."""
    model = conv_net()
    weights = np.ones((24, 16, 3, 3), np.float32)
    weights[:, [2, 3, 6, 7, 10, 11, 14, 15]] = 0.01  # two large ones in every group
    (z,) = [t for t in model.graph.initializer if t.name == "z"]
    z.raw_data = weights.tobytes()
    misleading = np.ones((4, 16), np.float32)
    misleading[:, :8] = 10
    monkeypatch.setattr(permuting, "sample", lambda *_: misleading)
    (group,) = permute(model).groups
    assert group.permuted == ()
    assert group.kept_after == group.kept_before == pytest.approx(1 / 1.01)


def test_more_rows_than_a_search_looks_at_still_gain(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE", 16 * 60)
    (group,) = permute(conv_net()).groups
    assert group.kept_after > group.kept_before

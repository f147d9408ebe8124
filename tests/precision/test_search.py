import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.files.model import OnnxModel
from trtsparse.precision.observe import Observer, magnitudes, relative_noise
from trtsparse.precision.search import fewest, rank
from trtsparse.precision.typed import float_values


@given(st.integers(2, 200), st.data())
def test_few_enough_nodes_are_kept_with_few_measurements(count, data):
    needed = data.draw(st.integers(0, count))
    nodes = [str(i) for i in range(count)]
    measured = []

    def measure(kept):
        measured.append(len(kept))
        assert list(kept) == nodes[: len(kept)]
        return 0.0 if len(kept) >= needed else 1.0

    error, kept = fewest(measure, lambda: nodes, limit=0.5)
    assert len(measured) <= 2 * np.log2(count) + 3
    assert len(kept) <= max(1, count // 2)
    if needed <= max(1, count // 2):
        assert error == 0
        assert needed <= len(kept) <= needed + max(1, needed // 4)
    else:
        assert error == 1


def test_the_ranking_is_not_computed_when_nothing_must_be_kept():
    assert fewest(lambda _: 0.1, lambda: pytest.fail("ranked"), limit=0.1) == (0.1, [])


def chain(parse):
    return parse("""g (float[64] x) => (float[64] y) <float a = {3.0}, float b = {5.0}> {
        [one] p = Mul(x, a) [two] q = Add(p, b) [three] y = Tanh(q)
    }""")


def test_the_noisiest_node_comes_first(parse):
    exact = chain(parse)
    rough = parse("""g (float[64] x) => (float[64] y) <float a = {3.001}, float b = {5.5}> {
        [one] p = Mul(x, a) [two] q = Add(p, b) [three] y = Tanh(q)
    }""")
    model = OnnxModel.open(exact)
    observers = [Observer(proto, values=["x", "p", "q", "y"], name="m") for proto in (model.load(), rough)]
    feed = {"x": np.random.default_rng(0).normal(size=64).astype(np.float32)}
    assert rank(model.proto.graph.node, float_values(model), *observers, feed)[0] == "two"


def test_inner_values_come_in_order_however_large_they_are(parse, monkeypatch):
    monkeypatch.setattr("trtsparse.precision.observe._BUDGET_NBYTES", 1)
    monkeypatch.setattr("trtsparse.precision.observe._FIRST", 1)
    observer = Observer(chain(parse), values=["p", "x", "y", "q"], name="m")
    found = list(observer.run({"x": np.ones(64, np.float32)}))
    assert [name for name, _ in found] == ["p", "x", "y", "q"]
    assert [float(value[0]) for _, value in found[:2]] == [3, 1]


def test_magnitudes_leave_out_infinities_and_sentinels(parse):
    model = parse("""g (float[4] x) => (float[4] y) { a = Neg(x) y = Log(x) }""")
    observer = Observer(model, values=["a", "y"], name="m")
    feeds = [{"x": np.float32([0, 1, 50, 3.4e38])}, {"x": np.float32([1, 1, 60, 1])}]
    assert magnitudes(observer, feeds)["a"] == 60
    assert magnitudes(observer, feeds)["y"] == pytest.approx(88.7, abs=0.1)


def test_noise_is_relative_and_infinite_for_what_overflows():
    a = np.float32([3, 4])
    assert relative_noise(a, a) == 0
    assert relative_noise(a, a * np.float32(1.1)) == pytest.approx(0.01, rel=1e-3)
    assert relative_noise(a, np.float32([3, np.inf])) == np.inf
    assert relative_noise(np.float32([-np.inf, 1]), np.float32([-np.inf, 1])) == 0

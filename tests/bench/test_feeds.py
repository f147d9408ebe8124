"""Random inputs for engines that come without their model."""

import numpy as np
import pytest

from tests.doubles.cuda import MemoryCuda
from tests.doubles.kernels import KernelEngine, MemoryKernels
from trtsparse.bench.feeds import engine_feeds
from trtsparse.errors import ConfigError, FeedError
from trtsparse.precision.specs import TensorSpec


def kernels(**options):
    return KernelEngine(MemoryKernels(MemoryCuda()), **options)


class HostEngine:
    name = description = "host"
    outputs = ()

    def __init__(self, *inputs):
        self.inputs = tuple(TensorSpec(name, np.dtype(dtype), shape) for name, dtype, shape in inputs)

    def run(self, feeds, *, outputs=None):
        raise NotImplementedError

    def close(self):
        pass


def test_a_plans_inputs_have_the_shape_that_its_profile_is_best_for():
    (found,) = engine_feeds(kernels(rows=((1, 4, 8), (16, 32, 64)))).values()
    assert (found.shape, found.dtype) == ((4, 64), np.float32)
    assert 0.5 < found.std() < 1.5


def test_given_shapes_choose_the_profile():
    found = engine_feeds(kernels(rows=((1, 4, 8), (16, 32, 64))), shapes={"x": (20, 64)})
    assert found["x"].shape == (20, 64)


def test_given_inputs_are_not_made():
    assert engine_feeds(kernels(), given={"x": np.zeros((2, 64), np.float32)}) == {}


def test_equal_seeds_give_equal_arrays():
    first, second, third = (engine_feeds(kernels(), seed=seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_integers_are_indices_into_anything():
    engine = HostEngine(("ids", "int64", ("n", 50)), ("mask", "bool", ("n",)), ("text", "O", (2,)), ("h", "f2", (3,)))
    found = engine_feeds(engine, shapes={"ids": (4, 50)})
    assert set(np.unique(found["ids"])) == {0, 1}
    assert (found["ids"].dtype, found["ids"].shape) == (np.int64, (4, 50))
    assert (found["mask"].dtype, found["mask"].shape) == (bool, (4,))  # n is one size
    assert found["text"].tolist() == ["", ""]
    assert found["h"].dtype == np.float16


def test_an_unknown_input_is_refused_with_a_hint():
    with pytest.raises(ConfigError) as caught:
        engine_feeds(kernels(), shapes={"X": (1, 64)})
    assert str(caught.value).startswith("the engine has no such input\n  where: shapes\n  got: 'X'\n  expected: 'x'")


def test_values_of_shapes_are_not_made_up():
    engine = kernels()
    engine.shape_inputs = frozenset({"x"})
    with pytest.raises(FeedError) as caught:
        engine_feeds(engine)
    assert str(caught.value) == (
        "the values of an input decide shapes, so that random ones cannot be made up\n"
        "  where: input 'x'\n"
        "  to fix: give its array"
    )
    assert engine_feeds(engine, given={"x": np.zeros((2, 64), np.float32)}) == {}

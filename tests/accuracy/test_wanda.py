"""Wanda keeps the largest products of weight and input norm, and leaves the values as they are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trtsparse.accuracy.moments import Moments
from trtsparse.accuracy.wanda import wanda
from trtsparse.sparsity.pattern import Pattern, is_compliant


def gathered(values):
    moments = Moments(values.shape[1])
    moments.add(values)
    return moments


@given(seed=st.integers(0, 999), pattern=st.sampled_from(["2:4", "1:2", "1:4", "4:8"]))
@settings(deadline=None, max_examples=30)
def test_what_is_kept_scores_at_least_what_is_dropped_and_keeps_its_value(seed, pattern):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(20, 16)) * generator.uniform(0.01, 10, 16)
    weights = generator.normal(size=(6, 16))
    pruned = wanda(weights, gathered(values), pattern=Pattern.parse(pattern))
    assert is_compliant(pruned, axis=1, pattern=Pattern.parse(pattern))
    kept = pruned != 0
    assert np.array_equal(pruned[kept], weights[kept])
    score = np.abs(weights) * np.linalg.norm(values, axis=0)
    n, m = map(int, pattern.split(":"))
    for row, mask in zip(score.reshape(-1, m), kept.reshape(-1, m), strict=True):
        assert mask.sum() == n
        assert row[mask].min() >= row[~mask].max()


def test_dead_channels_are_dropped_first():
    values = np.zeros((5, 4))
    values[:, [1, 3]] = 1e-3
    assert wanda(np.array([[9.0, 1, 9, 1]]), gathered(values)).tolist() == [[0, 1, 0, 1]]


def test_without_any_input_magnitude_decides():
    assert wanda(np.array([[1.0, 4, 3, 2]]), gathered(np.zeros((5, 4)))).tolist() == [[0, 4, 3, 0]]

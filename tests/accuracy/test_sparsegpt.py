"""SparseGPT against brute force, closed-form least squares, and what the published pseudo-code relies on."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtsparse.accuracy import sparsegpt as module
from trtsparse.accuracy.algebra import NUMPY, open_algebra
from trtsparse.accuracy.moments import Moments, output_error
from trtsparse.accuracy.sparsegpt import refit, sparsegpt
from trtsparse.accuracy.wanda import wanda
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern, is_compliant, keep_mask

TINY = 1e-10  # damping that does not show


def problem(seed, *, rows=5, columns=16, samples=200, algebra=NUMPY):
    """Weights and moments of correlated inputs."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(samples, columns)) @ generator.normal(size=(columns, columns))
    moments = Moments(columns, algebra)
    moments.add(mixed + generator.normal(size=(samples, columns)))
    return generator.normal(size=(rows, columns)), moments


def error(weights, pruned, moments):
    return output_error(weights[None], pruned[None], [moments])


def fitted(row, kept, gram):
    """The closed-form least-squares weights of one row on the columns kept."""
    found = np.zeros_like(row)
    found[kept] = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ row)
    return found


def best_possible(row, gram):
    """Brute force: every pattern of every group, jointly, each with its own least-squares weights."""
    choices = itertools.product(itertools.combinations(range(4), 2), repeat=len(row) // 4)
    kept = ([4 * g + i for g, pair in enumerate(choice) for i in pair] for choice in choices)
    candidates = (fitted(row, indices, gram) for indices in kept)
    return min(float((row - found) @ gram @ (row - found)) for found in candidates)


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=30)
def test_one_group_is_solved_exactly(seed):
    weights, moments = problem(seed, columns=4)
    pruned = sparsegpt(weights, moments, damping=TINY).weights
    for row, found in zip(weights, pruned, strict=True):
        reached = float((row - found) @ moments.gram() @ (row - found))
        assert reached == pytest.approx(best_possible(row, moments.gram()), rel=1e-5)


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=15)
def test_two_groups_are_never_better_than_brute_force(seed):
    weights, moments = problem(seed, columns=8, rows=2)
    pruned = sparsegpt(weights, moments, damping=TINY).weights
    for row, found in zip(weights, pruned, strict=True):
        reached = float((row - found) @ moments.gram() @ (row - found))
        assert reached >= best_possible(row, moments.gram()) * (1 - 1e-6)


def test_several_groups_come_close_to_brute_force():
    ratios = []
    for seed in range(30):
        weights, moments = problem(seed, rows=1, columns=12, samples=400)
        found = sparsegpt(weights, moments, damping=TINY).weights[0]
        reached = float((weights[0] - found) @ moments.gram() @ (weights[0] - found))
        ratios.append(np.sqrt(reached / best_possible(weights[0], moments.gram())))
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) < 1.5


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=20)
def test_the_fit_is_the_closed_form_least_squares_solution(seed):
    weights, moments = problem(seed)
    start = weights * keep_mask(weights, axis=1)
    found = refit(weights, start, moments.gram(), steps=400, tolerance=1e-12)
    for row, mask, values in zip(weights, start != 0, found, strict=True):
        np.testing.assert_allclose(values, fitted(row, np.flatnonzero(mask), moments.gram()), rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 9999), steps=st.integers(0, 12))
@settings(deadline=None, max_examples=30)
def test_the_fit_never_grows_the_error_and_never_revives_a_weight(seed, steps):
    weights, moments = problem(seed)
    start = weights * keep_mask(weights, axis=1)
    fewer = refit(weights, start, moments.gram(), steps=steps)
    more = refit(weights, start, moments.gram(), steps=steps + 1)
    assert error(weights, more, moments) <= error(weights, fewer, moments) * (1 + 1e-9)
    assert not more[start == 0].any()


@given(seed=st.integers(0, 9999), pattern=st.sampled_from(["2:4", "1:2", "1:4", "3:4", "4:8", "8:16"]))
@settings(deadline=None, max_examples=20)
def test_the_result_is_compliant(seed, pattern):
    weights, moments = problem(seed)
    for fit in (True, False):
        pruned = sparsegpt(weights, moments, pattern=Pattern.parse(pattern), fit=fit).weights
        assert is_compliant(pruned, axis=1, pattern=Pattern.parse(pattern))


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=20)
def test_independent_inputs_leave_nothing_to_make_up_for(seed):
    """With a diagonal matrix of moments the best choice is Wanda's, and no weight changes."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(4, 16))
    moments = Moments(16)
    moments.add(np.diag(generator.uniform(1, 5, 16)))
    np.testing.assert_allclose(sparsegpt(weights, moments, damping=0).weights, wanda(weights, moments), atol=1e-12)


@pytest.mark.parametrize("columns", [4, 12, 40])
def test_the_factor_gives_the_inverse_of_every_trailing_block(columns):
    """What lets the paper read all its inverses off one Cholesky factor."""
    _, moments = problem(0, columns=columns)
    factor = module._inverse_factor(moments.gram(), NUMPY)
    assert np.array_equal(factor, np.triu(factor))
    for i in range(columns):
        rest = np.linalg.inv(moments.gram()[i:, i:])
        np.testing.assert_allclose(factor[i:, i:].T @ factor[i:, i:], rest, rtol=1e-6, atol=1e-9)


def in_plain_words(weights, gram):
    """The pass from left to right with an inverse computed anew for every group, one row at a time."""
    found = weights.copy()
    for row in found:
        for i in range(0, len(row), 4):
            inverse = np.linalg.inv(gram[i:, i:])
            tries = []
            for pair in itertools.combinations(range(4), 2):
                dropped = list(pair)
                multipliers = np.linalg.solve(inverse[np.ix_(dropped, dropped)], row[i:][dropped])
                tries.append((multipliers @ row[i:][dropped], dropped, multipliers))
            _, dropped, multipliers = min(tries, key=lambda entry: entry[0])
            row[i:] -= multipliers @ inverse[dropped]
            row[i:][dropped] = 0
    return found


@pytest.mark.parametrize("columns", [8, 32, 264])
def test_updates_in_blocks_equal_the_plain_algorithm(columns):
    weights, moments = problem(1, rows=3, columns=columns, samples=4 * columns)
    gram, factor, _ = module._damped(moments.gram(), 0.01, NUMPY)
    found = module._choose(weights, factor, TWO_FOUR, NUMPY)
    np.testing.assert_allclose(found, in_plain_words(weights, gram), rtol=1e-6, atol=1e-8)


def test_rows_solved_in_pieces_equal_rows_solved_at_once(monkeypatch):
    weights, moments = problem(2, rows=9)
    whole = sparsegpt(weights, moments).weights
    monkeypatch.setattr(module, "_ELEMENTS", 40)
    np.testing.assert_allclose(sparsegpt(weights, moments).weights, whole)


def test_the_same_problem_has_the_same_solution_to_the_bit():
    weights, moments = problem(3)
    assert np.array_equal(sparsegpt(weights, moments).weights, sparsegpt(weights, moments).weights)


def test_a_bias_that_takes_the_mean_back_lets_the_weights_lose_it():
    weights, moments = problem(4)
    values = np.random.default_rng(4).normal(5, 1, (100, 16))
    moments.add(values)
    centred = sparsegpt(weights, moments, centred=True).weights
    plain = sparsegpt(weights, moments).weights

    def left(pruned):
        return output_error(weights[None], pruned[None], [moments], centred=True)

    assert left(centred) < left(plain)


def test_channels_that_never_saw_anything_are_dropped_first_and_keep_their_values():
    generator = np.random.default_rng(5)
    values = generator.normal(size=(50, 8))
    values[:, [0, 1, 4]] = 0
    moments = Moments(8)
    moments.add(values)
    weights = np.full((1, 8), 2.0)
    pruned = sparsegpt(weights, moments).weights[0]
    assert pruned[[0, 1, 4]].tolist() == [0, 0, 0]
    assert np.all(pruned[[2, 3]] != 0)
    dead = Moments(8)
    dead.add(np.zeros((5, 8)))
    assert np.count_nonzero(sparsegpt(weights, dead).weights == 2.0) == 4


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_degenerate_inputs_have_a_finite_solution(damping):
    weights = np.random.default_rng(6).normal(size=(3, 16))
    for values in (
        np.ones((10, 16)),  # constant inputs
        np.random.default_rng(7).normal(size=(3, 16)),  # fewer samples than channels
        np.zeros((10, 16)),
        np.random.default_rng(8).normal(size=(40, 16)) * 1e-20,
        np.random.default_rng(9).normal(size=(40, 16)) * 1e12,
    ):
        moments = Moments(16)
        moments.add(values)
        solution = sparsegpt(weights, moments, damping=damping)
        assert np.isfinite(solution.weights).all()
        assert is_compliant(solution.weights, axis=1)
        assert solution.damping >= damping


def test_damping_is_raised_until_the_matrix_is_positive_definite():
    moments = Moments(4)
    moments.add(np.ones((10, 4)))
    assert sparsegpt(np.ones((1, 4)), moments, damping=0).damping > 0
    assert sparsegpt(np.ones((1, 4)), moments, damping=0.01).damping == 0.01


def test_damping_keeps_weights_of_rare_inputs_near_their_values():
    """Two channels that were equal in the only sample: without damping one may take the other's weight entirely."""
    moments = Moments(4)
    moments.add(np.array([[1.0, 1, 0.1, 0.1]]))
    weights = np.array([[1.0, 1, 1, 1]])
    free = sparsegpt(weights, moments, damping=1e-6).weights
    held = sparsegpt(weights, moments, damping=10.0).weights
    assert abs(held).max() < abs(free).max()


def test_pytorch_gives_what_numpy_gives():
    pytest.importorskip("torch")
    weights, moments = problem(10, columns=160)
    other_weights, other = problem(10, columns=160, algebra=open_algebra("torch-cpu"))
    for pattern in ("2:4", "8:16"):
        found = sparsegpt(other_weights, other, pattern=Pattern.parse(pattern)).weights
        expected = sparsegpt(weights, moments, pattern=Pattern.parse(pattern)).weights
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(wanda(other_weights, other), wanda(weights, moments))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_an_error(name):
    with pytest.raises(ConfigError) as caught:
        open_algebra(name)
    expected = f"no such device\n  where: device\n  got: {name!r}\n  expected: 'cpu', 'cuda', 'cuda:1', ..."
    assert str(caught.value) == expected


def test_a_gpu_without_pytorch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_algebra("cuda")
    assert str(caught.value) == "calibrating on a GPU needs PyTorch\n  to fix: pip install 'trtsparse[torch]'"


def test_a_gpu_that_is_not_there_is_an_error():
    torch = pytest.importorskip("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(DeviceError) as caught:
        open_algebra("cuda:99")
    assert str(caught.value) == (
        f"there is no such GPU\n  where: device='cuda:99'\n  got: PyTorch sees {count}\n  to fix: use device='cpu'"
    )

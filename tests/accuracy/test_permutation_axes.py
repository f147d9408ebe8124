"""Axes, their parts, and what unites them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.accuracy.permutation_axes import (
    CONCAT,
    PRODUCT,
    Axis,
    concat,
    find,
    indices,
    leaves,
    occurrences,
    pin,
    product,
    split,
    unite,
)


def reasons(*axes):
    return [leaf.reason for axis in axes for leaf in leaves(axis)]


def test_united_leaves_are_one_and_share_what_pins_them():
    a, b, c = Axis(4), Axis(4), Axis(4)
    pin(a, "input")
    unite(a, b, "")
    unite(b, c, "")
    pin(c, "output")
    assert find(a) is find(b) is find(c)
    assert reasons(a, b, c) == ["input"] * 3


def test_a_leaf_takes_the_parts_of_what_it_is_united_with():
    whole, a, b = Axis(5), Axis(2), Axis(3)
    unite(whole, concat([a, b]), "")
    assert list(leaves(whole)) == [a, b]
    pin(whole, "all")
    assert reasons(a, b) == ["all", "all"]


def test_a_pinned_leaf_pins_the_parts_that_it_gets():
    whole, parts = Axis(6), [Axis(2), Axis(3)]
    pin(whole, "input")
    unite(whole, product(parts), "")
    assert reasons(*parts) == ["input", "input"]


def test_concatenations_are_cut_where_either_is():
    left, right = concat([Axis(2), Axis(6)]), concat([Axis(5), Axis(3)])
    unite(left, right, "no")
    assert [leaf.size for leaf in leaves(left)] == [2, 3, 3]
    assert list(leaves(left)) == list(leaves(right))
    assert reasons(left) == ["", "", ""]


def test_products_are_split_where_either_is():
    left, right = product([Axis(12), Axis(2)]), product([Axis(4), Axis(6)])
    unite(left, right, "no")
    assert [leaf.size for leaf in leaves(left)] == [4, 3, 2]
    assert list(leaves(left)) == list(leaves(right))
    assert reasons(left) == ["", "", ""]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Axis(4), Axis(5)),
        (product([Axis(4), Axis(3)]), product([Axis(3), Axis(4)])),
        (product([Axis(2), Axis(6)]), concat([Axis(5), Axis(7)])),
        (concat([product([Axis(2), Axis(2)]), Axis(2)]), concat([Axis(2), Axis(4)])),
    ],
    ids=["sizes", "factors", "kinds", "part across a product"],
)
def test_what_does_not_fit_is_pinned_on_both_sides(a, b):
    unite(a, b, "why")
    assert set(reasons(a, b)) == {"why"}


def test_equal_parts_against_a_product_are_its_second_factor():
    parts, outer, inner = [Axis(4) for _ in range(3)], Axis(3), Axis(4)
    unite(concat(parts), product([outer, inner]), "groups")
    assert reasons(outer) == ["groups"]
    assert [find(part) for part in parts] == [find(inner)] * 3
    assert reasons(inner) == [""]


def test_parts_of_no_length_and_factors_of_one_are_left_out():
    a = Axis(3)
    assert concat([Axis(0), a]) is a
    assert product([Axis(1), a, Axis(1)]) is a
    assert (concat([]).size, product([]).size) == (0, 1)


def test_only_a_leaf_can_be_split():
    axis = Axis(6)
    assert split(axis, (2, 3), PRODUCT)
    assert not split(axis, (1, 5), CONCAT)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.data(),
)
def test_indices_do_to_an_axis_what_orders_do_to_an_array(factors, parts, data):
    """A product axis is a reshaped array's; a concatenated one that of arrays side by side."""
    inner = [Axis(size) for size in factors]
    rest = [Axis(size) for size in parts]
    axis = concat([product(inner), *rest])
    orders = {leaf: np.array(data.draw(st.permutations(range(leaf.size)))) for leaf in (*inner, *rest)}
    array = np.arange(np.prod(factors)).reshape(factors)
    for dim, leaf in enumerate(inner):
        array = array.take(orders[leaf], axis=dim)
    expected, start = [array.reshape(-1)], array.size
    for leaf in rest:
        expected.append(start + orders[leaf])
        start += leaf.size
    assert indices(axis, orders).tolist() == np.concatenate(expected).tolist()


@given(st.lists(st.integers(2, 4), min_size=3, max_size=3), st.integers(0, 2))
def test_occurrences_are_where_the_elements_of_a_leaf_are(sizes, position):
    axes = [Axis(size) for size in sizes]
    axis, leaf = concat([Axis(3), product(axes), axes[position]]), axes[position]
    places = np.concatenate(
        [(starts[:, None] + stride * np.arange(leaf.size)) for starts, stride in occurrences(axis, leaf)]
    )
    numbers = np.indices(sizes)[position].reshape(-1)
    expected = np.concatenate([np.full(3, -1), numbers, np.arange(leaf.size)])
    found = np.full(axis.size, -1)
    for row in places:
        found[row] = np.arange(leaf.size)
    assert found.tolist() == expected.tolist()
    assert len(set(places.reshape(-1).tolist())) == places.size

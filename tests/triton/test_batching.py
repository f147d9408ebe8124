"""A batch dim is recognised where there is one, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse import Profile
from trtsparse.engines import TensorSpec
from trtsparse.errors import ConfigError
from trtsparse.triton.batching import DEFAULT_MAX_BATCH, Batching, find_batching, samples
from trtsparse.triton.source import Facts

F4 = np.dtype(np.float32)


def facts(inputs, outputs, *profiles, shape_inputs=()):
    specs = [tuple(TensorSpec(name, F4, shape) for name, shape in part.items()) for part in (inputs, outputs)]
    return Facts(*specs, tuple(Profile.parse(text).shapes for text in profiles), frozenset(shape_inputs))


def size(found, **options):
    return find_batching(found, plan=False, **options).max_size


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": ("N", 3)}, {"y": ("N", 5)}),
        ({"a": ("batch", "s"), "b": ("batch", "s")}, {"y": ("batch", "s", 8)}),
        ({"x": ("?", 3)}, {"y": ("?", 5)}),
        ({"x": ("unk__214", 2048)}, {"y": ("unk__215", 214)}),  # magika: a name of its own for every dim
        ({"x": ("DynamicDimension.0", 3)}, {"y": ("ConvTranspose_459_o0__d0", 3)}),  # PP-OCRv6
        ({"x": ("n",)}, {"y": ("n",)}),
        ({"x": ("batch", "s", 3)}, {"y": ("batch", "s + 1", 5)}),
        ({"x": ("n", 3)}, {"y": ("n", "?")}),  # of an ONNX model: its exporter did not work out the size
    ],
)
def test_a_batch_dim_is_recognised_whatever_exporters_call_it(inputs, outputs):
    assert size(facts(inputs, outputs)) == DEFAULT_MAX_BATCH


@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [
        ({"x": (1, 3)}, {"y": ("N", 5)}, "the first dim of input 'x' is always 1"),
        ({"x": ("N", 3)}, {"y": (2, 5)}, "the first dim of output 'y' is always 2"),
        ({"a": ("N", 3), "b": ("M", 3)}, {"y": ("N", 5)}, "the first dims of the inputs are 'N' and 'M'"),
        ({"x": ("N", 3)}, {"y": ("found", 5)}, "the first dim of output 'y' is 'found', not 'N'"),
        ({"x": ("N", 3), "s": ()}, {"y": ("N",)}, "input 's' has no dims"),
        ({"x": ("N", 3)}, {"y": ()}, "output 'y' has no dims"),
        ({"x": ("N", 3)}, {"y": None}, "output 'y' has no dims"),
        ({}, {"y": ("N",)}, "there are no inputs"),
        ({"x": ("n", 4)}, {"y": ("n", "n")}, "dim 1 of output 'y' is 'n', which varies with the first dims"),
        (
            {"x": ("n", 4), "a": ("n", "n")},
            {"y": ("n", 4)},
            "dim 1 of input 'a' is 'n', which varies with the first dims",
        ),
        ({"x": ("n", 4)}, {"y": ("n", "n + 4")}, "dim 1 of output 'y' is 'n + 4', which varies with the first dims"),
        ({"x": ("?", 4)}, {"y": ("n", 2, "n")}, "dim 2 of output 'y' is 'n', which varies with the first dims"),
        ({"x": ("n", 4)}, {"y": ("2*n", 4)}, "the first dim of output 'y' is '2*n'"),
        ({"x": ("?", "s", 4)}, {"y": ("s*4", 4)}, "the first dim of output 'y' is 's*4'"),
    ],
)
def test_without_a_batch_dim_requests_have_the_models_own_shapes(inputs, outputs, why):
    found = facts(inputs, outputs)
    assert find_batching(found, plan=False) == Batching(0, f"no batches: {why}")
    with pytest.raises(ConfigError) as caught:
        find_batching(found, asked=4, plan=False)
    assert str(caught.value) == (
        f"the model has no batch dim\n  where: max_batch_size\n  got: 4, and {why}\n"
        "  to fix: leave it out; requests then have the model's own shapes"
    )


def test_a_plan_whose_outputs_vary_where_no_input_does_has_no_batch_dim():
    """A plan has no names of dims; TensorRT works out every size that does not follow from one that varies."""
    found = facts({"x": ("?", 4)}, {"y": ("?", "?")}, "x:1x4:4x4:8x4")
    assert find_batching(found, plan=True) == Batching(
        0, "no batches: dim 1 of output 'y' varies, and of the inputs only the first dims do"
    )
    assert find_batching(found, plan=False) == Batching(8)


def test_a_dim_of_a_plan_that_may_be_the_batch_again_is_taken_for_it_unless_the_user_says_otherwise():
    found = facts({"x": ("?", 4), "a": ("?", "?")}, {"y": ("?", 4)}, "x:1x4:4x4:8x4,a:1x1:4x4:8x8")
    assert find_batching(found, plan=True) == Batching(
        0, "no batches: dim 1 of input 'a' has the first dim's range in every profile, and may be the same"
    )
    assert find_batching(found, asked=8, plan=True) == Batching(8)
    named = facts({"x": ("n", 4), "a": ("n", "s")}, {"y": ("n", 4)}, "x:1x4:4x4:8x4,a:1x1:4x4:8x8")
    assert find_batching(named, plan=True) == Batching(8)


def test_what_a_plan_does_not_tell_is_noted():
    note = (
        "a plan does not name its dims: if another than the first varies with it, give the model, or max_batch_size 0"
    )
    for second, said in (("?", note), ("s", "")):
        found = facts({"x": ("?", second)}, {"y": ("?", second)}, "x:1x8:4x16:8x32")
        assert find_batching(found, plan=True) == Batching(8, said)
        assert find_batching(found, asked=8, plan=True) == Batching(8)


def test_an_input_whose_values_are_shapes_is_never_batched():
    found = facts({"x": ("N", 3), "s": ("n",)}, {"y": ("N", 3)}, shape_inputs=["s"])
    assert size(found) == 0


XY = ({"x": ("N", "s")}, {"y": ("N", "s")})


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        (["x:1x8:4x8:16x8"], 16),
        (["x:1x8"], 1),
        (["x:1x8:1x8:4x8", "x:5x8:16x8:32x8"], 32),  # they differ in the batch only: one of them admits each
        (["x:1x8:1x8:1x8", "x:8x8:16x8:32x8"], 1),  # none of them admits 2 to 7
        (["x:1x8:8x8:64x8", "x:1x8:4x64:8x64"], 8),  # a batch of 64 admits length 8 only
        (["x:1x8:8x8:64x8", "x:2x8:4x64:8x64"], 0),  # one of length 64 admits no single request
    ],
)
def test_the_largest_batch_is_the_profiles(profiles, expected):
    assert size(facts(*XY, *profiles)) == expected


def test_inputs_that_differ_in_their_largest_batch_agree_on_the_smaller():
    both = ({"a": ("N", 2), "b": ("N", 2)}, {"y": ("N", 2)})
    assert size(facts(*both, "a:1x2:2x2:8x2,b:1x2:2x2:4x2")) == 4


def test_a_profile_without_single_requests_is_served_without_batches():
    found = facts(*XY, "x:4x8:8x8:16x8")
    assert find_batching(found, plan=True) == Batching(
        0, "no batches: not every profile admits a single request, which Triton may send"
    )
    with pytest.raises(ConfigError) as caught:
        find_batching(found, asked=16, plan=True)
    assert str(caught.value) == (
        "the profiles do not admit every batch up to max_batch_size\n  where: max_batch_size\n  got: 16\n"
        "  expected: 0: not every profile admits a single request"
    )


def test_a_larger_batch_than_the_profiles_is_refused_and_a_smaller_one_taken():
    found = facts(*XY, "x:1x8:4x8:16x8")
    assert (size(found, asked=8), size(found, asked=0)) == (8, 0)
    with pytest.raises(ConfigError) as caught:
        find_batching(found, asked=17, plan=True)
    assert str(caught.value) == (
        "the profiles do not admit every batch up to max_batch_size\n  where: max_batch_size\n  got: 17\n"
        "  expected: at most 16"
    )


def test_without_a_profile_the_size_is_assumed_for_a_model_and_asked_for_a_plan():
    assert find_batching(facts(*XY), plan=False) == Batching(
        32, "no profile limits the batch: max_batch_size 32 was assumed"
    )
    assert find_batching(facts(*XY), asked=64, plan=True) == Batching(64)
    with pytest.raises(ConfigError) as caught:
        find_batching(facts(*XY), plan=True)
    assert str(caught.value) == (
        "the largest batch of the plan's profile is not known\n  where: profiles\n"
        "  expected: the profiles that the plan was built with, or max_batch_size"
    )


def shown(found, batching):
    return [(sample.batch, dict(sample.shapes), sample.profile) for sample in samples(found, batching)]


def test_sample_requests_are_single_usual_and_largest_ones_of_every_profile():
    found = facts(*XY, "x:1x8:4x16:8x32", "x:1x8:1x8:1x8")
    assert shown(found, Batching(8)) == [
        (1, {"x": (16,)}, 0),
        (1, {"x": (32,)}, 0),
        (4, {"x": (16,)}, 0),
        (8, {"x": (32,)}, 0),
        (1, {"x": (8,)}, 1),
    ]
    assert shown(found, Batching(0))[:2] == [(0, {"x": (4, 16)}, 0), (0, {"x": (8, 32)}, 0)]


def test_sample_requests_keep_to_max_batch_size():
    assert [batch for batch, _, _ in shown(facts(*XY, "x:1x8:4x8:16x8"), Batching(6))] == [1, 4, 6]


def test_a_model_whose_batch_alone_varies_needs_no_profile_for_sample_requests():
    assert shown(facts({"x": ("N", 3)}, {"y": ("N", 3)}), Batching(4)) == [(1, {"x": (3,)}, 0), (4, {"x": (3,)}, 0)]
    assert shown(facts({"x": (2, 3)}, {"y": (2, 3)}), Batching(0)) == [(0, {"x": (2, 3)}, 0)]


def test_sample_requests_of_unknown_shape_or_of_shapes_cannot_be_made():
    with pytest.raises(ConfigError) as caught:
        samples(facts(*XY), Batching(4))
    assert str(caught.value) == (
        "requests of unknown shape cannot be made up\n  where: input 'x' float32 (N, s)\n"
        "  to fix: give a profile with the shapes to prepare"
    )
    with pytest.raises(ConfigError) as caught:
        samples(facts({"s": (2,)}, {"y": ("n",)}, shape_inputs=["s"]), Batching(0))
    assert str(caught.value) == "an input's values are shapes: none can be made up\n  where: s"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4))
def test_every_batch_up_to_the_largest_fits_a_profile_and_the_next_does_not(ranges):
    pairs = [(low, low + more) for low, more in ranges]
    largest = size(facts(*XY, *(f"x:{low}x8:{low}x8:{high}x8" for low, high in pairs)))
    fitting = [any(low <= batch <= high for low, high in pairs) for batch in range(1, largest + 2)]
    assert fitting == [True] * largest + [False]

import numpy as np
import pytest

from tests.doubles import VERSIONS, installed
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, Profile
from trtsparse.builder.profiles import check_profiles, infer_profile, usual_shapes
from trtsparse.errors import BuildError, ConfigError
from trtsparse.precision.specs import TensorSpec

IMAGE = TensorSpec("x", np.dtype(np.float32), ("n", 3, "h"))
MASK = TensorSpec("mask", np.dtype(np.float32), ("n", 3))
FIXED = TensorSpec("scale", np.dtype(np.float32), (2,))
SHAPE = TensorSpec("size", np.dtype(np.int64), (2,))
INPUTS = (IMAGE, MASK, FIXED, SHAPE)
GOOD = "x:1x3x8:4x3x8:8x3x16,mask:1x3:4x3:8x3"


def test_good_profiles_pass():
    check_profiles(INPUTS, [Profile.parse(GOOD), Profile.parse(GOOD + ",scale:2,size:1x1:8x8:9x9")])
    check_profiles((FIXED,), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + ",maks:1x3",
            (
                "a profile names an input that the model does not have\n  where: profile 0\n  got: 'maks'\n"
                "  expected: 'x', 'mask', 'scale', 'size'\n  to fix: did you mean 'mask'?"
            ),
        ),
        (
            "x:1x3x8",
            (
                "a profile lacks dynamic inputs\n  where: profile 0\n  got: x:1x3x8\n"
                "  expected: 'mask' float32 (n, 3)\n  to fix: add mask:1x3:8x3:16x3"
            ),
        ),
        (
            "x:1x3,mask:1x3",
            (
                "a profile has the wrong number of dims\n  where: profile 0, input 'x'\n  got: 2 dims: 1x3\n"
                "  expected: 3 dims: 'x' float32 (n, 3, h)"
            ),
        ),
        (
            "x:1x3x8:1x4x8:1x5x8,mask:1x3",
            (
                "a profile changes a dim that the model fixes\n  where: profile 0, input 'x', dim 1\n"
                "  got: min 3, opt 4, max 5\n  expected: 3"
            ),
        ),
        (
            GOOD + ",scale:3",
            (
                "a profile changes a dim that the model fixes\n  where: profile 0, input 'scale', dim 0\n"
                "  got: min 3, opt 3, max 3\n  expected: 2"
            ),
        ),
        (
            "x:1x3x8:4x3x8:8x3x8,mask:1x3:5x3:8x3",
            (
                "a profile gives the dim 'n' two sizes\n  where: profile 0, input 'mask', dim 0\n"
                "  got: min 1, opt 5, max 8\n  expected: min 1, opt 4, max 8, as for input 'x', dim 0"
            ),
        ),
    ],
)
def test_each_impossible_profile_is_named_with_its_dim(text, message):
    with pytest.raises(ConfigError) as error:
        check_profiles(INPUTS, [Profile.parse(text)])
    assert str(error.value) == message


def test_the_second_profile_is_checked_too():
    with pytest.raises(ConfigError, match="where: profile 1, input 'mask', dim 1"):
        check_profiles(INPUTS, [Profile.parse(GOOD), Profile.parse("x:1x3x8,mask:1x4")])


def test_dynamic_inputs_without_a_profile_are_listed_with_a_suggestion():
    with pytest.raises(ConfigError) as error:
        check_profiles(INPUTS, [])
    assert str(error.value) == (
        "the model has dynamic inputs and no profile says how large they are\n"
        "  got: 'x' float32 (n, 3, h); 'mask' float32 (n, 3)\n"
        "  expected: a range for each of their dynamic dims\n"
        "  to fix: give a profile, such as x:1x3x1:8x3x8:16x3x16,mask:1x3:8x3:16x3"
    )


def test_a_profile_is_inferred_from_samples_with_the_commonest_shape_as_opt():
    samples = [{"x": np.zeros((n, 3, h)), "mask": np.zeros((n, 3))} for n, h in ((2, 8), (1, 20), (2, 8), (6, 4))]
    found = infer_profile(INPUTS, samples)
    assert str(found) == "x:1x3x4:2x3x8:6x3x20,mask:1x3:2x3:6x3"
    check_profiles(INPUTS, [found])


def test_fixed_inputs_need_no_profile():
    assert infer_profile((FIXED, SHAPE), []) is None


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "a profile cannot be inferred without samples"),
        ([{"y": np.zeros(3)}], "a sample lacks a dynamic input\n  got: 'y'\n  expected: 'x'"),
        (
            [{"x": np.zeros((1, 3, 4))}, {"x": np.zeros((3, 4))}],
            "samples of one input differ in the number of dims\n  got: (1, 3, 4), (3, 4)",
        ),
    ],
)
def test_samples_that_give_no_profile_are_named(samples, message):
    with pytest.raises(ConfigError) as error:
        infer_profile((IMAGE,), samples)
    assert str(error.value) == message


@pytest.mark.parametrize("version", VERSIONS)
def test_a_profile_that_tensorrt_refuses_is_named(monkeypatch, net, version):
    good, bad = Profile.parse("x:1x8x6x6:4x8x6x6:8x8x6x6"), Profile.parse("x:1x8x6x6:2x8x6x6:3x8x6x6")
    with installed(version) as trt:
        monkeypatch.setattr(
            trt.IOptimizationProfile, "__bool__", lambda made: tuple(made.get_shape("x")[2]) != (3, 8, 6, 6)
        )
        build(net(), BuildConfig(profiles=(good,)))
        with pytest.raises(BuildError) as error:
            build(net(), BuildConfig(profiles=(good, bad)))
    assert str(error.value) == "TensorRT refuses a profile\n  where: profile 1\n  got: x:1x8x6x6:2x8x6x6:3x8x6x6"


@pytest.mark.parametrize(
    ("most", "why"),
    [
        (2**31, "Shape provided for max is inconsistent with other shapes."),
        (2**70, "set_shape(): incompatible function arguments. The following argument types are supported:"),
    ],
)
def test_sizes_beyond_what_tensorrt_counts_are_refused(rtx, net, most, why):
    profile = Profile.parse(f"x:1x8x6x6:2x8x6x6:{most}x8x6x6")
    with pytest.raises(BuildError) as error:
        build(net(), BuildConfig(profiles=(profile,)))
    assert rtx
    assert str(error.value) == (
        "TensorRT refuses a profile\n  where: profile 0, input 'x'\n"
        f"  got: ((1, 8, 6, 6), (2, 8, 6, 6), ({most}, 8, 6, 6)): {why}\n"
        "  to fix: give it sizes that TensorRT counts"
    )


def test_usual_shapes_are_the_first_profiles_opt_without_shape_inputs():
    profile = Profile.parse(GOOD + ",size:1x1:8x8:9x9")
    assert usual_shapes(INPUTS, [profile]) == {"x": (4, 3, 8), "mask": (4, 3)}
    assert usual_shapes(INPUTS, []) is None

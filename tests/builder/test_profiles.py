import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import VERSIONS, installed
from trtsparse.builder.advanced import Advanced
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, BuildWarning, Profile
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
    check_profiles(INPUTS, [Profile.parse(GOOD + ",size:-1x0:0x0:9x9")])
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
            "x:-1x3x8,mask:1x3",
            (
                "a dim is negative\n  where: profile 0, input 'x', min, dim 0\n  got: -1\n"
                "  to fix: give real sizes; -1 is none"
            ),
        ),
        (
            "x:1x3x0:1x3x8:1x3x8,mask:1x3",
            "a dim is zero\n  where: profile 0, input 'x', min, dim 2\n  got: 0\n  expected: at least 1",
        ),
        (
            GOOD + ",scale:0",
            "a dim is zero\n  where: profile 0, input 'scale', min, dim 0\n  got: 0\n  expected: at least 1",
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


def test_opt_is_the_shape_of_one_sample_for_all_inputs():
    x = TensorSpec("x", np.dtype(np.float32), ("n", 64))
    m = TensorSpec("m", np.dtype(np.float32), ("k", "n"))
    samples = [{"x": np.zeros((n, 64)), "m": np.zeros((k, n))} for n, k in ((8, 3), (2, 5), (2, 7))]
    found = infer_profile((x, m), samples)
    assert str(found) == "x:2x64:2x64:8x64,m:3x2:5x2:7x8"
    check_profiles((x, m), [found])


sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8)


@given(sizes)
def test_a_profile_inferred_from_samples_passes(sizes):
    other = TensorSpec("other", np.dtype(np.float32), ("h", "n"))
    samples = [{"x": np.zeros((n, 3, h)), "mask": np.zeros((n, 3)), "other": np.zeros((h, n))} for n, h in sizes]
    found = infer_profile((*INPUTS, other), samples)
    check_profiles((*INPUTS, other), [found])
    opts = {name: shapes[1] for name, shapes in found.shapes.items()}
    assert opts in [{name: array.shape for name, array in sample.items()} for sample in samples]


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


SLICED = """g (float[n, 4] x, int64[1] st, int64[1] en) => (float[k, 4] y)
    <int64[1] ax = {0}> { y = Slice(x, st, en, ax) }"""


def profile_calls(rtx, monkeypatch):
    """What the real library is given for inputs that hold shapes."""
    given = []
    real = rtx.IOptimizationProfile.set_shape_input
    monkeypatch.setattr(
        rtx.IOptimizationProfile, "set_shape_input", lambda self, *args: given.append(args) or real(self, *args)
    )
    return given


def test_values_of_shape_inputs_may_be_zero(rtx, text_model, monkeypatch):
    given = profile_calls(rtx, monkeypatch)
    profile = Profile.parse("x:2x4:4x4:8x4,st:0:0:1,en:1:2:2")
    report = build(text_model(SLICED), BuildConfig(profiles=(profile,), flavour="tensorrt_rtx")).report
    assert given == [("st", (0,), (0,), (1,)), ("en", (1,), (2,), (2,))]
    assert report.profiles[0]["st"] == {"min": [0], "opt": [0], "max": [1]}


def test_values_of_shape_inputs_come_from_the_sample_that_gives_opt(rtx, text_model, monkeypatch):
    given = profile_calls(rtx, monkeypatch)
    cuts = ((8, 0, 6), (4, 1, 3), (4, 0, 2))
    samples = [{"x": np.zeros((n, 4), "f4"), "st": np.array([a]), "en": np.array([b])} for n, a, b in cuts]
    build(text_model(SLICED), BuildConfig(flavour="tensorrt_rtx"), samples=samples)
    assert given == [("st", (0,), (1,), (1,)), ("en", (2,), (3,), (6,))]


def test_samples_that_differ_in_the_number_of_values_are_named(rtx, text_model):
    samples = [{"x": np.zeros((4, 4), "f4"), "s": np.array(shape)} for shape in ([2, 8, 1], [2, 8])]
    model = text_model("g (float[4, 4] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    with pytest.raises(ConfigError) as error:
        build(model, BuildConfig(flavour="tensorrt_rtx"), samples=samples)
    assert rtx
    assert str(error.value) == "samples of one input differ in the number of values\n  got: (2, 8, 1), (2, 8)"


def test_an_input_that_holds_no_shape_after_all_has_sizes_above_zero(rtx, text_model):
    model = text_model("g (float[n, 4] x, int64[1] i) => (float[m, 4] y) { y = Gather<axis = 0>(x, i) }")
    with pytest.raises(ConfigError) as error:
        build(model, BuildConfig(profiles=(Profile.parse("x:2x4,i:0"),), flavour="tensorrt_rtx"))
    assert rtx
    assert str(error.value) == (
        "a dim is zero\n  where: profile 0, input 'i', min, dim 0\n  got: 0\n  expected: at least 1"
    )


def test_values_that_nothing_gives_are_asked_for(rtx, text_model):
    with pytest.raises(ConfigError) as error:
        build(text_model(SLICED), BuildConfig(profiles=(Profile.parse("x:2x4"),), flavour="tensorrt_rtx"))
    assert rtx
    assert str(error.value) == (
        "an input holds a shape, and no profile gives the range of its values\n"
        "  where: profile 0, input 'st'\n"
        "  expected: 1 values each for min, opt and max, such as st:1x3:8x3:16x3"
    )


def test_a_value_for_all_can_be_asked_for_and_is_told(rtx, text_model, monkeypatch):
    given = profile_calls(rtx, monkeypatch)
    config = BuildConfig(
        profiles=(Profile.parse("x:2x4,st:0"),), flavour="tensorrt_rtx", advanced=Advanced(shape_value=1)
    )
    with pytest.warns(BuildWarning) as caught:
        build(text_model(SLICED), config)
    assert given == [("st", (0,), (0,), (0,)), ("en", (1,), (1,), (1,))]
    assert [str(w.message) for w in caught] == [
        "Dynamic dimensions required for input: en, but no shapes were provided. Automatically overriding shape to: 1"
    ]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.builder.config import Profile
from trtsparse.errors import ConfigError

dims = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_/.:]{1,8}", fullmatch=True), dims, min_size=1), st.data())
def test_what_a_profile_prints_it_reads_back(shapes, data):
    triples = {}
    for name, opt in shapes.items():
        low = tuple(data.draw(st.integers(1, dim)) for dim in opt)
        triples[name] = (low, tuple(opt), tuple(dim + data.draw(st.integers(0, 9)) for dim in opt))
    profile = Profile(triples)
    assert Profile.parse(str(profile)) == profile
    assert hash(Profile.parse(str(profile))) == hash(profile)


def test_one_shape_is_min_opt_and_max():
    assert Profile.parse("x:2x3").shapes == {"x": ((2, 3), (2, 3), (2, 3))} == Profile.fixed({"x": [2, 3]}).shapes


def test_names_may_contain_colons_and_digits():
    assert list(Profile.parse("serving:0:1:2:4,block1/x:3").shapes) == ["serving:0", "block1/x"]


def test_values_of_an_input_that_holds_a_shape_may_be_zero_and_below():
    profile = Profile.parse("st:-1x0:0x0:4x8")
    assert profile.shapes == {"st": ((-1, 0), (0, 0), (4, 8))}
    assert str(profile) == "st:-1x0:0x0:4x8"


def test_a_profile_becomes_json():
    assert Profile.parse("x:1:2:4").to_dict() == {"x": {"min": [1], "opt": [2], "max": [4]}}


FORM = "input:min:opt:max, such as x:1x3:4x3:8x3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", f"a profile's part has no shape\n  where: profile 'x'\n  got: 'x'\n  expected: {FORM}"),
        (
            "x:abc",
            f"a profile's part has no shape\n  where: profile 'x:abc'\n  got: 'abc' in 'x:abc'\n  expected: {FORM}",
        ),
        ("x:1,", f"a profile's part has no shape\n  where: profile 'x:1,'\n  got: ''\n  expected: {FORM}"),
        (":1x3", f"a profile's part has no input name\n  where: profile ':1x3'\n  got: ':1x3'\n  expected: {FORM}"),
        (
            "x:1:2",
            (
                "a profile's part has two shapes, not one or three\n  where: profile 'x:1:2'\n"
                f"  got: 'x:1:2'\n  expected: {FORM}"
            ),
        ),
        ("x:1xa", f"a dim is not a number\n  where: profile 'x:1xa'\n  got: '1xa' in 'x:1xa'\n  expected: {FORM}"),
        ("x:1.5", f"a dim is not a number\n  where: profile 'x:1.5'\n  got: '1.5' in 'x:1.5'\n  expected: {FORM}"),
        ("x:1,x:2", "an input comes twice in a profile\n  where: x:1,x:2\n  got: x"),
        (
            "x:1x2:2x2:3",
            "min, opt and max differ in the number of dims\n  where: profile, input 'x'\n  got: min 2, opt 2, max 1",
        ),
        ("x:1x3:1x2:1x4", "min is larger than opt\n  where: profile, input 'x', dim 1\n  got: min 3, opt 2"),
        ("x:1x2:9x2:8x2", "opt is larger than max\n  where: profile, input 'x', dim 0\n  got: opt 9, max 8"),
    ],
)
def test_each_mistake_has_its_own_text(text, message):
    with pytest.raises(ConfigError) as error:
        Profile.parse(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "a profile has no inputs\n  where: profile\n  expected: input:min:opt:max"),
        ({"x": ((1,), (1,))}, "a profile needs min, opt and max\n  where: profile, input 'x'\n  got: ((1,), (1,))"),
        (
            {"x": ((1.5,), (2,), (3,))},
            "a dim is not a whole number\n  where: profile, input 'x', min, dim 0\n  got: 1.5",
        ),
        (
            {"x": (1, 2, 3)},
            "a shape is not a sequence of whole numbers\n  where: profile, input 'x', min\n  got: 1",
        ),
    ],
)
def test_mistakes_made_in_python_are_named_too(shapes, message):
    with pytest.raises(ConfigError) as error:
        Profile(shapes)
    assert str(error.value) == message

"""Profiles and shapes: what is completed from what, and what is refused."""

import pytest

from trtsparse.errors import ConfigError
from trtsparse.trtexec.parse import parse


def parsed(*words, model="--onnx=m.onnx"):
    return parse([model, "--like=11", *words])


def refusal(*words):
    with pytest.raises(ConfigError) as caught:
        parsed(*words)
    return str(caught.value)


def test_min_opt_and_max_make_one_profile_that_runs_with_its_opt():
    options = parsed("--maxShapes=x:4,y:40", "--minShapes=x:1,y:10", "--optShapes=x:2,y:20")
    assert options.build.profiles == ({"x": ((1,), (2,), (4,)), "y": ((10,), (20,), (40,))},)
    assert options.inference.shapes == {"x": (2,), "y": (20,)}


@pytest.mark.parametrize(
    ("words", "triple", "said"),
    [
        (["--optShapes=x:2"], (2, 2, 2), ["opt to min", "opt to max"]),
        (["--minShapes=x:1"], (1, 1, 1), ["min to opt", "min to max"]),
        (["--maxShapes=x:4"], (4, 4, 4), ["max to min", "max to opt"]),
        (["--minShapes=x:1", "--maxShapes=x:4"], (1, 4, 4), ["max to opt"]),
        (["--minShapes=x:1", "--optShapes=x:2"], (1, 2, 2), ["opt to max"]),
        (["--optShapes=x:2", "--maxShapes=x:4"], (2, 2, 4), ["opt to min"]),
    ],
)
def test_what_is_missing_is_taken_from_the_others_with_trtexecs_warning(words, triple, said):
    options = parsed(*words)
    assert options.build.profiles == ({"x": tuple((size,) for size in triple)},)
    pairs = [text.split(" to ") for text in said]
    assert [(note.severity, note.text) for note in options.notes] == [
        ("W", f"{source}Shapes is being broadcasted to {target}Shapes for tensor x") for source, target in pairs
    ]


def test_shapes_alone_are_a_profile_of_one_shape():
    options = parsed("--shapes=x:8x3,y:2")
    assert options.build.profiles == ({"x": ((8, 3),) * 3, "y": ((2,),) * 3},)
    assert options.inference.shapes == {"x": (8, 3), "y": (2,)}


def test_shapes_to_run_with_may_differ_from_the_opt_and_add_inputs():
    options = parsed("--minShapes=x:1", "--optShapes=x:2", "--maxShapes=x:4", "--shapes=x:3,y:5")
    assert options.build.profiles == ({"x": ((1,), (2,), (4,)), "y": ((5,),) * 3},)
    assert options.inference.shapes == {"x": (3,), "y": (5,)}


def test_no_shapes_make_no_profile():
    options = parsed()
    assert (options.build.profiles, options.inference.shapes) == ((), {})


def test_each_profile_takes_the_flags_behind_it_and_one_is_run():
    options = parsed(
        "--profile=1", "--optShapes=x:20", "--minShapes=x:10", "--maxShapes=x:40", "--fp16",
        "--profile=0", "--minShapes=x:1", "--maxShapes=x:4", "--optShapes=x:2",
        "--useProfile=1", "--shapes=y:7",
    )  # fmt: skip
    assert options.build.profiles == (
        {"x": ((1,), (2,), (4,))},
        {"x": ((10,), (20,), (40,)), "y": ((7,), (7,), (7,))},
    )
    assert options.inference.shapes == {"x": (20,), "y": (7,)}


_STRAY = "Multiple --minShapes/--optShapes/--maxShapes without --profile are not allowed.\n  where: {0}\n"


@pytest.mark.parametrize(
    ("words", "stray"),
    [
        (["--minShapes=x:1", "--minShapes=x:2"], "--minShapes"),
        (["--profile=0", "--minShapes=x:1", "--fp16", "--maxShapes=x:4"], "--maxShapes"),
        (["--profile=0", "--minShapes=x:1", "--minShapes=x:2"], "--minShapes"),
        (["--optShapes=x:1", "--profile=0", "--minShapes=x:1"], "--optShapes"),
    ],
)
def test_shapes_that_belong_to_no_profile_are_refused(words, stray):
    assert refusal(*words) == _STRAY.format(stray) + (
        "  expected: --profile=0 --minShapes=<spec> --optShapes=<spec> --maxShapes=<spec> --profile=1 ...\n"
        f"  to fix: put {stray} right behind its --profile"
    )


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (["--profile=1", "--minShapes=x:1"], 0),
        (["--profile=0", "--minShapes=x:1", "--profile=1"], 1),
        (["--profile=999999999999"], 0),
    ],
)
def test_profiles_are_contiguous_and_not_empty(words, index):
    assert refusal(*words) == (
        f"Found invalid or missing shape spec at profile index {index}.\n  where: --profile\n"
        f"  expected: --profile={index} --minShapes=<spec> --optShapes=<spec> --maxShapes=<spec>"
    )


def test_a_profile_comes_once():
    assert refusal("--profile=0", "--minShapes=x:1", "--profile=0", "--minShapes=x:1") == (
        "Optimization profile index cannot be the same.\n  where: --profile\n  got: 0"
    )


def test_an_input_that_one_of_the_three_lacks_is_named():
    assert refusal("--minShapes=x:1,mask:1", "--maxShapes=x:4") == (
        "--maxShapes lacks an input that the other shapes have\n  got: 'x'\n  expected: 'x', 'mask'"
    )


def test_the_profile_to_run_must_be_built_unless_a_plan_is_loaded():
    assert refusal("--useProfile=1", "--shapes=x:1") == (
        "there is no such optimization profile\n  where: --useProfile\n  got: 1\n  expected: 0 to 0"
    )
    options = parsed("--useProfile=1", "--shapes=x:1", model="--loadEngine=m.plan")
    assert (options.inference.profile, options.inference.shapes) == (1, {"x": (1,)})

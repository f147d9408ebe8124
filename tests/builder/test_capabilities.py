import json
import types
from pathlib import Path

import pytest

from tests.doubles import VERSIONS, make
from trtsparse.builder.capabilities import FEATURES, Capabilities
from trtsparse.builder.config import BuildConfig
from trtsparse.errors import UnsupportedOptionError

SEEN = {version: Capabilities.of(make(version)) for version in VERSIONS}


def described(version, owner, member):
    """Whether the published description of a version has a member."""
    family = "tensorrt_" + version if version.startswith("rtx-") else "tensorrt-" + version
    path = Path(__file__).parents[1] / "data" / "tensorrt-api" / f"{family}.json"
    owner = json.loads(path.read_text())["classes"].get(owner, {})
    return member in owner.get("enum", ()) or member in owner.get("members", {})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FEATURES)
def test_features_are_what_the_description_of_the_version_has(version, name):
    feature = FEATURES[name]
    expected = described(version, feature.owner, feature.member)
    if name.startswith("hardware_compatible") and version.startswith("rtx-"):
        expected = False  # the enumeration is there, but the library refuses it
    assert (name in SEEN[version].features) == expected


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FEATURES)
def test_the_versions_named_in_messages_are_those_that_have_the_feature(version, name):
    feature = FEATURES[name]
    if version.startswith("rtx-"):
        named = feature.rtx
    else:
        number = tuple(int(part) for part in version.split(".")[:2])
        first, last = feature.tensorrt or ((99, 0), None)
        named = first <= number and (last is None or number <= last)
    assert named == (name in SEEN[version].features)


def test_only_rtx_builds_ahead_of_time():
    assert [version for version in VERSIONS if SEEN[version].ahead_of_time] == ["rtx-1.7.1"]
    assert SEEN["rtx-1.7.1"].gpu_targets == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def test_weak_typing_ends_with_10():
    assert [version for version in VERSIONS if not SEEN[version].weak_typing] == ["11.0.0", "11.4.0", "rtx-1.7.1"]


def test_the_real_rtx_has_what_its_double_has(rtx):
    real = Capabilities.of(rtx)
    assert real.features == SEEN["rtx-1.7.1"].features
    assert real.name == f"TensorRT-RTX {rtx.__version__}"


@pytest.mark.parametrize(
    ("version", "options", "option", "versions"),
    [
        ("10.3.0", {"strict_nans": True}, "strict_nans=True", "TensorRT 10.7 or later, TensorRT-RTX"),
        ("8.6.1", {"strip_plan": True}, "strip_plan=True", "TensorRT 10.0 or later, TensorRT-RTX"),
        ("8.6.1", {"refit": "identical"}, "refit='identical'", "TensorRT 10.0 or later, TensorRT-RTX"),
        ("10.0.1", {"refit": "individual"}, "refit='individual'", "TensorRT 10.3 or later, TensorRT-RTX"),
        ("11.4.0", {"compute_capabilities": ("8.6",)}, "compute_capabilities", "TensorRT-RTX"),
        (
            "10.3.0",
            {"hardware_compatible": "same_compute_capability"},
            "hardware_compatible='same_compute_capability'",
            "TensorRT 10.9 or later",
        ),
        (
            "8.6.1",
            {"memory_pools": {"tactic_shared_memory": 1}},
            "memory_pools['tactic_shared_memory']",
            "TensorRT 10.0 or later, TensorRT-RTX",
        ),
    ],
)
def test_an_option_that_the_version_lacks_names_those_that_have_it(version, options, option, versions):
    with pytest.raises(UnsupportedOptionError) as error:
        SEEN[version].check(BuildConfig(**options))
    assert str(error.value) == (
        f"{option} is not available in this version of TensorRT\n"
        f"  got: TensorRT {version if version.count('.') > 2 else SEEN[version].version}\n"
        f"  expected: {versions}\n"
        "  to fix: leave the option out, or install a version that has it"
    )


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(UnsupportedOptionError) as error:
        SEEN["rtx-1.7.1"].check(BuildConfig(compute_capabilities=("9.0", "8.6")))
    assert str(error.value) == (
        "TensorRT-RTX cannot build for this compute capability\n"
        "  where: compute_capabilities, TensorRT-RTX 1.7.1.116\n"
        "  got: 9.0\n"
        "  expected: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_is_either_taken_or_refused(version):
    """No option of BuildConfig passes unseen: each that is not at its default is asked of the version."""
    options = {
        "sparsity": "enable",
        "strict_nans": True,
        "strip_plan": True,
        "refit": "all",
        "hardware_compatible": "ampere_plus",
        "compute_capabilities": ("8.6",),
        "timing_cache": "t",
        "plugins": ("p",),
        "optimization_level": 1,
        "max_aux_streams": 1,
        "builder_threads": 2,
        "profiling_verbosity": "none",
        "memory_pools": {"workspace": 1},
        "version_compatible": True,
    }
    blind = Capabilities("tensorrt", "0", frozenset(), ())
    for name, value in options.items():
        with pytest.raises(UnsupportedOptionError, match=name):
            blind.check(BuildConfig(**{name: value}))
    assert SEEN[version].features


def test_a_module_without_enumerations_has_nothing():
    bare = types.SimpleNamespace(__name__="tensorrt", __version__="0.1")
    assert Capabilities.of(bare).features == frozenset()

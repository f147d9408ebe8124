import json
from pathlib import Path

import pytest

from trtsparse.builder.config import BuildConfig, Profile
from trtsparse.errors import ConfigError


def test_defaults_are_a_plain_fp32_build():
    config = BuildConfig()
    assert (config.precision, config.sparsity, config.profiles, config.verbosity) == (
        "fp32",
        "disable",
        (),
        "layer_names_only",
    )


def test_sparse_builds_are_detailed_unless_told_otherwise():
    assert BuildConfig(sparsity="enable").verbosity == "detailed"
    assert BuildConfig(sparsity="enable", profiling_verbosity="none").verbosity == "none"


@pytest.mark.parametrize("text", ["8.6", "86", "sm86", "SM_86"])
def test_compute_capabilities_are_normalised(text):
    assert BuildConfig(compute_capabilities=(text, "12.0", "sm120")).compute_capabilities == ("8.6", "12.0")


def test_a_config_becomes_json():
    config = BuildConfig(
        profiles=[Profile.parse("x:1:2:3")],
        timing_cache=Path("t.cache"),
        plugins=[Path("p.so")],
        memory_pools={"workspace": 5},
    )
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored["profiles"] == [{"x": {"min": [1], "opt": [2], "max": [3]}}]
    assert (stored["timing_cache"], stored["plugins"], stored["memory_pools"]) == (
        "t.cache",
        ["p.so"],
        {"workspace": 5},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "fp8"},
            "precision has no such value\n  got: 'fp8'\n  expected: 'fp32', 'tf32', 'fp16', 'bf16', 'int8', 'best'",
        ),
        ({"typing": "typed"}, "typing has no such value\n  got: 'typed'\n  expected: 'auto', 'strong', 'weak'"),
        ({"sparsity": True}, "sparsity has no such value\n  got: True\n  expected: 'disable', 'enable', 'force'"),
        ({"flavour": "rtx"}, "flavour has no such value\n  got: 'rtx'\n  expected: None, 'tensorrt', 'tensorrt_rtx'"),
        ({"plugins": "a.so"}, "plugins takes several values\n  got: 'a.so'\n  expected: ('a.so',)"),
        ({"profiles": ("x:1",)}, "not a Profile\n  where: profiles\n  got: 'x:1'\n  to fix: use Profile.parse"),
        (
            {"optimization_level": 6},
            "optimization_level is out of range\n  got: 6\n  expected: a whole number from 0 to 5",
        ),
        (
            {"builder_threads": 0},
            "builder_threads is out of range\n  got: 0\n  expected: a whole number of at least 1",
        ),
        (
            {"max_aux_streams": -1},
            "max_aux_streams is out of range\n  got: -1\n  expected: a whole number of at least 0",
        ),
        ({"max_error": 0}, "max_error is out of range\n  got: 0\n  expected: a number above 0"),
        ({"max_error": float("nan")}, "max_error is out of range\n  got: nan\n  expected: a number above 0"),
        (
            {"compute_capabilities": ("ampere",)},
            (
                "not a compute capability\n  where: compute_capabilities\n  got: 'ampere'\n"
                "  expected: major.minor, such as '8.6', or 'current'"
            ),
        ),
        (
            {"compute_capabilities": ("current", "8.6")},
            "'current' cannot be mixed with others\n  where: compute_capabilities\n  got: current, 8.6",
        ),
        (
            {"memory_pools": {"gpu": 1}},
            (
                "memory_pools has no such value\n  got: 'gpu'\n  expected: 'workspace', 'tactic_dram', "
                "'tactic_shared_memory', 'dla_managed_sram', 'dla_local_dram', 'dla_global_dram'"
            ),
        ),
        (
            {"memory_pools": {"workspace": 1.5}},
            "memory_pools['workspace'] is out of range\n  got: 1.5\n  expected: a whole number of at least 0",
        ),
        (
            {"prune_include": ("conv*",)},
            (
                "nothing is pruned in this build\n  where: prune_include, prune_exclude\n"
                "  got: sparsity='disable'\n  expected: sparsity='force'"
            ),
        ),
        (
            {"exclude_lean_runtime": True},
            "only a version-compatible plan has a lean runtime\n  where: exclude_lean_runtime",
        ),
        (
            {"calibration": "entropy"},
            "calibration is about INT8 builds\n  got: precision='fp32'\n  expected: precision='int8'",
        ),
        (
            {"int8_rest": "fp16"},
            "int8_rest is about INT8 builds\n  got: precision='fp32'\n  expected: precision='int8'",
        ),
        ({"serialize_plugins": True}, "there are no plugins to serialize\n  where: serialize_plugins"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(options, message):
    with pytest.raises(ConfigError) as error:
        BuildConfig(**options)
    assert str(error.value) == message

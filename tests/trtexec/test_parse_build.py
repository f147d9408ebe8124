"""What the flags about the build become together."""

import pytest

from trtsparse.errors import ConfigError
from trtsparse.trtexec.parse import parse


def parsed(*words, like=11, installed=None):
    return parse(["--onnx=m.onnx", f"--like={like}", *words], installed=(installed or like, "it is installed"))


def build(*words, like=11, installed=None):
    return parsed(*words, like=like, installed=installed).build


def texts(*words, like=11, installed=None):
    return [f"[{note.severity}] {note.text}" for note in parsed(*words, like=like, installed=installed).notes]


def refusal(*words, like=11):
    with pytest.raises(ConfigError) as caught:
        parsed(*words, like=like)
    return str(caught.value)


@pytest.mark.parametrize("like", [8, 10, 11])
@pytest.mark.parametrize(
    ("words", "precision", "rest", "random"),
    [
        ([], "tf32", None, False),
        (["--noTF32"], "fp32", None, False),
        (["--fp16"], "fp16", None, False),
        (["--bf16"], "bf16", None, False),
        (["--fp16", "--noTF32"], "fp16", None, False),
        (["--int8"], "int8", "fp32", True),
        (["--int8", "--fp16"], "int8", "fp16", True),
        (["--int8", "--fp16", "--bf16"], "int8", "fp16", True),
        (["--int8", "--best"], "int8", "fp16", True),
        (["--best"], "best", None, False),
        (["--fp16", "--bf16"], "best", None, False),
        (["--stronglyTyped"], "tf32", None, False),
    ],
)
def test_precision_flags_become_one_precision(like, words, precision, rest, random):
    found = build(*words, like=like)
    assert (found.precision, found.int8_rest, found.random_calibration) == (precision, rest, random)
    assert found.tf32 == ("--noTF32" not in words)
    assert found.strongly_typed == ("--stronglyTyped" in words)


def test_precision_flags_of_a_strongly_typed_network_are_switched_off_with_trtexecs_warning():
    found = build("--stronglyTyped", "--fp16", "--int8")
    assert (found.precision, found.random_calibration) == ("tf32", False)
    assert texts("--stronglyTyped", "--fp16", "--int8", like=10) == [
        f"[W] Invalid usage, setting {mode} mode is not allowed if graph is strongly typed. Disabling "
        f"BuilderFlag::k{mode.upper()}."
        for mode in ("fp16", "int8")
    ]


def test_best_and_strong_typing_exclude_each_other():
    assert refusal("--best", "--stronglyTyped") == (
        "--best and --stronglyTyped cannot be both set. --best enables implicit precisions, while --stronglyTyped "
        "enforces explicit precisions."
    )


def test_best_says_what_it_leaves_to_int8():
    said = "[I] --best takes INT8 only where the model is quantized (Q/DQ); --int8 quantizes it"
    assert said in texts("--best", like=8)
    assert said not in texts("--best", "--int8", like=8)


def test_int8_beside_bf16_is_not_downgraded_in_silence():
    assert refusal("--int8", "--bf16") == (
        "--int8 --bf16 is refused: what is not INT8 stays FP32 or becomes FP16 here\n"
        "  to fix: --int8, or --int8 --fp16"
    )
    assert "[I] --bf16: what is not INT8 becomes FP16" in texts("--int8", "--bf16", "--fp16")


def test_trtexec_10_warns_of_weak_typing_and_tells_of_tf32():
    weak = [text for text in texts("--fp16", like=10) if "Weakly-typed" in text]
    assert weak == [
        (
            "[W] Weakly-typed networks have been deprecated in TensorRT. You can use the AutoCast tool "
            "(https://nvidia.github.io/TensorRT-Model-Optimizer/guides/8_autocast.html) to convert the network to be "
            "strongly typed."
        )
    ]
    assert texts("--noTF32", like=10) == []
    assert texts(like=8) == []


def test_layers_that_are_bound_to_fp32_stay_there():
    words = ["--fp16", "--precisionConstraints=obey", "--layerPrecisions=head:fp32,norm*:fp32,*:fp16"]
    assert build(*words).keep_fp32 == ("head", "norm*")
    assert build(*words[1:], "--layerPrecisions=head:fp32,norm*:fp32,*:fp16", "--fp16").keep_fp32 == ("head", "norm*")
    assert build("--precisionConstraints=obey", "--layerPrecisions=head:fp32").keep_fp32 == ()


def test_layer_precisions_and_constraints_need_each_other():
    assert texts("--fp16", "--layerPrecisions=a:fp32", like=8) == [
        (
            "[W] --layerPrecision/--layerOutputTypes flags have no effect when --precisionConstraints flag is set to "
            '"none".'
        )
    ]
    assert build("--fp16", "--layerPrecisions=a:fp32").keep_fp32 == ()
    assert texts("--fp16", "--precisionConstraints=prefer", like=8) == [
        (
            '[W] When --precisionConstraints flag is set to "obey" or "prefer", please add '
            "--layerPrecision/--layerOutputTypes flags to set layer-wise precisions and output types."
        )
    ]


@pytest.mark.parametrize("entry", ["conv:fp16", "conv:int8", "*:fp32"])
def test_layer_precisions_can_only_keep_layers_in_fp32(entry):
    assert refusal("--bf16", "--precisionConstraints=obey", f"--layerPrecisions={entry}") == (
        "--layerPrecisions can only leave layers in FP32 here\n"
        f"  where: --layerPrecisions\n  got: {entry}\n"
        "  expected: a precision for all, and name:fp32 for layers that need more\n"
        "  to fix: --fp16 --precisionConstraints=obey --layerPrecisions=name:fp32"
    )


def test_forcing_sparsity_says_how_it_prunes():
    ours = (
        "[I] --sparsity=force keeps the two largest of every four weights; trtexec keeps the first two, whatever "
        "they are. Both cost accuracy unless the model is fine-tuned"
    )
    theirs = (
        "[W] --sparsity=force has been deprecated. Please use <polygraphy surgeon prune> to rewrite the weights to a "
        "sparsity pattern and then run with --sparsity=enable"
    )
    assert texts("--sparsity=force", like=8) == [ours]
    assert texts("--sparsity=force", like=11) == [theirs, ours]
    assert build("--sparsity=force").sparsity == "force"


def test_the_workspace_is_in_mib_and_memory_pools_overrule_it():
    assert build("--workspace=0.5").memory_pools == {"workspace": 1 << 19}
    assert build("--workspace=16", "--memPoolSize=workspace:1G,tacticSharedMem:1K").memory_pools == {
        "workspace": 1 << 30,
        "tactic_shared_memory": 1024,
    }


def test_minus_one_stands_for_tensorrts_own_choice():
    found = build("--builderOptimizationLevel=-1", "--maxAuxStreams=-1", "--maxTactics=-1", "--l2LimitForTiling=-1")
    assert (found.optimization_level, found.max_aux_streams, found.builder_settings) == (None, None, {})


def test_the_heuristic_is_a_low_optimization_level():
    assert build("--heuristic", like=8).optimization_level == 2
    assert build("--heuristic", "--builderOptimizationLevel=4", like=8).optimization_level == 4


@pytest.mark.parametrize(
    ("word", "verbosity", "said"),
    [
        ("--profilingVerbosity=detailed", "detailed", []),
        ("--nvtxMode=none", "none", ["[W] --nvtxMode flag has been deprecated by --profilingVerbosity flag."]),
        (
            "--profilingVerbosity=verbose",
            "detailed",
            ["[W] --profilingVerbosity=verbose has been deprecated by --profilingVerbosity=detailed."],
        ),
        (
            "--profilingVerbosity=default",
            "layer_names_only",
            ["[W] --profilingVerbosity=default has been deprecated by --profilingVerbosity=layer_names_only."],
        ),
    ],
)
def test_old_words_for_the_verbosity_are_taken_with_trtexecs_warning(word, verbosity, said):
    assert build(word, like=8).profiling_verbosity == verbosity
    assert texts(word, like=8) == said


def test_the_timing_cache_is_a_file_or_none():
    assert build("--timingCacheFile=t.cache").timing_cache == "t.cache"
    found = build("--timingCacheFile=t.cache", "--noBuilderCache")
    assert (found.timing_cache, found.builder_flags) == (None, ("DISABLE_TIMING_CACHE",))


@pytest.mark.parametrize(
    ("words", "refit", "strip"),
    [
        (["--refit"], True, False),
        (["--stripWeights"], False, True),
        (["--weightless"], False, True),
        (["--stripAllWeights"], True, True),
    ],
)
def test_weights_are_refittable_stripped_or_both(words, refit, strip):
    assert (build(*words).refit, build(*words).strip_plan) == (refit, strip)


def test_compatibility_is_taken_over():
    found = build("--vc", "--excludeLeanRuntime", "--hardwareCompatibilityLevel=sameComputeCapability")
    assert found.version_compatible
    assert found.exclude_lean_runtime
    assert found.hardware_compatible == "same_compute_capability"


def test_a_lean_runtime_is_left_out_of_version_compatible_plans_only():
    assert not build("--excludeLeanRuntime").exclude_lean_runtime
    assert texts("--excludeLeanRuntime") == ["[W] --excludeLeanRuntime has no effect without --versionCompatible."]


@pytest.mark.parametrize("word", ["--versionCompatible", "--hardwareCompatibilityLevel=ampere+"])
def test_the_instance_norm_plugin_is_bound_to_this_version_and_gpu(word):
    assert refusal("--pi", word) == (
        "Plugin InstanceNorm cannot be used with version compatible or hardware compatible engines!\n"
        "  to fix: leave out --pluginInstanceNorm"
    )


def test_an_engine_for_windows_is_not_run_here():
    found = build("--runtimePlatform=WindowsAMD64")
    assert (found.runtime_platform, found.skip_inference) == ("WINDOWS_AMD64", True)
    found = build("--runtimePlatform=SameAsBuild")
    assert (found.runtime_platform, found.skip_inference) == (None, False)


def test_settings_of_the_builder_go_by_their_names_in_the_api():
    words = (
        "--avgTiming=4",
        "--minTiming=2",
        "--maxTactics=9",
        "--tilingOptimizationLevel=3",
        "--l2LimitForTiling=5",
    )
    assert build(*words, "--setBuildRoute=-a=on -b=off").builder_settings == {
        "avg_timing_iterations": 4,
        "max_num_tactics": 9,
        "tiling_optimization_level": "FULL",
        "l2_limit_for_tiling": 5,
        "build_route": "-a=on -b=off",
    }


def test_the_least_number_of_timings_is_a_setting_of_tensorrt_8():
    assert build("--minTiming=2", like=8).builder_settings == {"min_timing_iterations": 2}
    assert build("--minTiming=2", like=8, installed=11).builder_settings == {}
    assert texts("--minTiming=2", like=8, installed=11) == [
        "[I] --minTiming changes nothing: TensorRT has no such setting since version 10"
    ]


def test_switches_of_the_builder_go_by_their_names_in_the_api():
    found = build("--directIO", "--errorOnTimingCacheMiss", "--distributiveIndependence", "--allowWeightStreaming")
    assert set(found.builder_flags) == {
        "DIRECT_IO",
        "ERROR_ON_TIMING_CACHE_MISS",
        "DISTRIBUTIVE_INDEPENDENCE",
        "WEIGHT_STREAMING",
    }
    assert build("--pi", "--enablePluginOverride").parser_flags == {
        "NATIVE_INSTANCENORM": False,
        "ENABLE_PLUGIN_OVERRIDE": True,
    }
    assert build("--tacticSources=-CUDNN,+JIT_CONVOLUTIONS", like=10).tactic_sources == {
        "CUDNN": False,
        "JIT_CONVOLUTIONS": True,
    }
    assert build("--preview=+runtimeActivationResize").preview_features == {"RUNTIME_ACTIVATION_RESIZE_10_10": True}


def test_libraries_that_tensorrt_11_does_not_use_are_off_already():
    words = "--tacticSources=-CUDNN,-CUBLAS_LT,-JIT_CONVOLUTIONS"
    assert build(words, installed=11).tactic_sources == {"JIT_CONVOLUTIONS": False}
    assert texts(words, like=8, installed=11) == [
        f"[I] --tacticSources=-{name} changes nothing: TensorRT 11 does not use it" for name in ("CUBLAS_LT", "CUDNN")
    ]
    assert refusal("--tacticSources=+CUBLAS") == (
        "Unknown tactic source: CUBLAS\n  where: --tacticSources\n  got: +CUBLAS\n  to fix: leave out +CUBLAS"
    )


def test_preview_features_that_became_the_rule_are_on_already():
    words = "--preview=+fasterDynamicShapes0805,-disableExternalTacticSourcesForCore0805,+profileSharing0806"
    assert build(words, like=8, installed=10).preview_features == {
        "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": False
    }
    assert texts(words, like=8, installed=10) == [
        f"[I] --preview=+{name} changes nothing: this is always so since TensorRT 10"
        for name in ("fasterDynamicShapes0805", "profileSharing0806")
    ]


def test_profile_sharing_is_always_on_since_10():
    assert build("--preview=+profileSharing0806", like=8).preview_features == {"PROFILE_SHARING_0806": True}
    assert build("--preview=+profileSharing0806", like=10).preview_features == {}
    assert texts("--preview=-profileSharing0806", like=11) == [
        "[W] profileSharing0806 is on by default in TensorRT 10.0. This flag is deprecated and has no effect."
    ]


def test_an_engine_is_loaded_or_saved():
    with pytest.raises(ConfigError) as caught:
        parse(["--loadEngine=a", "--saveEngine=b"])
    assert str(caught.value) == (
        "Incompatible load and save engine options selected\n  got: --loadEngine and --saveEngine\n  expected: one"
    )
    assert texts("--loadEngine=m.plan") == [
        "[I] --onnx is not read: --loadEngine names an engine that is built already"
    ]


def test_the_version_of_a_plan_is_read_from_a_plan():
    assert refusal("--getPlanVersionOnly") == (
        "--getPlanVersionOnly reads a plan, and none is named\n  expected: --loadEngine=<file>"
    )
    assert build("--loadEngine=m.plan", "--getPlanVersionOnly").plan_version_only


@pytest.mark.parametrize("runtime", ["lean", "dispatch"])
def test_only_the_full_runtime_is_used(runtime):
    assert refusal("--loadEngine=m.plan", f"--useRuntime={runtime}") == (
        f"--useRuntime={runtime} is refused: engines are executed by the full runtime here\n"
        "  to fix: leave it out: the full runtime loads version-compatible plans too"
    )
    assert build("--useRuntime=full")

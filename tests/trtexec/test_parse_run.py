"""What the flags about running, reporting and the machine become together."""

import pytest

from trtsparse.errors import ConfigError
from trtsparse.trtexec.options import AccuracyOptions, ReferencePair, WeightBudget
from trtsparse.trtexec.parse import parse


def parsed(*words, like=11, model="--onnx=m.onnx"):
    return parse([model, f"--like={like}", *words])


def run(*words):
    return parsed(*words).inference


def refusal(*words):
    with pytest.raises(ConfigError) as caught:
        parsed(*words)
    return str(caught.value)


def test_streams_is_the_old_name_of_inf_streams():
    assert run("--streams=3").streams == 3
    assert run("--streams=3", "--infStreams=2").streams == 2


def test_times_and_switches_are_taken_over():
    found = run("--sleepTime=1", "--idleTime=2.5", "--threads", "--exposeDMA", "--timeDeserialize", "--useProfile=0")
    assert (found.sleep_ms, found.idle_ms, found.threads) == (1.0, 2.5, True)
    assert (found.overlap, found.time_deserialize, found.profile_given) == (False, True, True)


def test_files_and_folders_of_the_runtime_are_taken_over():
    found = run("--tempdir=tmp", "--tempfileControls=temporary:deny", "--leanDLLPath=lean.so")
    assert (found.tempdir, found.lean_runtime) == ("tmp", "lean.so")
    assert found.tempfile_controls == {"ALLOW_TEMPORARY_FILES": False}


def test_inputs_and_references_make_one_pair():
    found = run("--loadInputs=x:x.bin", "--loadRefOutputs=y:y.bin", "--accuracyThreshold=0.1")
    assert found.pairs == (ReferencePair({"x": "x.bin"}, {"y": "y.bin"}),)
    assert found.accuracy == AccuracyOptions(threshold=0.1)
    assert run().pairs == (ReferencePair(),)


def test_each_reference_pair_takes_the_two_flags_behind_it():
    found = run(
        "--refPair=1", "--loadInputs=x:1.bin", "--loadRefOutputs=y:1.ref",
        "--refPair=0", "--loadRefOutputs=y:0.ref", "--loadInputs=x:0.bin",
        "--accuracyThreshold=1", "--accuracyAlgorithm=cos",
    )  # fmt: skip
    assert found.pairs == (
        ReferencePair({"x": "0.bin"}, {"y": "0.ref"}),
        ReferencePair({"x": "1.bin"}, {"y": "1.ref"}),
    )
    assert found.accuracy.algorithm == "cos"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--loadRefOutputs=y:y.bin"], "--loadRefOutputs requires --loadInputs to be specified."),
        (
            ["--loadInputs=x:a", "--loadInputs=x:b"],
            "--loadInputs comes twice\n  expected: --refPair=0 before the first, --refPair=1 ...",
        ),
        (
            ["--refPair=0", "--loadInputs=x:a", "--loadRefOutputs=y:a"],
            "When using --refPair, you need at least two pairs of I/O.",
        ),
        (
            ["--refPair=0", "--loadInputs=x:a", "--refPair=1", "--loadInputs=x:a", "--loadRefOutputs=y:a"],
            (
                "Missing --loadRefOutputs for reference pair at index 0. Each --refPair must have both --loadInputs "
                "and --loadRefOutputs."
            ),
        ),
        (
            ["--refPair=0", "--loadInputs=x:a", "--refPair=0"],
            "Reference pair index cannot be the same.\n  where: --refPair\n  got: 0",
        ),
        (
            ["--loadInputs=x:a", "--refPair=0"],
            (
                "--loadInputs belongs to no reference pair\n"
                "  expected: --refPair=0 --loadInputs=<spec> --loadRefOutputs=<spec> --refPair=1 ..."
            ),
        ),
        (
            ["--loadInputs=x:a", "--loadRefOutputs=y:a"],
            "--accuracyThreshold (with a positive value) is required when --loadRefOutputs or --refPair is set.",
        ),
        (
            ["--accuracyAlgorithm=l1", "--atol=1"],
            "--atol is only valid for L0 accuracy algorithm.\n  got: --accuracyAlgorithm=l1",
        ),
        (
            ["--loadInputs=x:a", "--loadRefOutputs=y:a", "--accuracyThreshold=1", "--skipInference"],
            (
                "--loadRefOutputs/--refPair cannot be used with --skipInference: accuracy validation needs the "
                "inference phase to run."
            ),
        ),
        (
            ["--weightStreamingBudget=1M"],
            "The weight streaming budget can only be set with --allowWeightStreaming specified.",
        ),
    ],
)
def test_flags_that_need_or_exclude_each_other(words, expected):
    assert refusal(*words) == expected


def test_comparing_a_fresh_build_warns_that_builds_differ():
    words = ("--loadInputs=x:a", "--loadRefOutputs=y:a", "--accuracyThreshold=1")
    said = [note.text for note in parsed(*words).notes]
    assert said == [
        (
            "Accuracy validation (--loadRefOutputs/--refPair) with --onnx may produce unreliable results because "
            "engine builds are nondeterministic. Use --loadEngine for deterministic comparison."
        )
    ]
    assert parsed(*words, model="--loadEngine=m.plan").notes == ()


def test_weight_streaming_is_off_until_a_budget_is_given():
    assert run("--allowWeightStreaming", "--weightStreamingBudget=50%").weight_budget == WeightBudget(percent=50.0)
    options = parsed("--allowWeightStreaming")
    assert options.inference.weight_budget is None
    assert [(note.severity, note.text) for note in options.notes] == [
        (
            "W",
            (
                "The engine can stream its weights but it will not at runtime because --weightStreamingBudget unset "
                "or set to -2."
            ),
        )
    ]


def test_scratch_memory_for_the_shapes_at_hand_is_done_for_the_profile_and_said():
    assert run("--allocationStrategy=profile").allocation == "profile"
    options = parsed("--allocationStrategy=runtime")
    assert options.inference.allocation == "profile"
    assert options.notes[0].text.startswith("--allocationStrategy=runtime is done as --allocationStrategy=profile")


def test_plugins_are_loaded_once_and_those_to_serialize_too():
    system = parsed(
        "--dynamicPlugins=b.so",
        "--staticPlugins=a.so",
        "--setPluginsToSerialize=b.so",
        "--setPluginsToSerialize=c.so",
    ).system
    assert system.plugins == ("a.so", "b.so", "c.so")
    assert system.plugins_to_serialize == ("b.so", "c.so")


def test_reports_are_taken_over():
    report = parsed("--dumpLayerTime", "--exportLayerInfo=l.json", "--dumpRefit", "--dumpOutput").reporting
    assert report.wants_profile
    assert report.wants_layer_info
    assert (report.dump_refit, report.dump_output, report.export_layer_info) == (True, True, "l.json")

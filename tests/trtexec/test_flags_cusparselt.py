"""What becomes of every flag with --engine=cusparselt."""

import re

import pytest

from tests.trtexec.on_memory import HERE, Machine, texts
from tests.trtexec.running import QUICK, failed, log
from tests.trtexec.test_flags import NOOPS, REFUSED, _command
from trtsparse.cli.main import main
from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import BY_NAME, FLAGS
from trtsparse.trtexec.flags_cusparselt import CUSPARSELT, for_cusparselt
from trtsparse.trtexec.options import Note
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.policy import LIKES
from trtsparse.trtexec.run import trtexec

_ALSO_REFUSED = """
    --best --noTF32 --layerPrecisions --inputIOFormats --outputIOFormats --refit --stripWeights --weightless
    --stripAllWeights --dumpRefit --useRuntime --leanDLLPath --runtimePlatform --restricted --setBuildRoute --tempdir
    --tempfileControls --allowWeightStreaming --weightStreamingBudget --noBuilderCache --errorOnTimingCacheMiss
    --directIO --distributiveIndependence --pluginInstanceNorm --enablePluginOverride --staticPlugins --plugins
    --dynamicPlugins --setPluginsToSerialize --noCudaGraph
"""
_ALSO_NOOPS = """
    --precisionConstraints --versionCompatible --hardwareCompatibilityLevel --excludeLeanRuntime --profilingVerbosity
    --nvtxMode --memPoolSize --workspace --heuristic --minTiming --avgTiming --maxTactics
    --tacticSources --preview --noCompilationCache --monitorMemory --tilingOptimizationLevel --l2LimitForTiling
    --maxAuxStreams --allocationStrategy --useCudaGraph
"""
ALSO_REFUSED, ALSO_NOOPS = set(_ALSO_REFUSED.split()), set(_ALSO_NOOPS.split())


@pytest.fixture
def gpu(monkeypatch):
    return Machine(monkeypatch)


def rows(condition=lambda _flag: True):
    return [
        pytest.param(like, flag, id=f"{like}{flag.name}")
        for like in LIKES
        for flag in map(for_cusparselt, FLAGS)
        if condition(flag.name)
    ]


def command(flag, like):
    return [HERE, *_command(flag, like)]


def test_the_table_is_about_flags_that_exist():
    assert set(CUSPARSELT) <= set(BY_NAME)


@pytest.mark.parametrize(("like", "flag"), rows())
def test_each_flag_has_one_fate(like, flag):
    if flag.name in REFUSED | ALSO_REFUSED:
        fate = "refused"
    else:
        fate = "no-op" if flag.name in NOOPS[like] | ALSO_NOOPS else "done"
    assert flag.treatment(like).status == fate


@pytest.mark.parametrize(
    ("like", "flag"), rows(lambda name: name in CUSPARSELT and CUSPARSELT[name].status == "refused")
)
def test_a_refused_flag_says_why_and_what_to_do(like, flag):
    with pytest.raises(ConfigError) as caught:
        parse(command(flag, like))
    assert f"{flag.name} is refused: {CUSPARSELT[flag.name].text}" in caught.value.what.splitlines()
    assert CUSPARSELT[flag.name].fix in caught.value.fix


@pytest.mark.parametrize(
    ("like", "flag"), [row for row in rows() if row.values[1].treatment(row.values[0]).status == "refused"]
)
def test_no_fix_names_a_flag_that_is_refused_too_or_makes_a_plan(like, flag):
    fix = flag.treatment(like).fix
    named = re.findall(r"(?<![\w-])--[A-Za-z]\w*", fix)
    assert set(named) <= set(BY_NAME)
    assert [name for name in named if for_cusparselt(BY_NAME[name]).treatment(like).status == "refused"] == []
    assert "trtsparse build" not in fix


@pytest.mark.parametrize(
    ("flag", "fix"),
    [
        ("--layerOutputTypes=a:fp16", "leave it out"),
        ("--tuneBuildRoutes=x", "leave it out"),
        ("--safetyPlugins=a.so", "leave it out"),
        ("--timeRefit", "save it again, from the new model"),
        ("--calib=c.bin", "give a model with Q/DQ nodes, such as trtsparse.precision.int8.to_int8 makes"),
        ("--cpuOnly", "--engine=onnxruntime executes on the CPU"),
    ],
)
def test_a_fix_is_one_for_this_engine(flag, fix):
    with pytest.raises(ConfigError) as caught:
        parse([HERE, "--onnx=m.onnx", flag])
    assert caught.value.fix == fix


@pytest.mark.parametrize(("like", "flag"), rows(lambda name: name in ALSO_NOOPS))
def test_a_flag_without_effect_says_why(like, flag):
    notes = parse(command(flag, like)).notes
    why = f"changes nothing: {CUSPARSELT[flag.name].text}"
    if flag.known_to(like):
        assert Note("W", f"{flag.name} {why}") in notes
    else:
        assert Note("I", f"trtexec {like} has no {flag.name}, which exists {flag.span}: it {why}") in notes
    plain = parse([HERE, "--onnx=m.onnx", f"--like={like}"])
    found = parse(command(flag, like))
    assert (found.build, found.inference, found.policy.graphs) == (plain.build, plain.inference, True)


@pytest.mark.parametrize(
    ("like", "flag"), rows(lambda name: name not in REFUSED | ALSO_REFUSED | ALSO_NOOPS | {"--help", "--engine"})
)
def test_all_other_flags_are_accepted(like, flag):
    assert parse(command(flag, like)).engine == "cusparselt"


def test_precisions_that_trtexec_does_not_have_any_more_are_done_and_it_is_said():
    (note,) = parse(["--onnx=m.onnx", HERE, "--fp16", "--like=11"]).notes
    assert note == Note("I", "trtexec 11 has no --fp16, which exists from 5.1 to 10.16: done all the same")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            "--fp16 --bf16",
            "--fp16 --bf16 is refused: this engine computes a model in one type\n  to fix: one of them",
        ),
        (
            "--best",
            (
                "--best is refused: this engine computes a model in one type, and in INT8 where it has Q/DQ nodes\n"
                "  to fix: --fp16 or --bf16"
            ),
        ),
        (
            "--noTF32",
            (
                "--noTF32 is refused: this engine does not set TF32\n"
                "  to fix: --stronglyTyped: products are in FP32 then, convolutions as PyTorch is set"
            ),
        ),
        (
            "--refit",
            (
                "--refit is refused: the weights of this engine cannot be replaced\n"
                "  to fix: save it again, from the new model"
            ),
        ),
        (
            "--staticPlugins=a.so",
            (
                "--staticPlugins is refused: TensorRT's plugins are not executed without TensorRT\n"
                "  to fix: leave --engine=cusparselt out"
            ),
        ),
        (
            "--noCudaGraph",
            ("--noCudaGraph is refused: this engine always launches CUDA graphs of its own\n  to fix: leave it out"),
        ),
        ("--useDLACore=0", "--useDLACore is refused: trtsparse builds for GPUs, not for DLA\n  to fix: leave it out"),
        (
            "--stronglyTyped --best",
            (
                "--best is refused: this engine computes a model in one type, and in INT8 where it has Q/DQ nodes\n"
                "  to fix: --fp16 or --bf16"
            ),
        ),
        (
            "--useProfile=1",
            "there is no such optimization profile\n  where: --useProfile\n  got: 1\n  expected: 0 to 0",
        ),
    ],
)
def test_what_the_engine_cannot_give_is_refused(gpu, model, flags, text):
    error = failed(gpu.run(f"--onnx={model} {HERE} {flags} {QUICK}"), ConfigError)
    assert str(error) == text
    assert not gpu.engines.made


def test_flags_about_tensorrts_builder_change_nothing_and_it_is_said(gpu, model):
    flags = "--workspace=4096 --minTiming=2 --tacticSources=-CUDNN --useCudaGraph"
    result = gpu.run(f"--onnx={model} {HERE} --like=8 {flags} {QUICK}")
    assert result.passed, log(result)
    builder = "it is about TensorRT's builder, and kernels are chosen by their times here"
    for text in (
        "[W] --workspace changes nothing: kernels take the workspace that they need",
        f"[W] --minTiming changes nothing: {builder}",
        f"[W] --tacticSources changes nothing: {builder}",
        "[W] --useCudaGraph changes nothing: this engine always launches CUDA graphs of its own",
    ):
        assert text in texts(result), text


def test_a_wrong_command_line_is_exit_code_1_as_for_other_engines(capsys):
    assert main(["trtexec", "--onnx=m.onnx", HERE, "--refit"]) == 1
    assert "[E] --refit is refused: the weights of this engine cannot be replaced" in capsys.readouterr().err


def test_help_beside_the_engine_tells_what_becomes_of_flags_with_it():
    result = trtexec(["--help", HERE])
    assert result.passed
    said = log(result).split("=== Refused ===")
    assert "Workspace in MiB. (not in trtexec 11, no-op)" in log(trtexec(["--help", HERE, "--like=11"]))
    assert "--refit" not in said[0].replace("--refitFromOnnx", "")
    assert "--noCudaGraph" in said[1]


def test_help_beside_the_engine_tells_its_defaults():
    help_text = log(trtexec(["--help", HERE]))
    assert (
        "With --engine=cusparselt FP32 values are computed in BF16, and sparse kernels are enabled; trtexec's own\n"
        "defaults are TF32, and --sparsity=disable.\n" in help_text
    )
    unwrapped = " ".join(help_text.split())
    assert "FP32 values are computed in BF16: this engine's default." in unwrapped
    assert "Sparse kernels: enable is this engine's default; force prunes by magnitude first." in unwrapped
    assert "INT8 where the model has Q/DQ nodes; a model without any is rejected." in unwrapped
    assert "random numbers unless" not in unwrapped
    assert "=== Tuning Options ===" not in help_text  # each of them is refused
    options = parse([HERE, "--onnx=m.onnx"]).build
    assert (options.precision, options.sparsity) == ("tf32", "enable")  # "tf32": nothing was asked for
    assert "With --engine=cusparselt" not in log(trtexec("--help"))

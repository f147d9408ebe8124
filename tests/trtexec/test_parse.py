"""A whole command line: what it becomes, what is said, and what is refused in which words."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import BY_NAME
from trtsparse.trtexec.options import ModelOptions, Note, TrtexecOptions
from trtsparse.trtexec.parse import parse

TEN = (10, "TensorRT 10.13.3.9 is installed")


def refusal(*words):
    with pytest.raises(ConfigError) as caught:
        parse(words, installed=TEN)
    return str(caught.value)


USUAL = """
--onnx=m.onnx --saveEngine=m.plan --sparsity=enable --fp16 --minShapes=x:1x3x224x224
--optShapes=x:8x3x224x224 --maxShapes=x:32x3x224x224 --iterations=100 --duration=10 --warmUp=500 --avgRuns=50
--percentile=50,99 --infStreams=2 --useCudaGraph --exportTimes=t.json --dumpProfile --device=1 --verbose
"""


def test_a_usual_command_line_becomes_options():
    options = parse(USUAL.split(), installed=TEN)
    assert (options.model.onnx, options.build.save_engine) == ("m.onnx", "m.plan")
    assert (options.build.sparsity, options.build.precision) == ("enable", "fp16")
    assert options.build.profiles == ({"x": ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))},)
    run, report = options.inference, options.reporting
    assert (run.iterations, run.duration_s, run.warm_up_ms, run.streams) == (100, 10.0, 500.0, 2)
    assert run.shapes == {"x": (8, 3, 224, 224)}
    assert (report.average_runs, report.percentiles, report.export_times) == (50, (50.0, 99.0), "t.json")
    assert (report.verbose, report.wants_profile, report.wants_layer_info) == (True, True, False)
    assert options.system.device == 1
    assert (options.policy.graphs, options.policy.transfers) == (True, True)
    assert options.engine == "auto"


def test_defaults_are_those_of_trtexec():
    options = parse(["--onnx=m.onnx"], installed=TEN)
    tf32 = "TF32 is enabled by default. Add --noTF32 flag to further improve accuracy with some performance cost."
    assert options == TrtexecOptions(
        argv=("--onnx=m.onnx",), policy=options.policy, model=ModelOptions("m.onnx"), notes=(Note("I", tf32),)
    )
    run = options.inference
    assert (run.iterations, run.duration_s, run.warm_up_ms, run.streams) == (10, 3.0, 200.0, 1)
    assert options.reporting.percentiles == (90.0, 95.0, 99.0)


def test_the_same_command_line_works_for_every_trtexec():
    words = ["--onnx=m.onnx", "--fp16", "--workspace=4096", "--buildOnly", "--stripWeights", "--noCudaGraph"]
    found = [parse([*words, f"--like={like}"]) for like in (8, 10, 11)]
    assert len({repr(options.build) for options in found}) == 1
    assert found[0].build.memory_pools == {"workspace": 4096 << 20}
    assert found[0].build.skip_inference
    assert [note.text for note in found[2].notes] == [
        f"trtexec 11 has no --fp16, which exists from 5.1 to 10.16: {BY_NAME['--fp16'].instead}",
        "trtexec 11 has no --workspace, which exists from 5.1 to 9.3: done as --memPoolSize=workspace:N",
        "trtexec 11 has no --buildOnly, which exists from 6.0 to 9.3: done as --skipInference",
    ]


def test_without_like_the_installed_trtexec_is_followed_and_like_overrules_it():
    assert parse(["--onnx=m.onnx"], installed=TEN).policy.reason == "TensorRT 10.13.3.9 is installed"
    assert parse(["--onnx=m.onnx", "--like=8"], installed=TEN).like == 8
    assert parse(["--like=8", "--help"], installed=TEN).like == 8


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--bogus", "--help"]])
def test_help_is_seen_before_anything_else_as_in_trtexec(words):
    assert parse(words, installed=TEN).help


def test_values_end_at_the_word_and_may_hold_equal_signs():
    assert parse(["--onnx=a=b.onnx"], installed=TEN).model.onnx == "a=b.onnx"


def test_a_home_folder_is_resolved(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = parse(["--onnx=~/m.onnx", "--exportTimes=~/t.json"], installed=TEN)
    assert (options.model.onnx, options.reporting.export_times) == ("/home/me/m.onnx", "/home/me/t.json")


def test_a_flag_may_be_repeated_with_the_same_value_only():
    assert parse(["--onnx=m.onnx", "--fp16", "--fp16", "--vc", "--versionCompatible"], installed=TEN)
    assert refusal("--onnx=m.onnx", "--iterations=1", "--iterations=2") == (
        "--iterations comes twice\n  got: '1' and '2'\n  expected: one value"
    )


def test_a_typo_is_answered_with_the_flag_that_was_meant():
    assert refusal("--onnx=m.onnx", "--sparcity=enable") == (
        "Unknown option: --sparcity enable\n  to fix: did you mean --sparsity?"
    )
    assert refusal("--FP16") == "Unknown option: --FP16\n  to fix: did you mean --fp16?"
    assert refusal("-onnx=m.onnx", "fp16").splitlines() == [
        "Unknown option: -onnx m.onnx",
        "Unknown option: fp16",
        "  to fix: did you mean --onnx? did you mean --fp16?",
    ]


def test_an_unknown_flag_like_no_other_points_to_the_help():
    assert refusal("--zzz=1") == ("Unknown option: --zzz 1\n  to fix: trtsparse trtexec --help lists all flags")


@pytest.mark.parametrize("name", [name for name in BY_NAME if len(name) >= 8])
def test_every_flag_but_short_ones_is_found_from_a_typo(name):
    middle = len(name) // 2
    typo = name[:middle] + "Q" + name[middle:]
    assert "did you mean" in refusal(typo)


def test_a_value_behind_a_space_is_joined_in_the_message():
    assert refusal("--onnx", "m.onnx") == (
        "--onnx needs a value\n  got: --onnx m.onnx\n  expected: --onnx=<file>\n  to fix: join them: --onnx=m.onnx"
    )
    assert refusal("--onnx=m.onnx", "--shapes=", "x:1x3").splitlines()[-1] == "  to fix: join them: --shapes=x:1x3"


@pytest.mark.parametrize(("word", "got"), [("--onnx", "--onnx"), ("--onnx=", "--onnx=")])
def test_a_flag_without_its_value_is_refused(word, got):
    assert refusal(word) == f"--onnx needs a value\n  got: {got}\n  expected: --onnx=<file>"


def test_refused_flags_are_all_named_at_once():
    assert refusal("--onnx=m.onnx", "--useDLACore=0", "--fp16", "--useManagedMemory").splitlines() == [
        "--useDLACore is refused: trtsparse builds for GPUs, not for DLA",
        "--useManagedMemory is refused: buffers are device memory and page-locked host memory here",
        "  to fix: leave it out",
    ]


def test_a_model_or_an_engine_is_needed():
    assert refusal("--fp16") == (
        "Model missing or format not recognized\n  expected: --onnx=<file> or --loadEngine=<file>"
    )
    assert parse(["--loadEngine=m.plan"], installed=TEN).build.load_engine == "m.plan"


def test_the_engine_is_chosen_by_name():
    assert parse(["--onnx=m.onnx", "--engine=onnxruntime"], installed=TEN).engine == "onnxruntime"
    assert refusal("--engine=m.plan") == (
        "--engine has no such value\n  where: --engine\n  got: 'm.plan'\n"
        "  expected: auto, tensorrt, onnxruntime, cusparselt\n"
        "  to fix: a plan is named by --loadEngine=<file> or --saveEngine=<file>"
    )


_WORDS = st.sampled_from(sorted(BY_NAME)).flatmap(
    lambda name: st.one_of(
        st.just(name), st.builds(f"{name}={{}}".format, st.text("x:,'+-*.019GMKfpchw%_=~/", max_size=24))
    )
)


@given(st.lists(_WORDS, max_size=6))
def test_any_command_line_becomes_options_or_a_config_error(words):
    try:
        found = parse(words, installed=TEN).argv
    except ConfigError:  # any other error fails the test
        return
    assert found == tuple(words)


def _loaded_by(code):
    code += "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_parsing_help_and_errors_load_nothing_heavy():
    loaded = _loaded_by(
        "from trtsparse.trtexec.parse import parse\nfrom trtsparse.trtexec.help import help_text\n"
        "from trtsparse.errors import ConfigError\n"
        "help_text(parse(['--help']).policy)\nparse(['--onnx=m.onnx', '--fp16'])\n"
        "try:\n    parse(['--onx=m.onnx'])\nexcept ConfigError:\n    pass\nelse:\n    raise SystemExit('no error')"
    )
    heavy = {"numpy", "onnx", "rich", "tensorrt", "tensorrt_rtx", "onnxruntime", "torch", "polygraphy", "cuda"}
    assert loaded & heavy == set()
    assert "trtsparse" in loaded

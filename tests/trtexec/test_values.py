"""The values of flags: what each kind reads, and the words in which it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import BY_NAME
from trtsparse.trtexec.options import IoFormat, WeightBudget
from trtsparse.trtexec.values import find, read


def value(word):
    name, equals, text = word.partition("=")
    return read(BY_NAME[name], text if equals else None)


def refusal(word):
    with pytest.raises(ConfigError) as caught:
        value(word)
    return str(caught.value)


def message(what, where, got, expected, fix=None):
    lines = [what, f"  where: {where}", f"  got: {got!r}", f"  expected: {expected}"]
    return "\n".join([*lines, *([f"  to fix: {fix}"] if fix else [])])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--fp16", True),
        ("--fp16=1", True),
        ("--fp16=True", True),
        ("--iterations=100", 100),
        ("--builderOptimizationLevel=-1", -1),
        ("--warmUp=0.5", 0.5),
        ("--duration=1e2", 100.0),
        ("--sparsity=ENABLE", "enable"),
        ("--hardwareCompatibilityLevel=Ampere+", "ampere+"),
        ("--shapes=x:1x3x224x224", {"x": (1, 3, 224, 224)}),
        ("--shapes=x:1x3, y:2", {"x": (1, 3), "y": (2,)}),
        ("--shapes=x:0:1x3", {"x:0": (1, 3)}),
        ("--shapes='x:0':1x3,'a,b':4", {"x:0": (1, 3), "a,b": (4,)}),
        ("--shapes=x:scalar,y:", {"x": (), "y": ()}),
        ("--shapes=in*:2x2", {"in*": (2, 2)}),
        ("--loadInputs=x:a.bin,y:0:b.bin", {"x": "a.bin", "y:0": "b.bin"}),
        (r"--loadInputs='x':c:\in.bin", {"x": r"c:\in.bin"}),
        ("--memPoolSize=workspace:1024", {"workspace": 1 << 30}),
        ("--memPoolSize=workspace:0.25", {"workspace": 1 << 18}),
        (
            "--memPoolSize=workspace:2G,tacticSharedMem:48k,dlaSRAM:1M,dlaLocalDRAM:1024B,dlaGlobalDRAM:.5G",
            {
                "workspace": 2 << 30,
                "tactic_shared_memory": 48 << 10,
                "dla_managed_sram": 1 << 20,
                "dla_local_dram": 1024,
                "dla_global_dram": 1 << 29,
            },
        ),
        ("--tacticSources=-cudnn,+CUBLASLT", {"CUDNN": False, "CUBLAS_LT": True}),
        ("--preview=+profileSharing0806", {"profileSharing0806": True}),
        ("--inputIOFormats=fp16:chw,int32:chw", (IoFormat("fp16"), IoFormat("int32"))),
        ("--outputIOFormats=chw", (IoFormat(None),)),
        ("--outputIOFormats=fp32:hwc8+chw", (IoFormat("fp32"),)),
        ("--layerPrecisions=a:fp32,b:0:fp16", {"a": "fp32", "b:0": "fp16"}),
        (
            "--tempfileControls=in_memory:allow,temporary:deny",
            {"ALLOW_IN_MEMORY_FILES": True, "ALLOW_TEMPORARY_FILES": False},
        ),
        ("--percentile=0,50,99.9", (0.0, 50.0, 99.9)),
        ("--weightStreamingBudget=-2", None),
        ("--weightStreamingBudget=-1", WeightBudget()),
        ("--weightStreamingBudget=50%", WeightBudget(percent=50.0)),
        ("--weightStreamingBudget=20M", WeightBudget(nbytes=20 << 20)),
        ("--weightStreamingBudget=0", WeightBudget(nbytes=0)),
    ],
)
def test_a_value_is_read(word, expected):
    assert value(word) == expected


_SHAPE = "dims as whole numbers with x between: 1x3x224x224, or scalar"
_PAIR = "name:1x3x224x224, or 'name':1x3 for a name with special characters"
_SIZE = "a number with B, K, M or G behind it, such as 512M"
_BUDGET = "-2 (off), -1 (automatic), a percentage such as 50%, or a size such as 20M"
_POOLS = "workspace, dlaSRAM, dlaLocalDRAM, dlaGlobalDRAM, tacticSharedMem"
_SOURCES = "CUBLAS, CUBLAS_LT, CUDNN, EDGE_MASK_CONVOLUTIONS, JIT_CONVOLUTIONS"
_DTYPES = "fp32, fp16, bf16, fp8, int64, int32, int8, int4, uint8, bool"


@pytest.mark.parametrize(
    ("word", "what", "got", "expected"),
    [
        ("--iterations=10ms", "{} has a value that cannot be read", "10ms", "a whole number of at least 1"),
        ("--iterations=0", "{} is out of range", "0", "a number of at least 1"),
        ("--builderOptimizationLevel=6", "{} is out of range", "6", "a number from -1 to 5"),
        ("--warmUp=soon", "{} has a value that cannot be read", "soon", "a number of at least 0"),
        ("--warmUp=nan", "{} has a value that cannot be read", "nan", "a number of at least 0"),
        ("--sparsity=on", "{} has no such value", "on", "disable, enable, force"),
        ("--shapes=1x3", "{} has a value that cannot be read", "1x3", _PAIR),
        ("--shapes=x:1x-1", "{} has a value that cannot be read", "x:1x-1", _SHAPE),
        ("--shapes=x:1X3", "{} has a value that cannot be read", "x:1X3", _SHAPE),
        ("--shapes=x:1,x:2", "{} names the same twice", "x", "each name once"),
        ("--shapes=x:1,,y:2", "{} has an empty entry", "x:1,,y:2", "entries separated by single commas"),
        ("--shapes='x:1", "{} has a value that cannot be read", "'x:1", _PAIR),
        ("--loadInputs=x:", "{} has a value that cannot be read", "x:", "name:file"),
        ("--memPoolSize=work:1", "Unknown memory pool: work", "work", _POOLS),
        ("--memPoolSize=workspace:1T", "{} has no size", "1T", _SIZE),
        ("--memPoolSize=workspace:-1", "{} has no size", "-1", _SIZE),
        (
            "--tacticSources=CUDNN",
            "{} has a value that cannot be read",
            "CUDNN",
            "+name to switch on, -name to switch off",
        ),
        ("--tacticSources=+CUFFT", "{} has no such name", "CUFFT", _SOURCES),
        ("--tacticSources=+CUDNN,-CUDNN", "Cannot enable and disable CUDNN", "+CUDNN,-CUDNN", "either + or -"),
        ("--inputIOFormats=fp64:chw", "Invalid DataType fp64", "fp64:chw", f"type:layout with one of {_DTYPES}"),
        ("--layerPrecisions=a:half", "Invalid DataType half", "a:half", _DTYPES),
        ("--tempfileControls=disk:deny", "Unknown --tempfileControls key disk", "disk", "in_memory, temporary"),
        ("--tempfileControls=temporary:no", "{} has no such value", "no", "allow, deny"),
        ("--percentile=101", "Percentile 101 is not in [0,100]", "101", "0 to 100"),
        ("--percentile=90,x", "{} has a value that cannot be read", "x", "numbers from 0 to 100"),
        ("--weightStreamingBudget=-3", "The weight streaming budget must be -2, -1, or at least 0.", "-3", _BUDGET),
        ("--weightStreamingBudget=101%", "The weight streaming percent must be between 0 and 100.", "101%", _BUDGET),
    ],
)
def test_a_wrong_value_names_the_flag_what_came_and_what_would_be_right(word, what, got, expected):
    name = word.partition("=")[0]
    assert refusal(word) == message(what.format(name), name, got, expected)


def test_a_switch_that_is_denied_is_not_switched_on():
    assert refusal("--fp16=0") == message("--fp16 takes no value", "--fp16", "0", "--fp16", "leave the flag out")


def test_a_run_without_end_is_not_done():
    assert refusal("--duration=-1") == message(
        "--duration is out of range",
        "--duration",
        "-1",
        "a number of at least 0",
        "trtexec's -1, without end, is not done: give a time",
    )


def test_only_linear_inputs_and_outputs_are_done():
    assert refusal("--inputIOFormats=fp16:hwc8") == message(
        "--inputIOFormats: inputs and outputs are in linear layout (chw) here",
        "--inputIOFormats",
        "fp16:hwc8",
        "chw",
        "let TensorRT reformat inside the engine",
    )
    layouts = "chw, chw2, chw4, chw16, chw32, hwc, hwc8, hwc16, dhwc, dhwc8, cdhw32, dla_linear, dla_hwc4"
    assert refusal("--inputIOFormats=fp16:nhwc") == message(
        "Invalid TensorFormat nhwc", "--inputIOFormats", "fp16:nhwc", layouts
    )


@given(st.dictionaries(st.text("abc:*/.", min_size=1), st.lists(st.integers(0, 9999), min_size=1), min_size=1))
def test_quoted_shapes_are_read_as_they_were_written(shapes):
    text = ",".join(f"'{name}':{'x'.join(map(str, dims))}" for name, dims in shapes.items())
    assert value(f"--shapes={text}") == {name: tuple(dims) for name, dims in shapes.items()}


def test_an_entry_of_its_own_comes_before_a_wildcard():
    entries = {"input*": 1, "*mask": 2, "input_ids": 3}
    assert [find(entries, name) for name in ("input_ids", "input_type", "attention_mask", "other")] == [3, 1, 2, None]


def test_a_wildcard_needs_both_of_its_ends():
    assert find({"ab*ba": 1}, "aba") is None
    assert find({"ab*ba": 1}, "abba") == 1

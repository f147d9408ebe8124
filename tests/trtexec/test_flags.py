"""The table of flags against the names that trtexec's parser asked for at each release."""

import json
from pathlib import Path

import pytest

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import BY_NAME, FLAGS
from trtsparse.trtexec.flags import GROUPS, Flag
from trtsparse.trtexec.options import Note
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.policy import LIKES

DATA = json.loads((Path(__file__).parents[1] / "data/trtexec/releases.json").read_text())
OURS = {"--like", "--engine"}


def _version(text):
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _releases():
    """{"10.16": names} for every release."""
    names, releases = set(), {}
    for release in DATA["releases"]:
        names = names - set(release["removed"]) | set(release["added"])
        releases[release["version"]] = names
    return releases


RELEASES = _releases()
EVER = set().union(*RELEASES.values())
OF_LIKE = {
    8: {"8.6.1": RELEASES["8.6.1"]},
    10: {version: names for version, names in RELEASES.items() if version.startswith("10.")},
    11: {version: names for version, names in RELEASES.items() if version.startswith("11.")},
}

_REFUSED = """
    --model --deploy --uff --uffInput --uffNHWC --input --output --maxBatch --batch --fp8 --int4 --layerOutputTypes
    --layerDeviceTypes --calib --refitFromOnnx --timeRefit --decomposableAttentions --markDebug
    --markUnfusedTensorsAsDebugTensors --saveDebugTensors --saveAllDebugTensors --useDLACore --buildDLAStandalone
    --uint8AsymmetricQuantizationDLA --reportCapabilityDLA --adjustForDLA --safe --dumpKernelText
    --remoteAutoTuningConfig --cpuOnly --safetyPlugins --useManagedMemory --persistentCacheRatio --tuneBuildRoutes
    --tuneBuildRouteFile --tuningSearch --tuningCacheFile --tuningTimeOut --tuningResultFile --saveAllEngines
    --dryRun --continue --helpBuildRoute
"""
_NEVER_ACTS = """
    --explicitBatch --explicitPrecision --minShapesCalib --optShapesCalib --maxShapesCalib --calibProfile
    --asyncFileReader --nativeInstanceNorm --allowGPUFallback --consistency --ignoreParsedPluginLibs
"""
REFUSED, NEVER_ACTS = set(_REFUSED.split()), set(_NEVER_ACTS.split())
NOOPS = {
    8: NEVER_ACTS,
    10: NEVER_ACTS | {"--minTiming"},
    11: NEVER_ACTS | {"--minTiming", "--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun"},
}
# what trtexec itself prints about flags that it accepts: (versions, flag, text)
PRINTED = [
    ([8], "--buildOnly", "--buildOnly flag has been deprecated by --skipInference flag."),
    (
        [8],
        "--explicitBatch",
        (
            "--explicitBatch flag has been deprecated and has no effect!\nExplicit batch dim is automatically "
            "enabled if input model is ONNX or if dynamic shapes are provided when the engine is built."
        ),
    ),
    ([8], "--explicitPrecision", "--explicitPrecision flag has been deprecated and has no effect!"),
    (
        [8],
        "--heuristic",
        (
            "--heuristic flag has been deprecated, use --builderOptimizationLevel=<N> flag instead (N <= 2 enables "
            "heuristic)."
        ),
    ),
    ([8], "--nvtxMode", "--nvtxMode flag has been deprecated by --profilingVerbosity flag."),
    ([8], "--workspace", "--workspace flag has been deprecated by --memPoolSize flag."),
    ([8, 10, 11], "--plugins", "--plugins flag has been deprecated, use --staticPlugins flag instead."),
    ([8, 10, 11], "--streams", "--streams flag has been deprecated, use --infStreams flag instead."),
    ([8, 10, 11], "--consistency", "Skipping consistency checker on non-safety mode."),
    ([10, 11], "--directIO", "--directIO flag has been deprecated"),
    (
        [11],
        "--noDataTransfers",
        (
            "--noDataTransfers is deprecated. Data transfers are now disabled by default. Use --includeDataTransfers "
            "to re-enable data transfers."
        ),
    ),
    (
        [11],
        "--separateProfileRun",
        (
            "--separateProfileRun is deprecated. Separate profile run is now always enabled. This flag will be "
            "removed in a future release."
        ),
    ),
    (
        [11],
        "--useCudaGraph",
        (
            "--useCudaGraph is deprecated. CUDA graph is now enabled by default. Use --noCudaGraph to disable CUDA "
            "graph."
        ),
    ),
    (
        [11],
        "--useSpinWait",
        "--useSpinWait is deprecated. Spin wait is now enabled by default. Use --noSpinWait to disable spin wait.",
    ),
]
OWN_WARNINGS = {like: {name: text for likes, name, text in PRINTED if like in likes} for like in LIKES}

VALUES = {
    "text": "-knob=on",
    "file": "f.bin",
    "integer": "1",
    "number": "1",
    "shapes": "x:1x3",
    "files": "x:f.bin",
    "pools": "workspace:1",
    "formats": "fp32:chw",
    "types": "conv:fp32",
    "controls": "temporary:deny",
    "percentiles": "99",
    "budget": "20%",
}
COMPANIONS = {  # flags that mean nothing alone
    "--getPlanVersionOnly": ["--loadEngine=m.plan"],
    "--loadRefOutputs": ["--loadInputs=x:x.bin", "--accuracyThreshold=1"],
    "--profile": ["--minShapes=x:1"],
    "--refPair": [
        "--loadInputs=x:x.bin",
        "--loadRefOutputs=y:y.bin",
        "--refPair=0",
        "--loadInputs=x:x.bin",
        "--loadRefOutputs=y:y.bin",
        "--accuracyThreshold=1",
    ],
    "--useProfile": ["--profile=0", "--minShapes=x:1", "--profile=1", "--minShapes=x:1"],
    "--weightStreamingBudget": ["--allowWeightStreaming"],
}


def _word(flag):
    if flag.kind == "switch":
        return flag.name
    value = {"choice": flag.choices[:1], "signed": [f"+{flag.choices[-1]}"] if flag.choices else []}.get(flag.kind)
    return f"{flag.name}={value[0] if value else '0' if flag.name == '--profile' else VALUES[flag.kind]}"


def _command(flag, like):
    model = ["--onnx=m.onnx"] if flag.name not in ("--onnx", "--loadEngine", "--getPlanVersionOnly") else []
    words = [*model, _word(flag), *COMPANIONS.get(flag.name, [])]
    return words if flag.name == "--like" else [f"--like={like}", *words]


def _all(condition=lambda _flag, _like: True):
    return [
        pytest.param(like, flag, id=f"{like}{flag.name}") for like in LIKES for flag in FLAGS if condition(flag, like)
    ]


@pytest.mark.parametrize(("like", "release"), [(like, release) for like in OF_LIKE for release in OF_LIKE[like]])
def test_every_flag_of_a_release_is_known(like, release):
    names = OF_LIKE[like][release]
    assert len(names) > 90
    assert {name for name in names if name not in BY_NAME or not BY_NAME[name].known_to(like)} == set()


def test_no_flag_is_invented_but_our_two():
    aliases = set(DATA["aliases"])
    assert {name for flag in FLAGS for name in flag.names} - EVER - aliases == {"--like"}
    assert {flag.name for flag in FLAGS if flag.is_ours} == OURS


def test_no_flag_of_any_release_is_missing():
    assert EVER - set(BY_NAME) == set()


@pytest.mark.parametrize("name", sorted(EVER - OURS))
def test_the_table_says_when_a_flag_came_and_went(name):
    having = [_version(release) for release, names in RELEASES.items() if name in names]
    flag = BY_NAME[name]
    newest = _version(list(RELEASES)[-1])
    assert (flag.since, flag.until or newest) == (min(having), max(having))


def test_names_are_unique_and_rows_are_complete():
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names)) == len(BY_NAME)
    for flag in FLAGS:
        assert flag.group in GROUPS
        assert flag.help.endswith(".")
        assert bool(flag.value) == (flag.kind != "switch"), flag.name
        assert bool(flag.choices) == (flag.kind in ("choice", "signed")), flag.name


@pytest.mark.parametrize(("like", "flag"), _all())
def test_each_flag_has_one_fate_per_version(like, flag):
    fate = "refused" if flag.name in REFUSED else "no-op" if flag.name in NOOPS[like] else "done"
    assert flag.treatment(like).status == fate


@pytest.mark.parametrize(("like", "flag"), _all(lambda flag, _like: flag.name in REFUSED))
def test_a_refused_flag_says_why_and_what_to_do(like, flag):
    with pytest.raises(ConfigError) as caught:
        parse(_command(flag, like))
    assert caught.value.what == f"{flag.name} is refused: {flag.here.text}"
    assert flag.here.text
    assert caught.value.fix == flag.here.fix
    assert flag.here.fix


@pytest.mark.parametrize(("like", "flag"), _all(lambda flag, _like: flag.name not in REFUSED | {"--help"}))
def test_an_accepted_flag_is_parsed_and_says_what_trtexec_says(like, flag):
    options = parse(_command(flag, like))
    known = set().union(*OF_LIKE[like].values())
    said = [note for note in options.notes if note.text in flag.treatment(like).text.splitlines()]
    if flag.name in OWN_WARNINGS[like]:
        assert said == [Note("W", text) for text in OWN_WARNINGS[like][flag.name].splitlines()]
    elif flag.name in known | OURS:  # done in silence, or a no-op of ours with our reason
        assert [note.severity for note in said] == ["W"] * (flag.name in NOOPS[like])
    elif flag.treatment(like).text.startswith("trtexec"):
        assert said == [Note("I", f"trtexec {like} has no {flag.name}, which exists {flag.span}: {flag.instead}")]
    else:
        assert [note.severity for note in said] == ["I"]
        assert flag.name in NOOPS[like]


def test_a_span_reads_well():
    assert Flag("--x", "Build", "X.", since=(8, 6)).span == "from 8.6 on"
    assert Flag("--x", "Build", "X.", since=(9, 1), until=(10, 16)).span == "from 9.1 to 10.16"
    assert Flag("--x", "Build", "X.", since=(5, 1), until=(5, 1)).span == "in 5.1"

# ruff: noqa: E501 - lines of logs are long
"""The report against texts of real runs of trtexec, quoted from public threads for their shape and figures."""

import ctypes
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import Energy, LayerTime, Measurement, Query
from trtsparse.trtexec.blocks import option_blocks
from trtsparse.trtexec.device import Gpu, print_device
from trtsparse.trtexec.log import Library, Printer, banner
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.report import number, print_outputs, print_performance, print_profile

# https://github.com/NVIDIA/TensorRT/issues/4177, TensorRT 10
SUMMARY = """\
[I] === Performance summary ===
[I] Throughput: 130.298 qps
[I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[I] Enqueue Time: min = 2.72876 ms, max = 15.0201 ms, mean = 7.63062 ms, median = 7.86694 ms, percentile(90%) = 10.1792 ms, percentile(95%) = 11.7217 ms, percentile(99%) = 14.1848 ms
[I] H2D Latency: min = 0.0065918 ms, max = 0.0698242 ms, mean = 0.0122212 ms, median = 0.00814819 ms, percentile(90%) = 0.0253906 ms, percentile(95%) = 0.0270996 ms, percentile(99%) = 0.0515137 ms
[I] GPU Compute Time: min = 5.34595 ms, max = 13.3388 ms, mean = 7.58404 ms, median = 7.14139 ms, percentile(90%) = 10.2881 ms, percentile(95%) = 10.8175 ms, percentile(99%) = 12.9485 ms
[I] D2H Latency: min = 0.00390625 ms, max = 0.110596 ms, mean = 0.0100141 ms, median = 0.00439453 ms, percentile(90%) = 0.0254517 ms, percentile(95%) = 0.0319824 ms, percentile(99%) = 0.0994873 ms
[I] Total Host Walltime: 3.00082 s
[I] Total GPU Compute Time: 2.96536 s
"""

# https://github.com/NVIDIA/TensorRT/issues/3083, TensorRT 8.6
AVERAGES = """\
[I] === Trace details ===
[I] Trace averages of 10 runs:
[I] Average on 10 runs - GPU latency: 4.24171 ms - Host latency: 4.29793 ms (enqueue 1.81771 ms)
[I] Average on 10 runs - GPU latency: 4.24223 ms - Host latency: 4.30073 ms (enqueue 1.8012 ms)
"""

# https://github.com/NVIDIA/TensorRT/issues/3842
PROFILE = """\
[I] === Profile (2094 iterations ) ===
[I]    Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer
[I]       47.82       0.0228       0.0225       1.6   node_of_gpu_0/conv1_1 + node_of_gpu_0/res_conv1_bn_1 + node_of_gpu_0/res_conv1_bn_2
[I]       14.02       0.0067       0.0069       0.5   node_of_gpu_0/pool1_1
"""

# https://github.com/dataplayer12/SAM3-TensorRT/issues/26, TensorRT 10.16
ADVICE = """\
[W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.
[W]   If not already in use, --useCudaGraph (utilize CUDA graphs where possible) may increase the throughput.
"""

# https://github.com/NVIDIA/TensorRT/issues/3649, TensorRT 8.6.1
BUILD_8 = """\
[I] === Model Options ===
[I] Format: ONNX
[I] Model: converted.onnx
[I] Output:
[I] === Build Options ===
[I] Max batch: explicit batch
[I] Memory Pools: workspace: 2000 MiB, dlaSRAM: default, dlaLocalDRAM: default, dlaGlobalDRAM: default
[I] minTiming: 1
[I] avgTiming: 8
[I] Precision: FP32
[I] LayerPrecisions: \n\
[I] Layer Device Types: \n\
[I] Calibration: \n\
[I] Refit: Disabled
[I] Version Compatible: Disabled
[I] TensorRT runtime: full
[I] Lean DLL Path: \n\
[I] Tempfile Controls: { in_memory: allow, temporary: allow }
[I] Exclude Lean Runtime: Disabled
[I] Sparsity: Disabled
[I] Safe mode: Disabled
[I] Build DLA standalone loadable: Disabled
"""

# https://github.com/NVIDIA/TensorRT/issues/4658, TensorRT 10.8
BUILD_10 = """\
[I] === Build Options ===
[I] Memory Pools: workspace: default, dlaSRAM: default, dlaLocalDRAM: default, dlaGlobalDRAM: default, tacticSharedMem: default
[I] avgTiming: 8
[I] Precision: FP32
[I] LayerPrecisions: \n\
[I] Layer Device Types: \n\
[I] Calibration: \n\
[I] Refit: Disabled
[I] Strip weights: Disabled
[I] Version Compatible: Disabled
[I] ONNX Plugin InstanceNorm: Disabled
"""

# https://github.com/NVIDIA/TensorRT/issues/4036, TensorRT 10.2
LOAD_10 = """\
[I] === Model Options ===
[I] Format: *
[I] Model: \n\
[I] Output:
[I] \n\
[I] === System Options ===
[I] Device: 0
[I] DLACore: \n\
[I] Plugins:
[I] setPluginsToSerialize:
[I] dynamicPlugins:
[I] ignoreParsedPluginLibs: 0
[I] \n\
[I] === Inference Options ===
[I] Batch: Explicit
[I] Input inference shape : ref_y=1x128x100x160
[I] Input inference shape : c1=1x48x1600x2560
[I] Iterations: 10
"""

# https://github.com/NVIDIA/TensorRT/issues/3747, TensorRT 8.6.3
DEVICE_8 = """\
[I] === Device Information ===
[I] Selected Device: NVIDIA GeForce RTX 2080
[I] Compute Capability: 7.5
[I] SMs: 46
[I] Device Global Memory: 7974 MiB
[I] Shared Memory per SM: 64 KiB
[I] Memory Bus Width: 256 bits (ECC disabled)
[I] Application Compute Clock Rate: 1.71 GHz
[I] Application Memory Clock Rate: 7 GHz
[I] \n\
[I] Note: The application clock rates do not reflect the actual clock rates that the GPU is currently running at.
"""


def query(start, *, h2d=0.25, compute=2.0, d2h=0.125, enqueue=0.5):
    """One query whose parts follow each other."""
    a, b = start + h2d, start + h2d + compute
    return Query(start, start + enqueue, start, a, a, b, b, b + d2h)


def measurement(queries, *, place="gpu", **fields):
    options = fields.pop("options", BenchOptions())
    wall = max(q.end_d2h_ms for q in queries) - min(q.start_h2d_ms for q in queries)
    return Measurement(
        engine="tensorrt", description="m", place=place, options=options, queries=tuple(queries),
        warm_up_queries=7, warm_up_ms=201.0, wall_s=wall / 1e3, **fields,
    )  # fmt: skip


def lines(printer):
    """Without times."""
    return [line[22:] for line in printer.lines]


def report(measured, *, runs=10, major=10, verbose=False):
    out = Printer(verbose=verbose)
    print_performance(out, measured, runs=runs, major=major)
    return lines(out)


def shape(line):
    """A line with every figure replaced, percentiles and counts of the words kept."""
    return re.sub(r"(?<![\w(%])-?\d+(\.\d+)?(e[+-]\d+)?(?![\w%])", "#", line)


def steady(count):
    return [query(10.0 * i, compute=2.0 + i * 0.001) for i in range(count)]


@given(st.floats(width=32, allow_nan=False) | st.floats(allow_nan=False))
def test_numbers_are_printed_as_c_streams_do(value):
    text = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).snprintf(text, 64, b"%g", ctypes.c_double(value))  # the default of std::ostream
    assert number(value) == text.value.decode()


@pytest.mark.parametrize("text", [SUMMARY, AVERAGES])
def test_the_figures_of_real_runs_keep_their_digits(text):
    for figure in re.findall(r"(?<= )\d+\.\d+(?= )", text):
        assert number(float(figure)) == figure


def test_the_summary_has_the_lines_of_a_real_run():
    found = report(measurement(steady(60)))
    start = found.index("[I] === Performance summary ===")
    expected = [shape(line) for line in SUMMARY.splitlines()]
    assert [shape(line) for line in found[start : start + len(expected)]] == expected


def test_the_averages_have_the_lines_of_a_real_run():
    found = report(measurement(steady(25)))
    start = found.index("[I] === Trace details ===")
    expected = [shape(line) for line in AVERAGES.splitlines()]
    assert [shape(line) for line in found[start : start + 4]] == expected
    assert found[start + 4] == "[I] "  # five queries are no full average


def test_a_small_run_is_printed_in_full():
    options = BenchOptions(percentiles=(50.0, 99.9))
    found = report(measurement([query(0.0), query(4.0)], options=options), runs=1, verbose=False)
    assert found == [
        "[I] Warmup completed 7 queries over 200 ms",
        "[I] Timing trace has 2 queries over 0.006375 s",
        "[I] ",
        "[I] === Trace details ===",
        "[I] Trace averages of 1 runs:",
        "[I] Average on 1 runs - GPU latency: 2 ms - Host latency: 2.375 ms (enqueue 0.5 ms)",
        "[I] Average on 1 runs - GPU latency: 2 ms - Host latency: 2.375 ms (enqueue 0.5 ms)",
        "[I] ",
        "[I] === Performance summary ===",
        "[I] Throughput: 313.725 qps",
        *(
            f"[I] {name}: min = {v} ms, max = {v} ms, mean = {v} ms, median = {v} ms, percentile(50%) = {v} ms, "
            f"percentile(99.9%) = {v} ms"
            for name, v in (
                ("Latency", 2.375), ("Enqueue Time", 0.5), ("H2D Latency", 0.25), ("GPU Compute Time", 2),
                ("D2H Latency", 0.125),
            )
        ),
        "[I] Total Host Walltime: 0.006375 s",
        "[I] Total GPU Compute Time: 0.004 s",
        "[I] Explanations of the performance metrics are printed in the verbose logs.",
        "[I] ",
    ]  # fmt: skip


def test_what_a_cpu_cannot_measure_is_named_and_never_zero():
    found = report(measurement([query(4.0 * i, h2d=0, d2h=0, enqueue=0) for i in range(20)], place="cpu"))
    assert "[I] Average on 10 runs - Host latency: 2 ms" in found
    assert (
        "[I] Not measured, since nothing runs on a GPU: Enqueue Time, H2D Latency, GPU Compute Time, D2H Latency, "
        "Total GPU Compute Time"
    ) in found
    assert not [line for line in found if "= 0 ms" in line or "GPU latency" in line]


def test_a_long_trace_shows_its_first_and_last_averages():
    found = report(measurement(steady(450)), runs=1)
    assert sum(line.startswith("[I] Average on") for line in found) == 400
    assert "[I] ... Omitting 50 lines" in found
    assert sum(line.startswith("[I] Average on") for line in report(measurement(steady(400)), runs=1)) == 400


@pytest.mark.parametrize(
    ("major", "fixes"),
    [
        (
            10,
            (
                "If not already in use, --useCudaGraph (utilize CUDA graphs where possible) may increase the throughput.",
                "Add --noDataTransfers flag to disable data transfers.",
                "If not already in use, locking GPU clock frequency or adding --useSpinWait may improve the stability.",
            ),
        ),
        (
            11,
            (
                "If you are using --noCudaGraph, removing it may increase throughput.",
                "Consider removing --includeDataTransfers to disable data transfers and potentially increase throughput.",
                "If not already in use, locking GPU clock frequency may improve the stability.",
            ),
        ),
    ],
)
def test_the_advice_is_in_the_words_of_the_trtexec_that_is_followed(major, fixes):
    queries = [query(20.0 * i, h2d=9.0, compute=1.0 + i % 2, d2h=8.0, enqueue=6.0) for i in range(20)]
    found = [line[6:] for line in report(measurement(queries), major=major) if line.startswith("[W]   ")]
    assert found == [fixes[0], fixes[1], fixes[1], fixes[2]]


def test_the_advice_about_enqueueing_is_that_of_a_real_run():
    found = report(measurement([query(9.0 * i, enqueue=2.0) for i in range(20)]))
    assert [line for line in found if line.startswith("[W]")] == ADVICE.splitlines()


def test_several_streams_make_latencies_unreliable():
    found = report(measurement(steady(20), options=BenchOptions(streams=2)))
    assert next(line for line in found if "Multiple inference streams" in line).startswith("[W] * ")


def test_energy_and_notes_follow_the_summary():
    energy = Energy(joules=10.0, joules_per_query=0.5, mean_watts=250.0, samples=30, source="counter")
    found = report(measurement(steady(20), energy=energy, notes=("the clock was slow",)))
    start = found.index("[I] Total GPU Compute Time: 0.04019 s")
    assert found[start + 1 : start + 3] == [
        "[I] Energy: 0.5 J per query, 250 W on average, of the whole GPU",
        "[I] Note: the clock was slow",
    ]


def test_metrics_are_explained_when_asked():
    found = report(measurement(steady(20)), verbose=True)
    start = found.index("[V] === Explanations of the performance metrics ===")
    assert all(line.startswith("[V] ") and line.endswith(".") for line in found[start + 1 : start + 9])
    assert not [line for line in report(measurement(steady(20))) if line.startswith("[V]")]


def test_the_profile_has_the_columns_of_a_real_run():
    out = Printer()
    count = 2094
    layers = [
        LayerTime(
            "node_of_gpu_0/conv1_1 + node_of_gpu_0/res_conv1_bn_1 + node_of_gpu_0/res_conv1_bn_2", (0.0225,) * count
        ),
        LayerTime("node_of_gpu_0/pool1_1", (0.0069,) * count),
        LayerTime("never ran", (0.0,) * count),
    ]
    print_profile(out, layers, count=count)
    real = PROFILE.splitlines()
    found = lines(out)
    assert found[0] == found[-1] == "[I] "
    assert found[1:3] == real[:2]
    for ours, theirs in zip(found[3:5], real[2:4], strict=True):
        assert [m.end() for m in re.finditer(r"[\d.]+(?= )", ours)][:4] == [
            m.end() for m in re.finditer(r"[\d.]+(?= )", theirs)
        ][:4]
        assert ours.split("   ")[-1] == theirs.split("   ")[-1]
    assert found[5] == "[I]       61.56       0.0294       0.0294     100.0   Total"


def test_outputs_are_printed_with_their_dims():
    out = Printer()
    print_outputs(out, {"y": np.array([[1.5, 2.0]], np.float32), "n": np.array(3)})
    assert lines(out) == ["[I] Output Tensors:", "[I] y: (1x2)", "[I] 1.5 2", "[I] n: ()", "[I] 3"]


def blocks(*words):
    out = Printer()
    out.info(option_blocks(parse(words)))
    return lines(out)


@pytest.mark.parametrize(
    ("words", "real"),
    [
        (("--onnx=converted.onnx", "--memPoolSize=workspace:2000", "--like=8"), BUILD_8),
        (("--onnx=m.onnx", "--like=10"), BUILD_10),
        (("--loadEngine=m.engine", "--shapes=ref_y:1x128x100x160,c1:1x48x1600x2560", "--like=10"), LOAD_10),
    ],
)
def test_the_option_blocks_are_those_of_real_runs(words, real):
    expected = real.splitlines()
    found = blocks(*words)
    start = found.index(expected[0])
    assert found[start : start + len(expected)] == expected


def test_the_blocks_say_what_was_asked_for():
    found = blocks(
        "--onnx=m.onnx", "--like=10", "--fp16", "--sparsity=force", "--minShapes=x:1x3", "--optShapes=x:4x3",
        "--maxShapes=x:8x3", "--memPoolSize=workspace:1.5G,tacticSharedMem:48K", "--infStreams=2", "--useCudaGraph",
        "--warmUp=10", "--duration=0.5", "--saveEngine=m.plan", "--loadInputs=x:x.bin", "--percentile=50,99.5",
        "--tacticSources=-EDGE_MASK_CONVOLUTIONS,+JIT_CONVOLUTIONS", "--exportTimes=t.json", "--tempfileControls=in_memory:deny",
    )  # fmt: skip
    assert {
        "[I] Precision: FP32+FP16",
        "[I] Sparsity: Forced",
        (
            "[I] Memory Pools: workspace: 1536 MiB, dlaSRAM: default, dlaLocalDRAM: default, dlaGlobalDRAM: default, "
            "tacticSharedMem: 48 KiB"
        ),
        "[I] Input build shape (profile 0): x=1x3+4x3+8x3",
        "[I] Input inference shape : x=4x3",
        "[I] Save engine: m.plan",
        "[I] Inference Streams: 2",
        "[I] CUDA Graph: Enabled",
        "[I] Duration: 0.5s (+ 10ms warm up)",
        "[I] x<-x.bin",
        "[I] Percentiles: 50,99.5",
        "[I] Tactic sources: edge mask convolutions [OFF], JIT convolutions [ON], ",
        "[I] Export timing to JSON file: t.json",
        "[I] Tempfile Controls: { in_memory: deny, temporary: allow }",
    } <= set(found)


def test_on_11_the_network_is_strongly_typed_and_the_request_is_named():
    assert "[I] Precision: Strongly Typed" in blocks("--onnx=m.onnx", "--like=11")
    assert "[I] Precision: Strongly Typed, asked for FP32+INT8" in blocks("--onnx=m.onnx", "--like=11", "--int8")


def test_the_device_block_is_that_of_a_real_run():
    attributes = {
        "major": 7, "minor": 5, "multiprocessors": 46, "shared_nbytes": 64 << 10, "bus_bits": 256, "ecc": 0,
        "clock_khz": 1_710_000, "memory_clock_khz": 7_000_000,
    }  # fmt: skip
    gpu = Gpu("NVIDIA GeForce RTX 2080", "GPU-" + "0" * 8, 7974 << 20, attributes)
    out = Printer()
    assert print_device(out, (gpu,), device=0, listed=False)
    assert lines(out) == DEVICE_8.splitlines()
    out = Printer()
    assert print_device(out, (gpu,), device=0)
    assert lines(out)[1:6] == [
        "[I] Available Devices: ",
        '[I]   Device 0: "NVIDIA GeForce RTX 2080" UUID: GPU-00000000',
        "[I] Selected Device: NVIDIA GeForce RTX 2080",
        "[I] Selected Device ID: 0",
        "[I] Selected Device UUID: GPU-00000000",
    ]


@pytest.mark.parametrize(
    ("gpus", "device", "text"),
    [((), 0, "Cannot find any available devices (GPUs)!"), ((Gpu("a", "b", 0, {}),), 3, "Cannot find device ID 3!")],
)
def test_a_missing_device_is_said(gpus, device, text):
    out = Printer()
    assert not print_device(out, gpus, device=device)
    assert lines(out)[-1] == f"[I] {text}"


@pytest.mark.parametrize(
    ("library", "real"),
    [
        (("TensorRT", (8, 6, 1, 6)), "&&&& RUNNING TensorRT.trtexec [TensorRT v8601] "),  # NVIDIA/TensorRT#3649
        (("TensorRT", (10, 2, 0, 19)), "&&&& RUNNING TensorRT.trtexec [TensorRT v100200] "),  # NVIDIA/TensorRT#4036
        (("TensorRT", (10, 8, 0, 43)), "&&&& RUNNING TensorRT.trtexec [TensorRT v100800] [b43] "),  # ... #4658
        (("TensorRT", (11, 1, 0, 106)), "&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] "),
        (("TensorRT-RTX", (1, 7, 1, 116)), "&&&& RUNNING TensorRT.trtexec [TensorRT-RTX v10701] [b116] "),
        (("", ()), "&&&& RUNNING TensorRT.trtexec [no TensorRT] "),
    ],
)
def test_banners_begin_as_those_of_real_runs_and_name_this_package(library, real):
    line = banner("RUNNING", Library(*library), ["--onnx=m.onnx", "--fp16"])
    assert line.startswith(real + "[trtsparse ")
    assert line.endswith("] # trtsparse trtexec --onnx=m.onnx --fp16")


def test_information_goes_to_standard_output_warnings_and_errors_do_not():
    written = []
    out = Printer(lambda stream, line: written.append((stream, line[22:])), verbose=True)
    out.info("a\nb")
    out.warning("c")
    out.error("d")
    out.detail("e")
    assert written == [("out", "[I] a"), ("out", "[I] b"), ("err", "[W] c"), ("err", "[E] d"), ("out", "[V] e")]
    assert re.fullmatch(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[I\] a", out.lines[0])


def test_a_parser_of_sections_reads_the_log():
    """The format that TREx's log parser goes by: a header, then "key: value" lines until one is neither."""
    out = Printer()
    out.info(option_blocks(parse(["--onnx=m.onnx", "--like=10"])))
    print_performance(out, measurement(steady(60)), runs=10, major=10)

    def section(header):
        rows = out.lines[[header in line for line in out.lines].index(True) + 1 :]
        found = {}
        for line in rows:
            match = re.match(r"\[\d+/\d+/\d+-\d+:\d+:\d+\] \[I\] (.+?): (.*)", line)
            if match is None:
                return found
            found[match[1]] = match[2]
        return found

    assert section("=== Model Options ===") == {"Format": "ONNX", "Model": "m.onnx"}
    summary = section("=== Performance summary ===")
    latency = [float(re.search(r"[\d.]+", part.split("=")[1])[0]) for part in summary["Latency"].split(",")]
    assert len(latency) == 7
    assert latency[0] < latency[3] < latency[1]
    assert float(summary["Total GPU Compute Time"].split()[0]) == pytest.approx(0.12177)


def test_model_optimizers_pattern_finds_the_median_latency():
    """NVIDIA Model Optimizer's autotuner looks for the first "median = X ms" behind "[I] Latency:", ignoring case."""
    out = Printer()
    print_performance(out, measurement(steady(61)), runs=10, major=11)
    found = re.search(r"\[I\]\s+latency:.*?median\s*=\s*([\d.]+)\s*ms", "\n".join(out.lines), re.IGNORECASE)
    assert float(found[1]) == pytest.approx(2.375 + 0.03)

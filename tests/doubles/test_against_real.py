"""The double of TensorRT-RTX 1.7.1 agrees with the real library on what a caller can observe.

Each probe runs on the real module and on the double and returns plain values; both must be equal.
"""

import pathlib
import re

import numpy as np
import onnx
import pytest

from tests.doubles import make, samples

REAL = pytest.importorskip("tensorrt_rtx")
DOUBLE = make("rtx-1.7.1")
SOURCE = re.compile(r" In [\w()]+ at /_src.*?\)$|:\d+(?=\D)")


def caught(call):
    """What a call does, as a plain value."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the class is what is compared
        return type(error).__name__, re.sub(r"0x\w+", "0x", str(error).partition("\n\nInvoked")[0])


def normal(text):
    """A message without the place in the library's source, line numbers and numbers of error codes."""
    return re.sub(r"\n\[\d+\] ", "\n", SOURCE.sub("", text))


def errors(build):
    return [normal(text) for text in build.logger.errors() if not text.startswith("ModelImporter.cpp")]


def parser_errors(build):
    found = [build.parser.get_error(i) for i in range(build.parser.num_errors)]
    return [
        (e.code().name, e.node(), e.node_name(), e.node_operator(), e.func(), e.file(), e.desc().partition("\n")[0])
        for e in found
    ]


def parse(model):
    def probe(trt):
        build = samples.Build(trt)
        data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        answer = caught(lambda: build.parser.parse(data))
        network = build.network
        built = None if answer is not True else build.run() is not None
        return answer, parser_errors(build), network.num_inputs, network.num_outputs, built

    return probe


def parse_file(name, data=None, size_of_weights=None):
    def probe(trt, folder=None):
        path = folder / name
        if data is not None:
            path.write_bytes(data)
        if size_of_weights is not None:
            (folder / "w.bin").unlink(missing_ok=True)  # ONNX appends to what is there
            onnx.save(samples.tiny(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
            weights = folder / "w.bin"
            weights.write_bytes(weights.read_bytes()[:size_of_weights])
            if size_of_weights == 0:
                weights.unlink()
        build = samples.Build(trt)
        answer = build.parser.parse_from_file(str(path))
        said = [t for s, t in build.logger.lines if s == "ERROR" and "WeightsContext" in t]
        return answer, [e[:-1] for e in parser_errors(build)], build.network.num_outputs, list(map(normal, said))

    probe.needs_folder = True
    return probe


def profile(*shapes, name="x", batch="N"):
    def probe(trt):
        build = samples.Build(trt)
        assert build.parse(samples.tiny(batch))
        made = build.builder.create_optimization_profile()
        set_shape = caught(lambda: made.set_shape(name, *shapes))
        valid = bool(made)
        got = [tuple(shape) for shape in made.get_shape(name)]
        index = build.config.add_optimization_profile(made)
        built = build.run() is not None
        return set_shape, valid, got, index, build.config.num_optimization_profiles, built, errors(build)

    return probe


def default_configuration(trt):
    config = samples.Build(trt).config
    names = [
        "DLA_core", "all_build_routes", "avg_timing_iterations", "build_route", "builder_optimization_level",
        "default_device_type", "engine_capability", "hardware_compatibility_level", "l2_limit_for_tiling",
        "max_aux_streams", "max_num_tactics", "num_compute_capabilities", "num_optimization_profiles",
        "plugins_to_serialize", "profile_stream", "profiling_verbosity", "progress_monitor", "runtime_platform",
        "tiling_optimization_level",
    ]  # fmt: skip
    values = [getattr(value, "name", value) for value in (getattr(config, name) for name in names)]
    pools = {n: config.get_memory_pool_limit(p) for n, p in trt.MemoryPoolType.__members__.items()}
    flags = {n for n, f in trt.BuilderFlag.__members__.items() if config.get_flag(f)}
    return [list(v) if isinstance(v, (list, tuple)) else v for v in values], pools, flags


def rejected_settings(trt):
    build = samples.Build(trt)
    config = build.config
    config.max_aux_streams = -5
    config.builder_optimization_level = -1
    config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    config.flags = 1 << 31
    config.set_flag(trt.BuilderFlag(31))
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    outcomes = [
        config.set_compute_capability(trt.ComputeCapability.SM86, 1),
        config.get_compute_capability(1).name,
        config.get_compute_capability(0).name,
        caught(lambda: setattr(config, "num_compute_capabilities", -1))[0],
        config.max_aux_streams, config.builder_optimization_level,
        {n for n, f in trt.BuilderFlag.__members__.items() if config.get_flag(f)},
    ]  # fmt: skip
    return outcomes, len(build.logger.errors()) > 4


def type_errors(trt):
    build = samples.Build(trt)
    calls = [
        trt.Builder, lambda: trt.Builder(None), lambda: trt.Logger(1), lambda: trt.Logger(trt.Logger.INFO, 3),
        lambda: build.builder.create_network("a"), lambda: build.builder.create_network(1.5),
        lambda: build.builder.create_network(flag=1), lambda: build.builder.create_network(None),
        lambda: build.config.set_flag(3), build.config.set_flag, lambda: build.parser.parse("abc"),
        lambda: build.parser.parse([1, 2]), lambda: build.parser.parse_from_file(pathlib.Path("x")),
        lambda: trt.OnnxParser(build.network), trt.IBuilderConfig,
        trt.IHostMemory, lambda: trt.BuilderFlag.FP16, lambda: build.config.fp16, lambda: trt.Dims([1.5]),
        lambda: setattr(build.config, "fp16", 1), lambda: setattr(build.config, "num_optimization_profiles", 1),
        lambda: trt.Dims(list(range(9))), lambda: trt.Dims([1])[7], lambda: trt.DataType.FLOAT < trt.BuilderFlag.TF32,
        lambda: trt.nptype(trt.DataType.BF16), lambda: setattr(build.config, "set_flag", 1),
        lambda: build.builder.build_serialized_network(build.network, None),
        lambda: trt.Runtime(build.logger).deserialize_cuda_engine(None),
    ]  # fmt: skip
    return [caught(call) for call in calls]


def values(trt):
    dims = trt.Dims([1, 2, 3])
    return [
        str(dims), repr(dims), tuple(dims), list(dims), len(dims), dims[0], dims[-1], dims[:2], dims == (1, 2, 3),
        dims == [1, 2], isinstance(dims, tuple), trt.Dims.MAX_DIMS, trt.volume((2, 3)), trt.nptype(trt.float16),
        int(trt.BuilderFlag.TF32) == trt.BuilderFlag.TF32, str(trt.BuilderFlag.TF32), trt.BuilderFlag(300).name,
        trt.BuilderFlag.TF32.REFIT.name, len({trt.BuilderFlag.TF32, trt.BuilderFlag.TF32}), trt.Logger.INFO.name,
        trt.Logger.Severity is trt.ILogger.Severity, trt.Logger.Severity.__qualname__,
        trt.Weights(np.zeros((2, 3), np.float16)).nbytes, trt.__version__, trt.__name__,
    ]  # fmt: skip


def network(trt):
    build = samples.Build(trt)
    assert build.parse(samples.tiny("N"))
    graph = build.network
    ends = [graph.get_input(0), graph.get_output(0)]
    typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    layer = graph.get_layer(0)
    return [
        [(t.name, tuple(t.shape), t.dtype.name, t.is_network_input, t.is_network_output) for t in ends],
        ends[0].get_dimension_name(0), ends[0].get_dimension_name(1), graph.get_input(3), graph.get_layer(99),
        graph.get_flag(typed), layer.name, layer.type.name, layer.num_outputs, layer.metadata, graph[1].name,
        build.builder.create_network(1 << 20), build.parser.get_error(5), build.parser.parse(b""),
        build.parser.num_errors, errors(build)[-2:-1],
    ]  # fmt: skip


def operators(trt):
    parser = samples.Build(trt).parser
    names = ["Conv", "Gemm", "Det", "Unique", "Foo", "QLinearConv", "LayerNormalization", "NonZero", "Einsum"]
    return {name: parser.supports_operator(name) for name in names}


def plan_bytes(trt):
    plan = samples.plan(trt, samples.tiny())
    data = bytes(plan)
    sizes = (
        plan.nbytes == len(data) == memoryview(plan).nbytes == np.frombuffer(plan, np.uint8).size,
        plan.dtype.name,
    )
    sizes += (bool(plan), plan == plan, isinstance(hash(plan), int))  # noqa: PLR0124 - identity is what is asked
    again = bytes(samples.plan(trt, samples.tiny())) == data
    return (
        data[:16],
        int.from_bytes(data[16:24], "little") == len(data),
        data[24:36],
        sizes,
        again,
        caught(lambda: len(plan))[0],
    )


def monitored(stop):
    def probe(trt):
        class Monitor(trt.IProgressMonitor):
            def __init__(self):
                trt.IProgressMonitor.__init__(self)
                self.events = []

            def phase_start(self, phase_name, parent_phase, _num_steps):
                self.events.append(("start", phase_name, parent_phase))

            def step_complete(self, _phase_name, _step):
                return not stop

            def phase_finish(self, phase_name):
                self.events.append(("finish", phase_name))

        build = samples.Build(trt)
        build.parse(samples.tiny())
        build.config.progress_monitor = monitor = Monitor()
        plan = build.run()
        return plan is None, monitor.events[:3], monitor.events[-1], errors(build)

    return probe


def recorded_errors(trt):
    class Recorder(trt.IErrorRecorder):
        def __init__(self):
            trt.IErrorRecorder.__init__(self)
            self.heard = []

        def report_error(self, code, desc):
            self.heard.append((code.name, normal(desc)))
            return False

        def clear(self):
            self.heard.clear()

        def num_errors(self):
            return len(self.heard)

        def get_error_code(self, index):
            return self.heard[index][0]

        def get_error_desc(self, index):
            return self.heard[index][1]

        def has_overflowed(self):
            return False

    build = samples.Build(trt)
    build.parse(samples.tiny("N"))
    build.builder.error_recorder = recorder = Recorder()
    return build.run(), recorder.heard, build.logger.errors(), build.builder.error_recorder is recorder


def refused_plans(trt):
    logger = samples.recorder(trt)
    runtime = trt.Runtime(logger)
    data = bytes(samples.plan(trt, samples.tiny()))
    outcomes = []
    for wrong in (b"", b"x" * 20, b"x" * 200, data[:100], data[:-1], b"ftrt" + data[4:]):
        logger.clear()
        outcomes.append((runtime.deserialize_cuda_engine(wrong), [normal(t) for t in logger.errors()]))
    validity = [runtime.get_engine_validity(b"a" * 100)[0].name]
    return outcomes, validity, runtime.engine_header_size


def loggers(trt):
    first, second = samples.recorder(trt), samples.recorder(trt)
    one = trt.Builder(first)
    other = trt.Builder(second)
    warned = [severity for severity, text in second.lines if "differs from one already" in text]
    network = other.create_network()
    other.build_serialized_network(network, other.create_builder_config())
    return warned, len(second.errors()), first.errors(), one.logger is first, other.logger is second


def flags_that_build(trt):
    names = ["SPARSE_WEIGHTS", "STRICT_NANS", "DEBUG", "WEIGHT_STREAMING", "REFIT_INDIVIDUAL", "DIRECT_IO"]
    return [samples.plan(trt, samples.tiny(), flags=(name,)) is not None for name in names]


def sparse_builds_say_nothing(trt):
    build = samples.Build(trt)
    build.parse(samples.tiny(dtype=onnx.TensorProto.FLOAT16, sparse=True))
    build.config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    return build.run() is not None, [text for _, text in build.logger.lines if "parsity" in text]


def banner(trt):
    build = samples.Build(trt)
    build.parse(samples.tiny())
    return [line for line in build.logger.lines if line[0] == "INFO"][:9]


TINY = samples.tiny().SerializeToString()
GOOD = ((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6))
PROBES = {
    "parse a model": parse(samples.tiny()),
    "parse half": parse(samples.tiny(dtype=onnx.TensorProto.FLOAT16)),
    "parse a quantized model": parse(samples.quantized()),
    "parse a truncated model": parse(TINY[: len(TINY) // 2]),
    "parse a model short of some bytes": parse(TINY[:-5]),
    "parse nothing": parse(b""),
    "parse garbage": parse(b"\x00\xff garbage"),
    "parse text": parse(b"hello world"),
    "parse zeros": parse(bytes(100)),
    "parse noise": parse(np.random.default_rng(1).bytes(300)),
    "parse a bytearray": parse(bytearray(TINY)),
    "parse an array": parse(np.frombuffer(TINY, np.uint8)),
    "an unknown operator": parse(samples.single("Foo", name="foo0")),
    "an operator of an unknown domain": parse(samples.single("Bar", name="bar0", domain="mine")),
    "mixed types in a matrix product": parse(samples.mixed("MatMul")),
    "mixed types in a sum": parse(samples.mixed("Add")),
    "a missing file": parse_file("none.onnx"),
    "an empty file": parse_file("empty.onnx", b""),
    "a truncated file": parse_file("half.onnx", TINY[: len(TINY) // 2]),
    "a file of garbage": parse_file("garbage.onnx", b"garbage"),
    "external data": parse_file("ext.onnx", size_of_weights=1 << 20),
    "short external data": parse_file("ext.onnx", size_of_weights=1000),
    "missing external data": parse_file("ext.onnx", size_of_weights=0),
    "a right profile": profile(*GOOD),
    "a profile of lists": profile(*map(list, GOOD)),
    "a profile of arrays": profile(*map(np.array, GOOD)),
    "a profile of another name": profile(*GOOD, name="z"),
    "a profile of another rank": profile((1, 8, 6), (2, 8, 6), (4, 8, 6)),
    "a profile of several ranks": profile((1, 8, 6), (2, 8, 6, 6), (4, 8, 6, 6)),
    "a profile that changes a static size": profile((1, 4, 6, 6), (2, 4, 6, 6), (4, 4, 6, 6)),
    "a profile with another static maximum": profile((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 8, 6)),
    "min above opt": profile((4, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6)),
    "opt above max": profile((1, 8, 6, 6), (5, 8, 6, 6), (4, 8, 6, 6)),
    "a negative size": profile((-1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6)),
    "a profile of a static input": profile(*[(2, 8, 6, 6)] * 3, batch=2),
    "a wrong profile of a static input": profile(*GOOD, batch=2),
    "default configuration": default_configuration,
    "rejected settings": rejected_settings,
    "type errors": type_errors,
    "values": values,
    "network": network,
    "operators": operators,
    "plan bytes": plan_bytes,
    "progress": monitored(stop=False),
    "cancelled": monitored(stop=True),
    "error recorder": recorded_errors,
    "refused plans": refused_plans,
    "two loggers": loggers,
    "flags that build": flags_that_build,
    "sparse builds say nothing": sparse_builds_say_nothing,
    "banner": banner,
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_double_agrees_with_the_real_library(probe, tmp_path):
    extra = {"folder": tmp_path} if hasattr(probe, "needs_folder") else {}
    assert probe(DOUBLE, **extra) == probe(REAL, **extra)

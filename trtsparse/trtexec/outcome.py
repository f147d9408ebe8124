"""What is printed and written about an engine and its outputs: layers, profiles, files, accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trtsparse.bench.measure import measure
from trtsparse.bench.records import Measurement
from trtsparse.builder.logs import logger_for
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.engines.tensorrt import TensorRTEngine
from trtsparse.errors import EngineError, FeedError, UnsupportedOptionError
from trtsparse.files import atomic
from trtsparse.precision.specs import TensorSpec
from trtsparse.trtexec.blocks import ALGORITHMS
from trtsparse.trtexec.exports import dims, outputs_json, profile_json, times_json
from trtsparse.trtexec.infer import ONCE, Loaded
from trtsparse.trtexec.inputs import read_input
from trtsparse.trtexec.layers import inspect_engine, inspect_onnx, inspect_products, product_lines
from trtsparse.trtexec.log import Printer
from trtsparse.trtexec.options import AccuracyOptions, InferenceOptions, ReportingOptions
from trtsparse.trtexec.report import print_outputs, print_profile
from trtsparse.trtexec.values import find

__all__ = ["check_accuracy", "print_engine", "report_layers", "report_outputs", "tell_layers"]

_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8"}
_LONGEST_NAME = 150


def tell_layers(loaded: Loaded, reporting: ReportingOptions, out: Printer, files: list[Path]) -> str | None:
    """Print and write what the engine tells about its layers.

    Args:
        loaded: The engine.
        reporting: What to print and write.
        out: Where to print.
        files: Gets the file that was written.

    Returns:
        The JSON; None where it is not asked for.

    Raises:
        EngineError: The engine tells nothing.
        OutputError: The file cannot be written.
    """
    if not reporting.wants_layer_info:
        return None
    text, shown = _inspected(loaded)
    if reporting.dump_layer_info:
        out.info("Layer Information:")
        out.info(shown.rstrip())
    if reporting.export_layer_info:
        _write(reporting.export_layer_info, text, files)
    return text


def _inspected(loaded: Loaded) -> tuple[str, str]:
    """What there is to know about the layers, as JSON and for people."""
    engine = loaded.engine
    if isinstance(engine, OnnxRuntimeEngine) and loaded.model is not None:
        return (told := inspect_onnx(loaded.model)), told
    if isinstance(engine, (OnnxRuntimeEngine, TensorRTEngine)):
        trt, raw = loaded.module, loaded.plan.raw
        return inspect_engine(trt, raw), inspect_engine(trt, raw, line=True)
    bindings = [spec.name for spec in (*engine.inputs, *engine.outputs)]
    return inspect_products(engine.used, bindings), product_lines(engine.used)


def print_engine(loaded: Loaded, reporting: ReportingOptions, out: Printer) -> None:
    """Print the optimization profiles and what can be refitted, if asked for.

    Raises:
        UnsupportedOptionError: The engine is not one that has them, or was built without --refit.
    """
    if reporting.dump_optimization_profile:
        out.info("Optimization Profile Information:")
        for index, profile in enumerate(loaded.on_gpu.profiles):
            for name, (low, usual, high) in profile.items():
                out.info(
                    f"Model input {name} (profile {index}): min={_dims(low)}, opt={_dims(usual)}, max={_dims(high)}"
                )
    if reporting.dump_refit:
        if not loaded.plan.raw.refittable:
            raise UnsupportedOptionError(
                "the engine cannot be refitted", where="--dumpRefit", fix="build it with --refit"
            )
        refitter = loaded.module.Refitter(loaded.plan.raw, logger_for(loaded.module))
        for name, role in zip(*refitter.get_all(), strict=True):
            out.info(f"{name} {getattr(role, 'name', role)}")


def report_outputs(
    measured: Measurement,
    feeds: Mapping[str, np.ndarray],
    reporting: ReportingOptions,
    out: Printer,
    files: list[Path],
) -> None:
    """Print and write times and outputs of a run, as asked for.

    Raises:
        OutputError: A file cannot be written.
    """
    if reporting.export_times:
        _write(reporting.export_times, times_json(measured.queries, place=measured.place), files)
        if measured.place == "cpu":
            out.info(f"{reporting.export_times} has the times of the execution only: nothing is copied or enqueued")
    if reporting.dump_output:
        print_outputs(out, measured.outputs)
    if reporting.dump_raw_bindings:
        out.info("Dumping I/O Bindings to RAW Files:")
        for kind, arrays in (("input", feeds), ("output", measured.outputs)):
            for name, array in arrays.items():
                _write_raw(kind, name, array, out, files)
    if reporting.export_output:
        _write(reporting.export_output, outputs_json(measured.outputs), files)
        for name, array in measured.outputs.items():
            wrong = int(array.size - np.isfinite(array).sum()) if array.dtype.kind not in "OSUbiu" else 0
            if wrong:
                out.warning(
                    f"Output {name} has {wrong} values that are not finite: {reporting.export_output} holds NaN or "
                    "Infinity, which Python's json reads and strict JSON does not have"
                )


def report_layers(measured: Measurement, reporting: ReportingOptions, out: Printer, files: list[Path]) -> None:
    """Print and write the times of the layers, if asked for.

    Raises:
        EngineError: There are none.
        OutputError: The file cannot be written.
    """
    if not reporting.wants_profile:
        return
    if not measured.layers:
        raise EngineError(
            "the layers were not timed", where=measured.engine, got="; ".join(measured.notes) or "no reason given"
        )
    if reporting.dump_profile:
        print_profile(out, measured.layers, count=measured.profile_queries)
    if reporting.export_profile:
        _write(reporting.export_profile, profile_json(measured.layers, count=measured.profile_queries), files)


def check_accuracy(loaded: Loaded, asked: InferenceOptions, out: Printer) -> bool:
    """Run the inputs of each reference pair and compare the outputs with the pair's.

    Returns:
        Whether every loss is below the threshold.

    Raises:
        FeedError: A file is missing or does not fit.
    """
    passed, accuracy = True, asked.accuracy
    for pair in (pair for pair in asked.pairs if pair.outputs):
        feeds = {
            spec.name: _reference(pair.inputs, spec, find(asked.shapes, spec.name), "--loadInputs")
            for spec in loaded.engine.inputs
        }
        with loaded.current():
            outputs = measure(loaded.runnable, feeds, options=ONCE, cuda=loaded.cuda or "auto").outputs
        for name, got in outputs.items():
            if find(pair.outputs, name) is None:
                continue
            spec = TensorSpec(name, got.dtype, got.shape)
            found = loss(got, _reference(pair.outputs, spec, None, "--loadRefOutputs"), accuracy)
            limit = accuracy.threshold or 0.0
            fails = not found < limit  # also where it is not a number
            more = f" [FAIL: >= threshold {limit:g}]" if fails else ""
            out.info(f"Accuracy loss for tensor {name} ({ALGORITHMS[accuracy.algorithm]}): {found:.6f}{more}")
            passed = passed and not fails
    if not passed:
        out.error("Accuracy validation FAILED: one or more tensors exceeded the threshold.")
    return passed


def loss(got: np.ndarray, reference: np.ndarray, asked: AccuracyOptions) -> float:
    """How far outputs are from what they should be, by one of trtexec's measures.

    Example:
        >>> loss(np.array([1.0, 2.5]), np.array([1.0, 2.0]), AccuracyOptions("lInf"))
        0.5
    """
    a, b = got.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    error = np.abs(a - b)
    if asked.algorithm == "l0":
        return float(np.mean(~(error <= asked.atol + asked.rtol * np.abs(b))))
    if asked.algorithm == "lInf":
        return float(error.max())
    if asked.algorithm in ("l1", "l2"):
        return float(np.mean(error if asked.algorithm == "l1" else error**2))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 if norms < 1e-12 else 1.0 - float(a @ b) / norms


def _reference(files: Mapping[str, str], spec: TensorSpec, shape: Sequence[int] | None, flag: str) -> np.ndarray:
    path = find(files, spec.name)
    if path is None:
        raise FeedError(
            "a reference needs the files of all inputs",
            where=flag,
            got=", ".join(files),
            expected=f"{spec.name}:file",
        )
    return read_input(path, spec, shape, flag=flag)


def _dims(shape: Sequence[int]) -> str:
    return dims(shape) or "scalar"


def _write(path: str, text: str, files: list[Path]) -> None:
    atomic.write(path, text)
    files.append(Path(path))


def _write_raw(kind: str, name: str, array: np.ndarray, out: Printer, files: list[Path]) -> None:
    """A file in the working folder, named as trtexec names it."""
    dtype = _TYPES.get(str(array.dtype), str(array.dtype))
    shape = ".".join(map(str, array.shape))
    file = re.sub(r"[^0-9A-Za-z._,-]", "_", f"{name}.{kind}.{shape}.{dtype}.raw")
    if len(file) > _LONGEST_NAME:
        half = (_LONGEST_NAME - 3) // 2
        file = f"{file[:half]}...{file[-half:]}"
    out.info(f"Writing file for {kind} binding {name} (with datatype {dtype} and dimensions {shape}) to {file}")
    atomic.write(file, np.ascontiguousarray(array).tobytes())
    files.append(Path(file))

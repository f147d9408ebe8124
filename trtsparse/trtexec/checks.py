"""What is checked before anything that takes long: the engine, the files, the GPU."""

from __future__ import annotations

from pathlib import Path

from trtsparse.errors import ConfigError, DeviceError, PlanError
from trtsparse.trtexec.log import Library
from trtsparse.trtexec.options import EngineName, TrtexecOptions

__all__ = ["check_writable", "engine_of", "no_gpu", "wants_engine"]

_ZIP = b"PK\x03\x04"


def engine_of(options: TrtexecOptions) -> EngineName:
    """What executes: as the command line says, or as the file does that it loads.

    Raises:
        ConfigError: The engine that was named does not execute such a file.
        PlanError: There is no such file.
    """
    load, engine = options.build.load_engine, options.engine
    if load is None:
        return engine
    if engine == "onnxruntime":
        raise ConfigError(
            "ONNX Runtime cannot execute a plan", where="--engine=onnxruntime", got="--loadEngine", expected="--onnx"
        )
    saved = _is_saved(load)
    if saved and engine == "tensorrt":
        raise ConfigError(
            "TensorRT cannot execute a saved engine of cuSPARSELt",
            where=f"--loadEngine={load}",
            fix="leave --engine=tensorrt out",
        )
    if engine == "cusparselt" and not saved:
        if not Path(load).is_file():
            raise PlanError("there is no such saved engine", where=f"--loadEngine={load}")
        raise ConfigError(
            "this is no saved engine of cuSPARSELt",
            where=f"--loadEngine={load}",
            expected="what --onnx=<file> --engine=cusparselt --saveEngine=<file> wrote",
            fix="leave --engine=cusparselt out if it is a plan of TensorRT",
        )
    return "cusparselt" if saved else engine


def _is_saved(path: str) -> bool:
    """Whether a file is a saved engine; the module that knows is only imported for what may be one."""
    try:
        with Path(path).open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return False
    except OSError:
        return False
    from trtsparse.engines.cusparselt.saved import is_saved

    return is_saved(path)


def wants_engine(options: TrtexecOptions) -> bool:
    """Whether the engine is to be asked about itself, without running it."""
    reporting = options.reporting
    return reporting.wants_layer_info or reporting.dump_optimization_profile or reporting.dump_refit


def check_writable(options: TrtexecOptions) -> None:
    """Refuse files that cannot, or must not, be written before minutes of building, not after.

    Raises:
        OutputError: One cannot.
        ConfigError: One is the model, or one of its external data files.
        ModelError: The model cannot be read.
    """
    from trtsparse.files import atomic

    reporting = options.reporting
    paths = (
        options.build.save_engine,
        reporting.export_times,
        reporting.export_output,
        reporting.export_profile,
        reporting.export_layer_info,
    )
    wanted = [Path(path) for path in paths if path is not None]
    if options.build.save_engine is not None and options.engine != "cusparselt":
        wanted.append(Path(f"{options.build.save_engine}.json"))
    for path in wanted:
        atomic.check_writable(path)
    if options.build.timing_cache is not None:
        wanted.append(Path(options.build.timing_cache))  # one that cannot be written does not end a build
    if options.model.onnx is not None and any(path.exists() for path in wanted):
        from trtsparse.builder.engine import check_apart
        from trtsparse.files.model import OnnxModel

        check_apart(OnnxModel.open(options.model.onnx), wanted)


def no_gpu(options: TrtexecOptions, library: Library) -> DeviceError:
    """That there is no GPU, and what can be done without."""
    onnx = "--onnx=<file> --engine=onnxruntime runs the model on the CPU"
    if options.engine == "cusparselt":
        expected, fix = "an NVIDIA GPU of compute capability 8.0 (Ampere) or newer", onnx
    else:
        expected = f"an NVIDIA GPU that the plan was built for, and {library}"
        fix = f"--skipInference stops after the build; {onnx}"
    return DeviceError(
        "there is no GPU to run the engine on", got="no GPU that CUDA can use", expected=expected, fix=fix
    )

"""``--engine=cusparselt``: makes or loads the engine, has its kernels chosen, saves it.

Kernels are chosen when a shape is first executed, so what a build is elsewhere is one execution here, in each shape
that the command line names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from onnx import parser

from trtsparse.bench.measure import measure
from trtsparse.builder.config import COMPILED_FROM
from trtsparse.builder.precision import stored_precision
from trtsparse.cuda.base import Cuda, current, open_cuda
from trtsparse.engines.cusparselt.engine import CusparseltEngine
from trtsparse.engines.cusparselt.saved import read_saved
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.specs import FeedChecker, input_specs
from trtsparse.report.progress import progress_bar
from trtsparse.sparsity.prune import prune
from trtsparse.trtexec.infer import ONCE, Loaded, make_feeds, time_loading
from trtsparse.trtexec.layers import product_lines
from trtsparse.trtexec.log import Printer
from trtsparse.trtexec.options import InferenceOptions, ReferencePair, TrtexecOptions
from trtsparse.trtexec.report import number
from trtsparse.tune import cache, dense, sparse
from trtsparse.tune.choose import Chooser
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel

__all__ = ["WARNINGS", "Asked", "LoadedModel", "choose_kernels", "load", "open_checked", "save", "tell_saved",
           "tell_versions", "time_saved"]  # fmt: skip

WARNINGS = (cache.CacheWarning, RuntimeWarning)
"""Of the engine and the tuner."""
_MIB = 1 << 20
_ANY = '<ir_version: 8, opset_import: ["": 17]> any (float[1] x) => (float[1] y) { y = Identity(x) }'
_CACHE = cache.SCHEMA.partition("/")[0].encode()


class Asked:
    """Has the tuner choose the kernel of each product.

    Args:
        timings: The file with known times; None for the one in the user's cache folder.
        device: The GPU's number.

    Attributes:
        eligible: A sparse kernel was allowed for some product, whose weight is eligible and compliant.
    """

    def __init__(self, timings: str | None, *, device: int) -> None:
        self._choose = Chooser(device=device, cache=cache.Cache(timings))
        self.eligible = False

    def __call__(self, gemm: Gemm, compliant: bool) -> Kernel | None:  # noqa: FBT001 - as the engine calls it
        """The fastest kernel that may be used."""
        self.eligible = self.eligible or compliant
        return self._choose(gemm, compliant)

    def close(self) -> None:
        """End the tuner's process, which holds memory of the GPU; a new product starts it again."""
        self._choose.close()


@dataclass(frozen=True)
class LoadedModel(Loaded):
    """An engine of cuSPARSELt.

    Attributes:
        engine: It.
        asked: What chooses its kernels; None for a saved engine, which brings them.
    """

    engine: CusparseltEngine
    asked: Asked | None = None


def open_checked(options: TrtexecOptions) -> OnnxModel:
    """The model, or that of the saved engine, once all is checked that can be without a GPU.

    Raises:
        ModelError: There is no such model, or it cannot be read.
        PlanError: The saved engine is damaged, or of a later version.
        ConfigError: ``--int8`` for a model without Q/DQ nodes, ``--timingCacheFile`` is something else, or a flag
            names an input that the model does not have.
        FeedError: A file of ``--loadInputs`` cannot be read, or it or a shape does not fit the model.
        UnsupportedOptionError: ``--timeDeserialize`` without a saved engine.
    """
    saved, asked = options.build.load_engine, options.inference
    if saved is None and asked.time_deserialize:
        raise UnsupportedOptionError(
            "only saved engines are deserialized",
            where="--timeDeserialize",
            fix="--saveEngine=<file>, then --loadEngine=<file> --timeDeserialize",
        )
    model = OnnxModel.open(options.model.onnx or "") if saved is None else read_saved(saved).model
    _check_quantized(model, options)
    _check_timings(options.build.timing_cache)
    _check_inputs(model, options)
    return model


def load(model: OnnxModel, options: TrtexecOptions, out: Printer, *, cuda: str | Cuda = "auto") -> LoadedModel:
    """Make the engine of a model, or load a saved one.

    Args:
        model: From `open_checked`.
        options: The command line.
        out: Where to print.
        cuda: The CUDA binding.

    Raises:
        TrtSparseError: As `open_cuda`, `prune` and `CusparseltEngine`.
    """
    saved = options.build.load_engine
    if saved is None:
        return _load_model(model, options, out, cuda)
    provider = open_cuda(cuda, device=options.system.device)
    started = time.perf_counter()
    with current(provider):
        engine = CusparseltEngine(saved, device=provider.device)
    out.info(f"Engine deserialized in {number(time.perf_counter() - started)} sec.")
    return LoadedModel(engine, engine, provider)


def _load_model(model: OnnxModel, options: TrtexecOptions, out: Printer, cuda: str | Cuda) -> LoadedModel:
    build = options.build
    provider = open_cuda(cuda, device=options.system.device)
    with current(provider):
        if build.sparsity == "force":
            CusparseltEngine(parser.parse_model(_ANY), device=provider.device).close()  # tells what is missing
            model = _pruned(model, out)
        started = time.perf_counter()
        asked = Asked(build.timing_cache, device=provider.device)
        given = "typed" if build.strongly_typed else build.precision if build.precision != "tf32" else None
        compiled = (build.optimization_level or 0) >= COMPILED_FROM
        engine = CusparseltEngine(
            model,
            device=provider.device,
            precision=given,
            compiled=compiled,
            use_sparse=build.sparsity != "disable",
            choose=asked,
        )
    out.info(f"Engine loaded in {number(time.perf_counter() - started)} sec.")
    if compiled:
        out.info("Compiling what surrounds the products when a shape is first executed")
    _tell_precision(model, options, out)
    return LoadedModel(engine, engine, provider, model, asked)


def choose_kernels(loaded: LoadedModel, options: TrtexecOptions, out: Printer) -> None:
    """Execute once in each shape of the command line, and print what was chosen.

    Raises:
        TrtSparseError: As `make_feeds` and `measure`.
    """
    asked = loaded.asked
    started = time.perf_counter()
    if asked is not None:
        out.info("Choosing kernels: those that were not timed on such a GPU before are timed now")
    with progress_bar("choosing kernels"), closing(asked) if asked is not None else nullcontext():
        for inference in _executions(options):
            feeds = make_feeds(loaded, replace(options, inference=inference), Printer())
            measure(loaded.engine, feeds, options=ONCE, cuda=loaded.cuda or "auto")
    used = loaded.engine.used
    count = sum(one.kernel is not None and one.kernel.kind == "sparse" for one in used)
    if asked is not None:
        out.info(f"Engine built in {number(time.perf_counter() - started)} sec.")
    out.info(f"Sparsity: {len(used)} products with weights, {count} of these chosen to run sparse")
    if used:
        out.detail(product_lines(used))
    if asked is not None and not asked.eligible:
        _warn_dense(options, out, products=len(used))


def save(loaded: LoadedModel, path: str, out: Printer) -> Path:
    """Write the engine with the kernels that were chosen, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with loaded.current():
        loaded.engine.save(path)
    out.info(f"Created engine with size: {number(Path(path).stat().st_size / _MIB)} MiB")
    out.info(f"Saved engine to {path}")
    return Path(path)


def time_saved(options: TrtexecOptions, out: Printer, *, cuda: str | Cuda = "auto") -> None:
    """Measure how long loading a saved engine takes, which `open_checked` has made sure of.

    Raises:
        TrtSparseError: As `load`.
    """
    saved = options.build.load_engine or ""
    provider = open_cuda(cuda, device=options.system.device)
    with current(provider):
        time_loading(partial(CusparseltEngine, saved, device=provider.device), out, nbytes=Path(saved).stat().st_size)


def tell_saved(path: str, out: Printer) -> None:
    """Print what a saved engine says about itself.

    Raises:
        PlanError: It is damaged, or of a later version.
    """
    saved = read_saved(path)
    facts = ", ".join(f"{name} {fact}" for name, fact in saved.made_on.items())
    out.info(f"Engine was saved in {saved.precision}, with {len(saved.kernels)} kernels for: {facts}")


def tell_versions(options: TrtexecOptions, out: Printer, *, cuda: str | Cuda = "auto") -> None:
    """Print the versions of the libraries that execute.

    Raises:
        TrtSparseError: As `open_cuda`.
    """
    provider = open_cuda(cuda, device=options.system.device)
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    out.info()
    out.info(f"PyTorch version: {torch}")
    for name, library in {"cuSPARSELt": sparse, "cuBLASLt": dense}.items():
        try:
            with current(provider):
                version = library.version(provider.device)
        except (MissingDependencyError, DeviceError):
            version = "not installed"
        out.info(f"{name} version: {version}")


def _check_quantized(model: OnnxModel, options: TrtexecOptions) -> None:
    if options.build.quantized and stored_precision(model) != "int8":
        raise ConfigError(
            "--int8 is refused: this engine takes INT8 from the model's Q/DQ nodes, and it has none",
            where=model.name,
            fix="quantize the model first, such as with trtsparse.precision.int8.to_int8; or leave --int8 out",
        )


def _check_timings(path: str | None) -> None:
    """The tuner writes such a file anew if it cannot read it: that must not happen to one of TensorRT's."""
    file = None if path is None else Path(path)
    if file is None or not file.is_file():
        return
    with file.open("rb") as opened:
        begin = opened.read(64)
    if begin and _CACHE not in begin:
        raise ConfigError(
            "this is no file of this engine's timings",
            where=f"--timingCacheFile={path}",
            fix="name another file; TensorRT's own timing caches are for TensorRT",
        )


def _check_inputs(model: OnnxModel, options: TrtexecOptions) -> None:
    """Make the inputs of each execution to come, and look whether the model takes them."""
    specs = input_specs(model)
    takes: Any = SimpleNamespace(engine=SimpleNamespace(inputs=specs), model=model)
    fits = FeedChecker(specs)
    for inference in _executions(options):
        fits(make_feeds(takes, replace(options, inference=inference), Printer()))


def _pruned(model: OnnxModel, out: Printer) -> OnnxModel:
    with progress_bar("pruning") as progress:
        done = prune(model, allow_unknown_operators=True, progress=progress)
    out.info(f"Pruned {len(done.tensors)} weights to {done.pattern}: {done.zeroed} values became zero")
    return done.model


def _tell_precision(model: OnnxModel, options: TrtexecOptions, out: Printer) -> None:
    build = options.build
    if build.strongly_typed:
        out.info("Precision: the model's own types")
    elif build.precision == "fp16":
        out.info("Precision: FP32 values are computed in FP16, except where that would overflow")
    elif build.precision == "bf16":
        out.info("Precision: FP32 values are computed in BF16")
    elif stored_precision(model) in ("fp32", "int8"):
        out.warning(
            "Precision: none is asked for, and this engine computes FP32 values in BF16 then; --fp16 is the other "
            "choice, and --stronglyTyped leaves the model's own types"
        )
    else:
        out.info("Precision: as the model is stored; what it has in FP32 is computed in BF16")


def _executions(options: TrtexecOptions) -> Iterator[InferenceOptions]:
    """The inputs to measure with, and random ones in the opt shapes of each profile."""
    asked = options.inference
    yield asked
    for profile in options.build.profiles:
        shapes = {name: triple[1] for name, triple in profile.items()}
        if shapes and shapes != asked.shapes:
            yield replace(asked, shapes=shapes, pairs=(ReferencePair(),))


def _warn_dense(options: TrtexecOptions, out: Printer, *, products: int) -> None:
    """Say why nothing can run sparse."""
    sparsity = options.build.sparsity
    if sparsity == "disable":
        return
    if not products:
        text = "sparsity is on, but no product with a weight is in FP16, BF16 or INT8: nothing can run sparse"
        fix = "; leave --stronglyTyped out" if options.build.strongly_typed else ""
    else:
        text = "sparsity is on, but no product has a weight that is eligible and compliant: nothing can run sparse"
        fix = "" if sparsity == "force" else "; prune the model first, or add --sparsity=force"
    out.warning(text + fix)

"""The kernels of cuBLASLt and cuSPARSELt on one GPU."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trtsparse.cuda.base import Cuda
from trtsparse.errors import CudaError
from trtsparse.tune import dense, sparse
from trtsparse.tune.data import Check, Reference, gelu_scale, scale
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.library import Candidate
from trtsparse.tune.operands import Operands
from trtsparse.tune.sparse import Configuration, Plan, Sparse
from trtsparse.tune.stopwatch import Enqueue, Stopwatch

__all__ = ["CudaLibrary"]

_WORKSPACE_NBYTES = 64 << 20
_L2_NBYTES = 64 << 20
"""Where the device does not say: more than those have that these libraries were made for."""


class CudaLibrary:
    """cuBLASLt and cuSPARSELt through nvmath-python, for as long as the process lives.

    Args:
        cuda: The device.
        facts: Of the device; None for asking CUDA's runtime.

    Raises:
        MissingDependencyError: nvmath-python is not installed.
    """

    def __init__(self, cuda: Cuda, *, facts: dict[str, Any] | None = None) -> None:
        self.cuda = cuda
        cuda.enter()
        self._facts = device_facts(cuda) if facts is None else dict(facts)
        self.l2_nbytes = int(self._facts.pop("l2_nbytes", 0) or _L2_NBYTES)
        self._facts |= {"cublaslt": dense.version(), "cusparselt": sparse.version()}
        self.stream = cuda.create_stream()

    def facts(self) -> dict[str, str]:
        """See `Library`."""
        return dict(self._facts)

    def open(self, gemm: Gemm) -> CudaProblem:
        """See `Library`."""
        return CudaProblem(self, gemm)

    def healthy(self) -> bool:
        """See `Library`."""
        try:
            self.cuda.synchronize_device()
        except CudaError:
            return False
        return True


def device_facts(cuda: Cuda) -> dict[str, Any]:
    """Name, compute capability, driver and cache of a GPU."""
    from cuda.bindings import runtime

    _, properties = runtime.cudaGetDeviceProperties(cuda.device)
    name = properties.name
    return {
        "gpu": (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver() or str(runtime.cudaDriverGetVersion()[1]),
        "l2_nbytes": int(properties.l2CacheSize),
    }


def _driver() -> str:
    """The driver's version as people know it; "" where NVML's binding is not installed."""
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
        found = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return ""
    return found.decode() if isinstance(found, bytes) else str(found)


class _DenseKernels:
    """Those of cuBLASLt for one product."""

    def __init__(self, gemm: Gemm, operands: Operands, stream: int) -> None:
        self.gemm, self._operands, self._stream = gemm, operands, stream
        fast = (False, True) if gemm.dtype == "fp8_e4m3" else (False,)
        self._undo = contextlib.ExitStack()
        bias = operands.bias_as(gemm.bias_type)
        self._made = {flag: Dense(gemm, alpha=scale(gemm), bias=bias, fast_accumulation=flag) for flag in fast}
        for made in self._made.values():
            self._undo.callback(made.close)

    def candidates(self) -> list[Candidate]:
        """One for each result of the heuristics."""
        found = []
        for flag, made in self._made.items():
            for at, algorithm in enumerate(made.algorithms(workspace_nbytes=_WORKSPACE_NBYTES)):
                name = f"{at}{' fast accumulation' if flag else ''}"
                found.append(Candidate("dense", name, parameters=dataclasses.asdict(algorithm)))
        return found

    def opened(self, candidate: Candidate) -> Enqueue:
        """The candidate, ready to be enqueued."""
        algorithm = Algorithm(**candidate.parameters)
        runner = self._made[algorithm.fast_accumulation].runner(algorithm)
        scratch = self._operands.scratch("workspace", runner.workspace_nbytes)
        sets, stream = self._operands.sets, self._stream

        def enqueue(at: int) -> None:
            one = sets[at % len(sets)]
            runner.enqueue(x=one.x, w=one.w, y=one.y, c=one.c, workspace=scratch, stream=stream)

        return enqueue

    def close(self) -> None:
        self._undo.close()


class _SparseKernels:
    """Those of cuSPARSELt for one product."""

    def __init__(self, gemm: Gemm, operands: Operands, stream: int) -> None:
        self.gemm, self._operands, self._stream = gemm, operands, stream
        alphas = 0
        if gemm.input_type.exact and gemm.out_dtype != "int32":  # engines scale each channel by itself
            factors = np.full(gemm.n, scale(gemm), np.float32)
            alphas = operands.put(factors, factors.nbytes)
        bias = operands.bias_as(gemm.bias_type)
        self._made = Sparse(gemm, alpha=scale(gemm), bias=bias, alphas=alphas, gelu_scale=gelu_scale(gemm))
        self.compressed_nbytes, scratch = self._made.compressed_nbytes()
        buffer = operands.scratch("compress", scratch)
        for one in operands.sets:
            one.packed = operands.allocate(self.compressed_nbytes)
            self._made.compress(w=one.w, compressed=one.packed, scratch=buffer, stream=stream)
        self._plans: dict[Candidate, Plan] = {}

    def candidates(self) -> list[Candidate]:
        """One for each CONFIG_ID, the library's default first."""
        default, rest = self._made.configurations()
        return [_sparse_candidate(one) for one in (default, *(other for other in rest if other != default))]

    def opened(self, candidate: Candidate) -> Enqueue:
        """The candidate, ready to be enqueued."""
        plan = self._plans.get(candidate)
        if plan is None:  # some take a third of a second to make
            plan = self._plans[candidate] = self._made.runner(Configuration(**candidate.parameters))
        scratch = self._operands.scratch("workspace", plan.workspace_nbytes)
        sets, stream = self._operands.sets, self._stream

        def enqueue(at: int) -> None:
            one = sets[at % len(sets)]
            plan.enqueue(x=one.x, w=one.packed, y=one.y, c=one.c, workspace=scratch, stream=stream)

        return enqueue

    def close(self) -> None:
        for plan in self._plans.values():
            plan.close()
        self._made.close()


def _sparse_candidate(one: Configuration) -> Candidate:
    return Candidate("sparse", one.name, one.form, dataclasses.asdict(one))


class CudaProblem:
    """See `Problem`."""

    def __init__(self, library: CudaLibrary, gemm: Gemm) -> None:
        self._cuda, self._stream, self.gemm = library.cuda, library.stream, gemm
        self._undo = contextlib.ExitStack()
        self._notes: dict[str, Any] = {}
        self._best: dict[str, float] = {}
        form = dense_form(gemm)
        nbytes = gemm.padded_m * gemm.n * max(gemm.output_type.nbytes, form.output_type.nbytes)
        try:
            operands = Operands(self._cuda, self._stream, gemm, l2_nbytes=library.l2_nbytes, y_nbytes=nbytes)
            self._undo.callback(operands.close)
            self._operands = operands
            self._stopwatch = Stopwatch(self._cuda, self._stream)
            self._undo.callback(self._stopwatch.close)
            self._kernels: dict[str, _DenseKernels | _SparseKernels] = {}
            self._open("dense", _DenseKernels, form)
            self._open("sparse", _SparseKernels, gemm)
            self._cuda.synchronize(self._stream)
            of = (operands.x, operands.w, operands.bias, operands.c)
            self._references = {
                "dense": Reference(form, *of),
                "sparse": Reference(gemm, *of, factor=gelu_scale(gemm)),
            }
        except BaseException:
            self.close()
            raise

    def _open(self, kind: str, make: type[_DenseKernels | _SparseKernels], gemm: Gemm) -> None:
        try:
            made = make(gemm, self._operands, self._stream)
        except Refused as refused:
            self._notes[f"no_{kind}"] = str(refused)
            return
        self._undo.callback(made.close)
        self._kernels[kind] = made

    def candidates(self) -> list[Candidate]:
        """See `Problem`."""
        return [candidate for kind in self._kernels for candidate in self._candidates(kind)]

    def _candidates(self, kind: str) -> list[Candidate]:
        try:
            return self._kernels[kind].candidates()
        except Refused as refused:
            self._notes[f"no_{kind}"] = str(refused)
            return []

    def variants(self, candidate: Candidate) -> list[Candidate]:
        """See `Problem`."""
        if candidate.kind == "dense":
            return []
        return [_sparse_candidate(one) for one in Configuration(**candidate.parameters).variants(self.gemm.k)]

    def screen(self, candidate: Candidate) -> float:
        """See `Problem`."""
        best = self._best.get(candidate.kind, float("inf"))
        taken = self._stopwatch.quick(self._kernels[candidate.kind].opened(candidate), enough_ms=best)
        self._best[candidate.kind] = min(best, taken)
        return taken

    def check(self, candidate: Candidate) -> Check:
        """See `Problem`."""
        kernels = self._kernels[candidate.kind]
        output = kernels.gemm.output_type
        self._operands.poison(output)
        kernels.opened(candidate)(0)
        return self._references[candidate.kind].check(self._operands.read(output, (kernels.gemm.m, self.gemm.n)))

    def race(
        self, candidates: Sequence[Candidate], rounds: int, before: Callable[[Candidate], None]
    ) -> list[list[float]]:
        """See `Problem`."""
        opened = [self._kernels[one.kind].opened(one) for one in candidates]
        return self._stopwatch.race(opened, rounds, before=lambda at: before(candidates[at]))

    def facts(self) -> dict[str, Any]:
        """See `Problem`."""
        facts = {"dense_nbytes": self._operands.w.nbytes, **self._notes}
        for kernels in self._kernels.values():
            if isinstance(kernels, _SparseKernels):
                facts["compressed_nbytes"] = kernels.compressed_nbytes
            elif kernels.gemm.out_dtype != self.gemm.out_dtype:
                facts["dense_output"] = kernels.gemm.out_dtype
        return facts

    def close(self) -> None:
        """See `Problem`."""
        self._undo.close()

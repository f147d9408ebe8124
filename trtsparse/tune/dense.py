"""Dense products through cuBLASLt, with every algorithm that its heuristics offer.

Row-major ``y = x W^T`` is column-major ``y^T = W x^T``: ``W`` is the first operand, transposed, as cuBLASLt's INT8
and FP8 kernels require. Calls and attributes: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trtsparse.tune.gemm import DTYPES, Gemm, Refused
from trtsparse.tune.handles import start

__all__ = ["Algorithm", "Dense", "dense_form", "version"]

_TF32, _FLOAT, _INTEGER = 77, 68, 72  # cublasComputeType_t
_COUNT = 200
"""More than the heuristics were ever seen to return."""
_DATA_NBYTES = 64  # of cublasLtMatmulAlgo_t


@functools.cache
def _library(device: int) -> tuple[Any, int]:  # noqa: ARG001 - a handle belongs to a device
    """The binding and its handle for the current device, whose number is given."""
    return start("cuBLASLt", "cublasLt", create="create", error="cuBLASLtError")


def version(device: int = 0) -> str:
    """Of the installed cuBLASLt, such as "13.1.0"; the device is current."""
    number = int(_library(device)[0].get_version())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def dense_form(gemm: Gemm) -> Gemm:
    """The nearest product that cuBLASLt has: INT8 to INT8 or INT32 only, 8-bit ones with ``padded_m`` rows."""
    out = "int8" if gemm.dtype == "int8" and gemm.out_dtype in ("fp16", "bf16") else gemm.out_dtype
    return replace(gemm, m=gemm.padded_m if gemm.input_type.nbytes == 1 else gemm.m, out_dtype=out)


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a product.

    Attributes:
        data: cuBLASLt's own description, all 64 bytes in hexadecimal: the same version makes the same kernel of it.
        fast_accumulation: Of FP8: partial sums stay in the tensor core's few bits.
        workspace_nbytes: Scratch memory that it wants.
    """

    data: str
    fast_accumulation: bool
    workspace_nbytes: int


class Dense:
    """Descriptors of one product; call `close` when done.

    Args:
        gemm: What `dense_form` returned.
        alpha: Factor before the epilogue.
        bias: Address of N values of ``gemm.bias_type`` on the device; 0 without.
        fast_accumulation: For FP8.
        device: The GPU's number; it is current.

    Raises:
        MissingDependencyError: nvmath-python is not installed.
    """

    def __init__(
        self, gemm: Gemm, *, alpha: float = 1.0, bias: int = 0, fast_accumulation: bool = False, device: int = 0
    ) -> None:
        self._lt, self._handle = _library(device)
        self.gemm = gemm
        self._fast = fast_accumulation
        self._offered: set[str] = set()
        with contextlib.ExitStack() as undo:
            self._description = self._describe(undo, bias)
            kind, output = gemm.input_type.cuda, gemm.output_type.cuda
            self._w = self._layout(undo, kind, gemm.k, gemm.n)
            self._x = self._layout(undo, kind, gemm.k, gemm.m)
            self._y = self._layout(undo, output, gemm.n, gemm.m)
            self._undo = undo.pop_all()
        # cuBLASLt reads the factors when it launches: they live as long as we do
        self._factors = np.array([alpha, gemm.has_addend], np.int32 if gemm.out_dtype == "int32" else np.float32)
        self._alpha = self._factors.ctypes.data
        self._beta = self._alpha + 4

    def _describe(self, undo: contextlib.ExitStack, bias: int) -> int:
        lt, gemm = self._lt, self.gemm
        compute = _TF32 if gemm.dtype == "tf32" else _INTEGER if gemm.input_type.exact else _FLOAT
        scale = DTYPES["int32" if gemm.out_dtype == "int32" else "fp32"].cuda
        made = int(lt.matmul_desc_create(compute, scale))
        undo.callback(lt.matmul_desc_destroy, made)
        names = lt.MatmulDescAttribute
        epilogue = [*filter(None, [gemm.activation.upper()]), *(["BIAS"] if gemm.has_bias else [])]
        values: list[tuple[Any, Any]] = [
            (names.TRANSA, np.int32(1)),
            (names.TRANSB, np.int32(0)),
            (names.EPILOGUE, np.uint32(lt.Epilogue["_".join(epilogue) or "DEFAULT"])),
        ]
        if gemm.has_bias:
            values += [(names.BIAS_POINTER, np.int64(bias)), (names.BIAS_DATA_TYPE, np.int32(gemm.bias_type.cuda))]
        if self._fast:
            values.append((names.FAST_ACCUM, np.int8(1)))
        for name, value in values:
            held = np.array([value])
            lt.matmul_desc_set_attribute(made, name, held.ctypes.data, held.nbytes)
        return made

    def _layout(self, undo: contextlib.ExitStack, kind: int, rows: int, columns: int) -> int:
        made = int(self._lt.matrix_layout_create(kind, rows, columns, rows))
        undo.callback(self._lt.matrix_layout_destroy, made)
        return made

    def algorithms(self, *, workspace_nbytes: int) -> list[Algorithm]:
        """What the heuristics offer, the one that cuBLASLt would take first.

        Args:
            workspace_nbytes: The most scratch memory that an algorithm may want.

        Raises:
            Refused: cuBLASLt has no kernel for the product.
        """
        lt = self._lt
        found = np.zeros(_COUNT, lt.matmul_heuristic_result_dtype)
        count = np.zeros(1, np.int32)
        with self._preference(workspace_nbytes) as preference:
            try:
                lt.matmul_algo_get_heuristic(
                    self._handle, self._description, self._w, self._x, self._y, self._y, preference, _COUNT,
                    found.ctypes.data, count.ctypes.data,
                )  # fmt: skip
            except lt.cuBLASLtError as error:
                raise Refused(f"cuBLASLt offers no algorithm: {error}") from error
        offered = [
            Algorithm(result["algo"].tobytes().hex(), self._fast, int(result["workspace_size"]))
            for result in found[: int(count[0])]
            if int(result["state"]) == 0
        ]
        self._offered |= {algorithm.data for algorithm in offered}
        return offered

    @contextlib.contextmanager
    def _preference(self, workspace_nbytes: int) -> Iterator[int]:
        made = self._lt.matmul_preference_create()
        try:
            name = self._lt.MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES
            held = np.array([workspace_nbytes], np.uint64)
            self._lt.matmul_preference_set_attribute(made, name, held.ctypes.data, held.nbytes)
            yield made
        finally:
            self._lt.matmul_preference_destroy(made)

    def runner(self, algorithm: Algorithm) -> Runner:
        """The algorithm, ready to be enqueued.

        Raises:
            Refused: It is not one of this product, GPU and version of cuBLASLt.
        """
        try:
            raw = bytes.fromhex(algorithm.data)
        except ValueError:
            raw = b""
        if len(raw) != _DATA_NBYTES:
            raise Refused("not an algorithm of cuBLASLt")
        data = np.frombuffer(raw, np.uint64).copy()
        if algorithm.data not in self._offered:  # it may come from a file
            self._check(data)
        return Runner(self, algorithm, data)

    def _check(self, data: np.ndarray) -> None:
        lt = self._lt
        result = np.zeros(1, lt.matmul_heuristic_result_dtype)
        try:
            lt.matmul_algo_check(
                self._handle, self._description, self._w, self._x, self._y, self._y, data.ctypes.data,
                result.ctypes.data,
            )  # fmt: skip
        except lt.cuBLASLtError as error:
            raise Refused(f"cuBLASLt does not take the algorithm: {error}") from error

    def enqueue(
        self, algorithm: int, addresses: tuple[int, int, int, int], workspace: tuple[int, int], stream: int
    ) -> None:
        """Enqueue one product; see `Runner.enqueue`."""
        x, w, y, c = addresses
        self._lt.matmul(
            self._handle, self._description, self._alpha, w, self._w, x, self._x, self._beta, c or y, self._y, y,
            self._y, algorithm, workspace[0], workspace[1], stream,
        )  # fmt: skip

    def close(self) -> None:
        """Destroy the descriptors."""
        self._undo.close()


class Runner:
    """One algorithm of a `Dense`."""

    def __init__(self, dense: Dense, algorithm: Algorithm, data: np.ndarray) -> None:
        self.workspace_nbytes = algorithm.workspace_nbytes
        self._dense, self._data = dense, data

    def enqueue(self, *, x: int, w: int, y: int, workspace: int, stream: int, c: int = 0) -> None:
        """Enqueue the product on a stream.

        Args:
            x: Address of (M, K) values.
            w: Of (N, K) values.
            y: Of (M, N) values.
            workspace: Of at least ``workspace_nbytes``.
            stream: Handle.
            c: Of the (M, N) values that are added, if the epilogue adds any.
        """
        self._dense.enqueue(self._data.ctypes.data, (x, w, y, c), (workspace, self.workspace_nbytes), stream)

    def close(self) -> None:
        """Nothing is held beyond the descriptors of the `Dense`."""

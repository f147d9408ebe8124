"""Sparse products through cuSPARSELt, in every configuration that it has.

Row-major ``y = x W^T`` is column-major ``y^T = W x^T`` with the structured ``W`` first; ``W`` as the second operand
has the same kernels. A row-major ``y^T`` has others, 4 % faster for INT8 on an H100, but is the transpose of what the
next operator reads. What the attributes mean: https://docs.nvidia.com/cuda/cusparselt/types.html.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.handles import start

__all__ = ["Configuration", "Plan", "Sparse", "version"]

_ROW, _COLUMN = 2, 1  # cusparseOrder_t
_PLAIN, _TRANSPOSED = 0, 1  # cusparseOperation_t
_ALIGNMENT = 16
_MODES = {"one_kernel": 1, "two_kernels": 2, "heuristic": 3, "data_parallel": 4, "split_k": 5, "stream_k": 6}
SEGMENT_K = -1
"""The split factor that stands for segment-K, which kernels of compute capability 9.0 and 10.x have."""


@functools.cache
def _library(device: int) -> tuple[Any, int]:  # noqa: ARG001 - a handle belongs to a device
    """The binding and its handle for the current device, whose number is given."""
    return start("cuSPARSELt", "cusparseLt", create="init", error="cuSPARSELtError")


def version(device: int = 0) -> str:
    """Of the installed cuSPARSELt, such as "0.8.0"; the device is current."""
    binding, _ = _library(device)
    return ".".join(str(binding.get_property(part)) for part in range(3))


@contextlib.contextmanager
def _refusals(lt: Any) -> Iterator[None]:
    """What the library answers, in words."""
    try:
        yield
    except lt.cuSPARSELtError as error:
        status = getattr(error, "status", None)
        name = str(error) if status is None else lt.get_error_string(status)
        raise Refused(f"cuSPARSELt: {name}") from error


@dataclass(frozen=True)
class Configuration:
    """One way to compute a product.

    Attributes:
        config: The library's CONFIG_ID; -1 for the one that it takes by default.
        split_k: Into how many parts the reduction is split; `SEGMENT_K` for segment-K.
        mode: How it is split, of the names in this module; "" for the library's default.
    """

    config: int
    split_k: int = 1
    mode: str = ""

    @property
    def name(self) -> str:
        """Names it among the configurations of a product."""
        return f"config {self.config} {self.form}".strip()

    @property
    def form(self) -> str:
        """How the reduction is split; "" where it is not."""
        split = {1: "", SEGMENT_K: "segment_k"}.get(self.split_k, f"split {self.split_k}")
        return f"{split} {self.mode}".strip()

    def variants(self, k: int) -> Iterator[Configuration]:
        """The same kernel with the reduction split in other ways, for a reduction of length ``k``."""
        yield Configuration(self.config, SEGMENT_K)
        for mode in ("stream_k", "data_parallel", "heuristic"):
            yield Configuration(self.config, 1, mode)
        for parts in (2, 4, 8):
            if k // parts >= 512:
                for mode in ("one_kernel", "two_kernels", "split_k"):
                    yield Configuration(self.config, parts, mode)


class Sparse:
    """Descriptors of one product; call `close` when done.

    Args:
        gemm: Its M is padded to ``gemm.padded_m``: ``x`` and ``y`` have that many rows.
        alpha: Factor before the epilogue.
        bias: Address of N values of ``gemm.bias_type`` on the device; 0 without.
        alphas: Address of N float32 values on the device, a factor for each output channel in place of ``alpha``; 0
            without. INT8 products only.
        gelu_scale: Factor after a GELU.
        device: The GPU's number; it is current.

    Raises:
        MissingDependencyError: nvmath-python is not installed.
        Refused: cuSPARSELt does not take the product.
    """

    def __init__(
        self,
        gemm: Gemm,
        *,
        alpha: float = 1.0,
        bias: int = 0,
        alphas: int = 0,
        gelu_scale: float = 1.0,
        device: int = 0,
    ) -> None:
        self._lt, self._handle = _library(device)
        self.gemm, self._bias = gemm, bias
        self._alphas, self._gelu_scale = alphas, gelu_scale
        with contextlib.ExitStack() as undo, _refusals(self._lt):
            self._w, self._matmul = self._describe(undo)
            self._undo = undo.pop_all()
        # read when a product is enqueued
        self._factors = np.array([alpha, gemm.has_addend], np.float32)
        self._alpha = alphas or self._factors.ctypes.data
        self._beta = self._factors.ctypes.data + 4
        self._stream = np.zeros(1, np.uint64)

    def _describe(self, undo: contextlib.ExitStack) -> tuple[int, int]:
        """Descriptors of the weight, and of the product with its epilogue."""
        lt, gemm, handle = self._lt, self.gemm, self._handle
        kind, output = gemm.input_type, gemm.output_type
        m, n, k = gemm.padded_m, gemm.n, gemm.k
        half = lt.Sparsity.SPARSITY_50_PERCENT
        w = int(lt.structured_descriptor_init(handle, n, k, k, _ALIGNMENT, kind.cuda, _ROW, half))
        undo.callback(lt.mat_descriptor_destroy, w)
        x = int(lt.dense_descriptor_init(handle, m, k, k, _ALIGNMENT, kind.cuda, _ROW))
        undo.callback(lt.mat_descriptor_destroy, x)
        y = int(lt.dense_descriptor_init(handle, n, m, n, _ALIGNMENT, output.cuda, _COLUMN))
        undo.callback(lt.mat_descriptor_destroy, y)
        compute = lt.ComputeType.COMPUTE_32I if kind.exact else lt.ComputeType.COMPUTE_32F
        matmul = int(lt.matmul_descriptor_init(handle, _PLAIN, _TRANSPOSED, w, x, y, y, compute))
        undo.callback(lt.matmul_descriptor_destroy, matmul)
        self._set_epilogue(matmul)
        return w, matmul

    def _set_epilogue(self, matmul: int) -> None:
        names = self._lt.MatmulDescAttribute
        values: list[tuple[Any, Any]] = []
        if self._alphas:
            values.append((names.ALPHA_VECTOR_SCALING, np.int32(1)))
        if self.gemm.has_bias:
            values.append((names.BIAS_POINTER, np.int64(self._bias)))
        if self.gemm.activation:
            values.append((names[f"ACTIVATION_{self.gemm.activation.upper()}"], np.int32(1)))
        if self._gelu_scale != 1.0:
            values.append((names.ACTIVATION_GELU_SCALING, np.float32(self._gelu_scale)))
        for name, value in values:
            held = np.array([value])
            self._lt.matmul_desc_set_attribute(self._handle, matmul, name, held.ctypes.data, held.nbytes)

    def _selection(self, undo: contextlib.ExitStack, matmul: int, configuration: Configuration) -> int:
        """The library's choice of an algorithm, changed to a configuration."""
        lt = self._lt
        made = int(lt.matmul_alg_selection_init(self._handle, matmul, lt.MatmulAlg.DEFAULT))
        undo.callback(lt.matmul_alg_selection_destroy, made)
        names = lt.MatmulAlgAttribute
        if configuration.config >= 0:
            self._set(made, names.CONFIG_ID, configuration.config)
        if configuration.split_k != 1:
            self._set(made, names.SPLIT_K, configuration.split_k)
        if configuration.mode:
            self._set(made, names.SPLIT_K_MODE, _MODES[configuration.mode])
        return made

    def _set(self, selection: int, name: Any, value: int) -> None:
        held = np.array([value], np.int32)
        self._lt.matmul_alg_set_attribute(self._handle, selection, name, held.ctypes.data, held.nbytes)

    def _get(self, selection: int, name: Any) -> int:
        held = np.zeros(1, np.int32)
        self._lt.matmul_alg_get_attribute(self._handle, selection, name, held.ctypes.data, held.nbytes)
        return int(held[0])

    def configurations(self) -> tuple[Configuration, list[Configuration]]:
        """The library's default, and every CONFIG_ID."""
        names = self._lt.MatmulAlgAttribute
        with contextlib.ExitStack() as undo:
            made = self._selection(undo, self._matmul, Configuration(-1))
            default, count = self._get(made, names.CONFIG_ID), self._get(made, names.CONFIG_MAX_ID)
        return Configuration(default), [Configuration(number) for number in range(count)]

    def compressed_nbytes(self) -> tuple[int, int]:
        """Bytes of the compressed weight, and of the scratch memory that `compress` needs."""
        compressed, scratch = self._lt.sp_mma_compressed_size2(self._handle, self._w)
        return int(compressed), int(scratch)

    def compress(self, *, w: int, compressed: int, scratch: int, stream: int) -> None:
        """Enqueue the compression of a weight that is pruned already.

        Args:
            w: Address of (N, K) values.
            compressed: Where values and metadata go.
            scratch: Memory that may be freed when the stream has got past this.
            stream: Handle.
        """
        self._lt.sp_mma_compress2(self._handle, self._w, 1, _PLAIN, w, compressed, scratch, stream)

    def runner(self, configuration: Configuration) -> Plan:
        """The configuration, planned; call its `close`.

        A plan has descriptors of its own: with a factor for each channel, cuSPARSELt 0.8.0 breaks a plan by making
        another one of the same descriptors, and its kernel then reads and writes anywhere.

        Raises:
            Refused: The library does not have it for this product.
        """
        with contextlib.ExitStack() as undo, _refusals(self._lt):
            _, matmul = self._describe(undo)
            selection = self._selection(undo, matmul, configuration)  # plans may refer to it: it goes after the plan
            plan = int(self._lt.matmul_plan_init(self._handle, matmul, selection))
            undo.callback(self._lt.matmul_plan_destroy, plan)
            return Plan(self, plan, undo.pop_all())

    def workspace_nbytes(self, plan: int) -> int:
        """Scratch memory of a plan."""
        return int(self._lt.matmul_get_workspace(self._handle, plan))

    def enqueue(self, plan: int, addresses: tuple[int, int, int, int], workspace: int, stream: int) -> None:
        """Enqueue one product; see `Plan.enqueue`."""
        x, w, y, c = addresses
        self._stream[0] = stream
        self._lt.matmul(
            self._handle, plan, self._alpha, w, x, self._beta, c or y, y, workspace, self._stream.ctypes.data, 1
        )  # fmt: skip

    def close(self) -> None:
        """Destroy the descriptors."""
        self._undo.close()


class Plan:
    """One configuration of a `Sparse`, planned once and enqueued any number of times."""

    def __init__(self, sparse: Sparse, plan: int, undo: contextlib.ExitStack) -> None:
        self._sparse, self._plan, self._undo = sparse, plan, undo
        self.workspace_nbytes = sparse.workspace_nbytes(plan)

    def enqueue(self, *, x: int, w: int, y: int, workspace: int, stream: int, c: int = 0) -> None:
        """Enqueue the product on a stream.

        Args:
            x: Address of (padded M, K) values.
            w: Of the compressed weight.
            y: Of (padded M, N) values.
            workspace: Of at least ``workspace_nbytes``.
            stream: Handle.
            c: Of the (padded M, N) values that are added, if the epilogue adds any.
        """
        self._sparse.enqueue(self._plan, (x, w, y, c), workspace, stream)

    def close(self) -> None:
        """Destroy the plan."""
        self._undo.close()

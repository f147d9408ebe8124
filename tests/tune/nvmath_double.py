# ruff: noqa: ARG002, N801, N815, RUF012 - names, arguments and tables are those of the bindings
"""cuBLASLt and cuSPARSELt as nvmath-python shows them, on the in-memory CUDA. Tests only.

Strict where the real ones are silent: every attribute has its size, every handle is alive, a plan outlives neither
its selection nor its product, a workspace is as large as was asked for, factors for each channel are on the device, a
single one is on the host, and a sparse product is refused dims that are not multiples of 16 bytes. A compressed
weight is the values of the places of its pattern, two of four (or one of two), so data of another pattern gives wrong
products and no error, as on a GPU.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import sys
import types
from contextlib import contextmanager

import ml_dtypes
import numpy as np

from tests.doubles.cuda import MemoryCuda

TYPES = {
    2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16), 0: np.dtype(np.float32), 3: np.dtype(np.int8),
    10: np.dtype(np.int32), 28: np.dtype(ml_dtypes.float8_e4m3fn),
}  # fmt: skip


def at(address, dtype, *shape):
    """Memory as an array."""
    count = int(np.prod(shape))
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


def read(address, dtype):
    return at(address, np.dtype(dtype), 1)[0]


def store(values, address, dtype, *shape):
    """Values into memory as the kernels round them."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    at(address, dtype, *shape)[:] = values.astype(dtype)


def activated(values, activation):
    if activation == "relu":
        return np.maximum(values, 0)
    if activation == "gelu":
        return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
    return values


class Handles:
    """Objects by number, each alive until destroyed."""

    def __init__(self):
        self.alive = {}
        self._numbers = itertools.count(0x100)

    def add(self, **fields):
        number = next(self._numbers)
        self.alive[number] = types.SimpleNamespace(**fields)
        return number

    def __getitem__(self, number):
        assert number in self.alive, f"{number:#x} is not alive"
        return self.alive[number]

    def drop(self, number):
        assert self.alive.pop(number), number


class cuBLASLtError(Exception):
    pass


class cuSPARSELtError(Exception):
    def __init__(self, status):
        self.status = status
        super().__init__(f"cuSPARSELtError ({status})")


class CublasLt(types.ModuleType):
    """The part of ``nvmath.bindings.cublasLt`` that is used.

    Args:
        cuda: Where kernels run.
        times: Milliseconds of each algorithm.
    """

    cuBLASLtError = cuBLASLtError
    matmul_heuristic_result_dtype = np.dtype([
        ("algo", [("data_", "<u8", (8,))]), ("workspace_size", "<u8"), ("state", "<i4"), ("waves_count", "<f4"),
        ("reserved", "<i4", (4,)),
    ])  # fmt: skip
    MatmulDescAttribute = enum.IntEnum(
        "MatmulDescAttribute",
        {"TRANSA": 3, "TRANSB": 4, "EPILOGUE": 7, "BIAS_POINTER": 8, "FAST_ACCUM": 25, "BIAS_DATA_TYPE": 26},
    )
    MatmulPreferenceAttribute = enum.IntEnum("MatmulPreferenceAttribute", {"MAX_WORKSPACE_BYTES": 1})
    Epilogue = enum.IntEnum(
        "Epilogue", {"DEFAULT": 1, "RELU": 2, "BIAS": 4, "RELU_BIAS": 6, "GELU": 32, "GELU_BIAS": 36}
    )
    _SIZES = {3: np.int32, 4: np.int32, 7: np.uint32, 8: np.int64, 25: np.int8, 26: np.int32}
    _KINDS = {
        (2, 2, 68, 0), (14, 14, 68, 0), (3, 3, 72, 0), (3, 10, 72, 10), (28, 14, 68, 0), (28, 2, 68, 0),
        (28, 0, 68, 0), (0, 0, 77, 0),
    }  # fmt: skip

    def __init__(self, cuda: MemoryCuda, times=(1.0, 0.6, 0.8)):
        super().__init__("nvmath.bindings.cublasLt")
        self._cuda, self._times, self._handles = cuda, times, Handles()
        self.wrong = set()
        self.launched = []

    def get_version(self):
        return 130100

    def create(self):
        return 1

    def matmul_desc_create(self, compute, scale):
        return self._handles.add(compute=compute, scale=scale, values={4: 0, 7: 1})

    def matmul_desc_set_attribute(self, description, name, address, nbytes):
        kind = np.dtype(self._SIZES[name])
        assert nbytes == kind.itemsize
        self._handles[description].values[int(name)] = int(read(address, kind))

    def matmul_desc_destroy(self, description):
        self._handles.drop(description)

    def matrix_layout_create(self, kind, rows, columns, ld):
        assert ld == rows
        return self._handles.add(kind=kind, rows=rows, columns=columns)

    def matrix_layout_destroy(self, layout):
        self._handles.drop(layout)

    def matmul_preference_create(self):
        return self._handles.add(workspace=0)

    def matmul_preference_set_attribute(self, preference, name, address, nbytes):
        assert (name, nbytes) == (1, 8)
        self._handles[preference].workspace = int(read(address, np.uint64))

    def matmul_preference_destroy(self, preference):
        self._handles.drop(preference)

    def matmul_algo_get_heuristic(self, handle, description, w, x, c, y, preference, count, results, found):
        assert handle == 1
        kinds = (self._handles[w].kind, self._handles[y].kind, self._handles[description].compute)
        if (*kinds, self._handles[description].scale) not in self._KINDS:
            raise cuBLASLtError("not supported (CUBLAS_STATUS_NOT_SUPPORTED).")
        rows = at(results, self.matmul_heuristic_result_dtype, count)
        for number in range(len(self._times)):
            rows[number]["algo"]["data_"][:] = self._data(number)
            rows[number]["workspace_size"] = 1024 * number
            rows[number]["state"] = 0
        at(found, np.dtype(np.int32), 1)[0] = len(self._times)

    def _data(self, number):
        """An algorithm's 64 bytes, all of which tell which one it is."""
        return np.random.default_rng(number).integers(1, 1 << 63, 8, dtype=np.uint64)

    def _number(self, algo):
        """The algorithm that 64 bytes describe, or None."""
        words = at(algo, np.dtype(np.uint64), 8)
        return next((n for n in range(len(self._times)) if np.array_equal(words, self._data(n))), None)

    def matmul_algo_check(self, handle, description, w, x, c, y, algo, result):
        assert (handle, c) == (1, y)
        assert all(self._handles[one] for one in (description, w, x, y))
        number = self._number(algo)
        if number is None:
            raise cuBLASLtError("invalid value (CUBLAS_STATUS_INVALID_VALUE).")
        at(result, self.matmul_heuristic_result_dtype, 1)[0]["workspace_size"] = 1024 * number

    def matmul(self, handle, description, alpha, w, w_layout, x, x_layout, beta, c, c_layout, y, y_layout, algo,
               workspace, nbytes, stream):  # fmt: skip
        form, (k, n) = self._handles[description], (self._handles[w_layout].rows, self._handles[w_layout].columns)
        m, kind, output = (
            self._handles[x_layout].columns,
            TYPES[self._handles[w_layout].kind],
            TYPES[self._handles[y_layout].kind],
        )
        assert (form.values[3], form.values[4]) == (1, 0)
        assert self._handles[y_layout].rows == n
        number = self._number(algo)
        self.launched.append(number)
        assert nbytes == 1024 * number
        self._cuda._place(workspace, max(nbytes, 1), on_device=True)
        factor_type = TYPES[form.scale]
        factor, added = read(alpha, factor_type), read(beta, factor_type)
        assert added == 1 or (added == 0 and (c, c_layout) == (y, y_layout))
        epilogue = self.Epilogue(form.values[7]).name
        bias_type = TYPES[form.values.get(26, 0)]

        def work():
            values = float(factor) * (at(x, kind, m, k).astype(np.float64) @ at(w, kind, n, k).astype(np.float64).T)
            if added:
                values += at(c, output, m, n).astype(np.float64)
            if "BIAS" in epilogue:
                values += at(form.values[8], bias_type, n).astype(np.float64)
            values = activated(values, "relu" if "RELU" in epilogue else "gelu" if "GELU" in epilogue else "")
            if number in self.wrong:
                values[0] = 0
            store(values, y, output, m, n)

        self._cuda.submit(stream, work, self._times[number])


class CusparseLt(types.ModuleType):
    """The part of ``nvmath.bindings.cusparseLt`` that is used.

    Args:
        cuda: Where kernels run.
        times: Milliseconds of each CONFIG_ID; an exception stands for a kernel that breaks the device.
    """

    cuSPARSELtError = cuSPARSELtError
    Sparsity = enum.IntEnum("Sparsity", {"SPARSITY_50_PERCENT": 0})
    ComputeType = enum.IntEnum("ComputeType", {"COMPUTE_32I": 0, "COMPUTE_16F": 1, "COMPUTE_32F": 2})
    MatmulAlg = enum.IntEnum("MatmulAlg", {"DEFAULT": 0})
    MatmulAlgAttribute = enum.IntEnum(
        "MatmulAlgAttribute", {"CONFIG_ID": 0, "CONFIG_MAX_ID": 1, "SPLIT_K": 3, "SPLIT_K_MODE": 4}
    )
    MatmulDescAttribute = enum.IntEnum(
        "MatmulDescAttribute",
        {
            "ACTIVATION_RELU": 0,
            "ACTIVATION_GELU": 3,
            "ACTIVATION_GELU_SCALING": 4,
            "ALPHA_VECTOR_SCALING": 5,
            "BIAS_POINTER": 8,
        },
    )
    _OUTPUTS = {2: {2}, 14: {14}, 3: {3, 10, 2, 14}, 28: {14, 2, 0}, 0: {0}}

    def __init__(self, cuda: MemoryCuda, times=(0.9, 0.5, 0.4, 0.7), default=3):
        super().__init__("nvmath.bindings.cusparseLt")
        self._cuda, self._times, self._default, self._handles = cuda, times, default, Handles()

    def init(self):
        return 2

    def get_property(self, part):
        return (0, 8, 0)[part]

    def get_error_string(self, status):
        return {10: "operation not supported", 3: "invalid value"}[status]

    def structured_descriptor_init(self, handle, rows, columns, ld, alignment, kind, order, sparsity):
        assert (handle, alignment, order, sparsity, ld) == (2, 16, 2, 0, columns)
        return self._matrix(rows, columns, kind, sparse=True)

    def dense_descriptor_init(self, handle, rows, columns, ld, alignment, kind, order):
        assert (handle, alignment, ld) == (2, 16, columns if order == 2 else rows)
        return self._matrix(rows, columns, kind, sparse=False, order=order)

    def _matrix(self, rows, columns, kind, **fields):
        step = 16 // TYPES[kind].itemsize
        if rows % step or columns % step:
            raise cuSPARSELtError(10)
        return self._handles.add(rows=rows, columns=columns, kind=kind, **fields)

    def mat_descriptor_destroy(self, matrix):
        self._handles.drop(matrix)

    def matmul_descriptor_init(self, handle, op_w, op_x, w, x, c, y, compute):
        w_form, x_form, y_form = self._handles[w], self._handles[x], self._handles[y]
        assert (handle, op_w, op_x, c) == (2, 0, 1, y)
        assert (w_form.sparse, x_form.sparse, w_form.columns) == (True, False, x_form.columns)
        assert (y_form.rows, y_form.columns, y_form.order) == (w_form.rows, x_form.rows, 1)
        if y_form.kind not in self._OUTPUTS[w_form.kind] or (compute == 0) != (w_form.kind == 3):
            raise cuSPARSELtError(10)
        return self._handles.add(w=w, x=x, y=y, values={})

    def matmul_descriptor_destroy(self, matmul):
        self._handles.drop(matmul)

    def matmul_desc_set_attribute(self, handle, matmul, name, address, nbytes):
        kind = np.dtype({4: np.float32, 8: np.int64}.get(int(name), np.int32))
        assert (handle, nbytes) == (2, kind.itemsize)
        product = self._handles[matmul]
        kinds = self._handles[product.w].kind, self._handles[product.y].kind
        if name in (3, 4) and kinds != (3, 3):
            raise cuSPARSELtError(3)  # "GeLU is only supported in INT8 in/out, INT32 compute kernels"
        if name == 5 and kinds[0] != 3:
            raise cuSPARSELtError(3)  # "Alpha/beta vector scaling is only supported in INT8 input, ..."
        product.values[int(name)] = read(address, kind).item()

    def matmul_alg_selection_init(self, handle, matmul, algorithm):
        assert (handle, algorithm) == (2, 0)
        return self._handles.add(matmul=matmul, values={0: self._default, 1: len(self._times), 3: 1, 4: 1})

    def matmul_alg_set_attribute(self, handle, selection, name, address, nbytes):
        assert (handle, nbytes) == (2, 4)
        value = int(read(address, np.int32))
        if (name == 0 and not 0 <= value < len(self._times)) or (name == 4 and value not in (1, 2)):
            raise cuSPARSELtError(3)
        self._handles[selection].values[int(name)] = value

    def matmul_alg_get_attribute(self, handle, selection, name, address, nbytes):
        assert (handle, nbytes) == (2, 4)
        at(address, np.dtype(np.int32), 1)[0] = self._handles[selection].values[int(name)]

    def matmul_alg_selection_destroy(self, selection):
        self._handles.drop(selection)

    def matmul_plan_init(self, handle, matmul, selection):
        assert handle == 2
        made = self._handles.add(matmul=matmul, selection=selection)
        self._handles[matmul].newest = made
        return made

    def matmul_plan_destroy(self, plan):
        self._handles[self._handles[plan].selection]
        self._handles.drop(plan)

    def matmul_get_workspace(self, handle, plan):
        return 256 * abs(self._handles[self._handles[plan].selection].values[3])

    def sp_mma_compressed_size2(self, handle, w):
        form = self._handles[w]
        return form.rows * form.columns * TYPES[form.kind].itemsize * 9 // 16, 64

    def _kept(self, kind):
        """Places and length of the groups that a compressed weight keeps."""
        return (1, 2) if kind == 0 else (2, 4)

    def sp_mma_compress2(self, handle, w, is_first, op, source, target, scratch, stream):
        assert (handle, is_first, op) == (2, 1, 0)
        form = self._handles[w]
        kind, (n, m) = TYPES[form.kind], self._kept(form.kind)
        self._cuda._place(scratch, 64, on_device=True)

        def work():
            groups = at(source, kind, form.rows * form.columns // m, m)
            order = np.argsort(groups == 0, axis=1, kind="stable")[:, :n]
            at(target, kind, len(groups), n)[:] = np.take_along_axis(groups, order, 1)
            places = at(target + groups.nbytes // 2, np.dtype(np.uint8), len(groups), n)[: len(groups) // 16]
            places[:] = 1  # the metadata's place is real, its content is not: see `places`
            self._cuda_places[target] = order

        self._cuda.submit(stream, work, 0.01)

    @property
    def _cuda_places(self):
        return self.__dict__.setdefault("places", {})

    def matmul(self, handle, plan, alpha, w, x, beta, c, y, workspace, streams, count):
        assert (handle, count) == (2, 1)
        added = read(beta, np.float32)
        assert added == 1 or (added == 0 and c == y)
        form = self._handles[plan]
        product, selected = self._handles[form.matmul], self._handles[form.selection].values
        w_form, x_form, y_form = (self._handles[one] for one in (product.w, product.x, product.y))
        m, n, k, kind, output = x_form.rows, w_form.rows, w_form.columns, TYPES[w_form.kind], TYPES[y_form.kind]
        self._cuda._place(workspace, 256 * abs(selected[3]), on_device=True)
        by_channel = bool(product.values.get(5))
        assert not by_channel or product.newest == plan, "another plan of the same descriptor broke this one"
        self._cuda._place(alpha, 4 * n if by_channel else 4, on_device=by_channel)
        factor = 0.0 if by_channel else float(read(alpha, np.float32))
        taken = self._times[selected[0]]
        kept, group = self._kept(w_form.kind)

        def work():
            if isinstance(taken, BaseException):
                raise taken
            dense = np.zeros((n * k // group, group))
            np.put_along_axis(dense, self._cuda_places[w], at(w, kind, n * k // group, kept).astype(np.float64), 1)
            factors = at(alpha, np.dtype(np.float32), n).astype(np.float64) if by_channel else factor
            values = factors * (at(x, kind, m, k).astype(np.float64) @ dense.reshape(n, k).T)
            if added:
                values += at(c, output, m, n).astype(np.float64)
            if product.values.get(8):
                bias = np.dtype(np.float32) if output.kind == "i" else output
                values += at(product.values[8], bias, n).astype(np.float64)
            values = activated(values, "relu" if product.values.get(0) else "gelu" if product.values.get(3) else "")
            store(product.values.get(4, 1.0) * values, y, output, m, n)

        faster = 0.9 if selected[3] == 2 else 1.0
        ms = 0.0 if isinstance(taken, BaseException) else taken * faster
        self._cuda.submit(int(read(streams, np.uint64)), work, ms)


@contextmanager
def installed_nvmath(cublaslt, cusparselt):
    """Have ``from nvmath.bindings import ...`` find these."""
    from trtsparse.tune import dense, sparse

    bindings = types.ModuleType("nvmath.bindings")
    bindings.cublasLt, bindings.cusparseLt = cublaslt, cusparselt
    nvmath = types.ModuleType("nvmath")
    nvmath.bindings = bindings
    saved = {name: sys.modules.get(name) for name in ("nvmath", "nvmath.bindings")}
    sys.modules |= {"nvmath": nvmath, "nvmath.bindings": bindings}
    dense._library.cache_clear()
    sparse._library.cache_clear()
    try:
        yield
    finally:
        dense._library.cache_clear()
        sparse._library.cache_clear()
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module

"""The matrix products that are tuned: their shapes, data types and epilogues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

from trtsparse.errors import ConfigError

__all__ = ["DTYPES", "EPILOGUES", "DataType", "Gemm", "Refused"]

EPILOGUES = (
    "none", "bias", "relu", "gelu", "bias_relu", "bias_gelu", "add", "bias_add", "add_relu", "bias_add_relu"
)  # fmt: skip


class Refused(Exception):  # noqa: N818 - an answer that is reported, not an error that anybody sees
    """A library has no such kernel for a product; its process goes on."""


@dataclass(frozen=True)
class DataType:
    """One type of values and what the libraries do with it.

    Attributes:
        numpy: How numpy and ml_dtypes store it.
        cuda: Its number in CUDA's ``cudaDataType``.
        outputs: Output types of a product of two such matrices; the first is the default. Empty for types that are
            outputs only.
        pattern: Non-zeros of consecutive weights that its sparse kernels take, N and M.
        bound: Largest relative error, in the Frobenius norm, that a right kernel makes in a product of such values,
            rounding of the output not counted.
        rounding: The same for storing a result in this type. Integers are compared exactly.
    """

    numpy: np.dtype[Any]
    cuda: int
    outputs: tuple[str, ...] = ()
    pattern: tuple[int, int] = (2, 4)
    bound: float = 0.0
    rounding: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of one value."""
        return self.numpy.itemsize

    @property
    def alignment(self) -> int:
        """Values in 16 bytes; dims of sparse products are multiples of this."""
        return 16 // self.nbytes

    @property
    def exact(self) -> bool:
        """Whether these are integers."""
        return bool(np.issubdtype(self.numpy, np.integer))


DTYPES: Mapping[str, DataType] = {
    "fp16": DataType(np.dtype(np.float16), 2, ("fp16",), bound=5e-4, rounding=5e-4),
    "bf16": DataType(np.dtype(ml_dtypes.bfloat16), 14, ("bf16",), bound=5e-4, rounding=4e-3),
    "int8": DataType(np.dtype(np.int8), 3, ("int8", "fp16", "bf16", "int32")),
    # Hopper adds FP8 products with about 14 bits before it goes on in FP32
    "fp8_e4m3": DataType(np.dtype(ml_dtypes.float8_e4m3fn), 28, ("bf16", "fp16", "fp32"), bound=1e-2),
    "tf32": DataType(np.dtype(np.float32), 0, ("fp32",), pattern=(1, 2), bound=2e-3),
    "fp32": DataType(np.dtype(np.float32), 0, rounding=1e-6),
    "int32": DataType(np.dtype(np.int32), 10),
}


@dataclass(frozen=True, order=True)
class Gemm:
    """``y = epilogue(x W^T)``: ``x`` of shape (M, K), ``W`` of shape (N, K) sparse along K, ``y`` of shape (M, N).

    Attributes:
        m: Rows: what all dims but the last of an activation hold, or the output pixels of a convolution.
        n: Output channels.
        k: Reduction length.
        dtype: Of ``x`` and ``W``: "fp16", "bf16", "int8", "fp8_e4m3" or "tf32" (float32 values, 1:2 sparse).
        out_dtype: Of ``y``; "" stands for the usual one.
        epilogue: What the kernel also does, in this order: "bias", "add" another (M, N) matrix of the output's type,
            "relu" or "gelu" (by tanh), put together as in "bias_add_relu"; "none".

    Raises:
        ConfigError: Dims that are not positive, an unknown type or epilogue, or a matrix added to integers.

    Example:
        >>> gemm = Gemm(4096, 1024, 768, "int8", "fp16", "bias_relu")
        >>> gemm.key, gemm.flops
        ('4096x1024x768 int8->fp16 bias_relu', 6442450944)
        >>> Gemm.parse("8,16,32", dtype="tf32")
        Gemm(m=8, n=16, k=32, dtype='tf32', out_dtype='fp32', epilogue='none')
    """

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    out_dtype: str = ""
    epilogue: str = "none"

    def __post_init__(self) -> None:
        inputs = [name for name, kind in DTYPES.items() if kind.outputs]
        if self.dtype not in inputs:
            raise ConfigError(
                "no such data type of a product", where="dtype", got=self.dtype, expected=", ".join(inputs)
            )
        outputs = DTYPES[self.dtype].outputs
        object.__setattr__(self, "out_dtype", self.out_dtype or outputs[0])
        if self.out_dtype not in outputs:
            raise ConfigError(
                f"{self.dtype} products have no such output type",
                where="out_dtype",
                got=self.out_dtype,
                expected=", ".join(outputs),
            )
        if self.epilogue not in EPILOGUES:
            raise ConfigError("no such epilogue", where="epilogue", got=self.epilogue, expected=", ".join(EPILOGUES))
        if self.has_addend and self.input_type.exact:
            raise ConfigError(
                "products of integers add no matrix",
                where="epilogue",
                got=self.epilogue,
                expected=", ".join(name for name in EPILOGUES if "add" not in name),
                fix="add it in a pass of its own",
            )
        if min(self.m, self.n, self.k) < 1:
            raise ConfigError("the dims of a product are positive", where="gemm", got=f"{self.m}, {self.n}, {self.k}")

    @classmethod
    def parse(cls, text: str, *, dtype: str = "bf16", out_dtype: str = "", epilogue: str = "none") -> Gemm:
        """Read "M,N,K".

        Raises:
            ConfigError: Not of this form, or as above.
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ConfigError("cannot read a product's dims", where="gemm", got=text, expected="M,N,K")
        m, n, k = map(int, parts)
        return cls(m, n, k, dtype, out_dtype, epilogue)

    @property
    def key(self) -> str:
        """One line that names it, in tables and in the cache."""
        name = f"{self.m}x{self.n}x{self.k} {self.types}"
        return name if self.epilogue == "none" else f"{name} {self.epilogue}"

    @property
    def types(self) -> str:
        """The types of its values, such as "int8->fp16"."""
        return f"{self.dtype}->{self.out_dtype}"

    @property
    def flops(self) -> int:
        """Operations of the dense product, two for each multiply-accumulate."""
        return 2 * self.m * self.n * self.k

    @property
    def input_type(self) -> DataType:
        """Of ``x`` and ``W``."""
        return DTYPES[self.dtype]

    @property
    def output_type(self) -> DataType:
        """Of ``y``."""
        return DTYPES[self.out_dtype]

    @property
    def bias_type(self) -> DataType:
        """Of the bias: float32 where the result is an integer, else that of the result."""
        return DTYPES["fp32"] if self.output_type.exact else self.output_type

    @property
    def has_bias(self) -> bool:
        """Whether the epilogue adds a bias of length N."""
        return "bias" in self.epilogue

    @property
    def has_addend(self) -> bool:
        """Whether the epilogue adds a matrix of shape (M, N)."""
        return "add" in self.epilogue

    @property
    def activation(self) -> str:
        """What comes last: "relu", "gelu", or nothing ("")."""
        return next((name for name in ("relu", "gelu") if name in self.epilogue), "")

    @property
    def padded_m(self) -> int:
        """M as sparse kernels want it: a multiple of 16 bytes of values in both types."""
        step = max(self.input_type.alignment, self.output_type.alignment)
        return -(-self.m // step) * step

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)

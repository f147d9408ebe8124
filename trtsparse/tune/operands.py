"""Device memory of one product: operands in rotating sets, poison, scratch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from trtsparse.cuda.base import Cuda
from trtsparse.tune.data import Matrix, poison
from trtsparse.tune.gemm import DataType, Gemm

__all__ = ["Operands", "Set"]

_POISON_NBYTES = 1 << 20


@dataclass
class Set:
    """Addresses of one set of operands; ``packed`` is the compressed weight, ``c`` what is added, 0 without."""

    x: int
    w: int
    y: int
    c: int = 0
    packed: int = 0


class Operands:
    """Random operands of a product, in sets that are larger than the device's cache together.

    Args:
        cuda: The device, current in this thread.
        stream: Where copies are enqueued.
        gemm: The product.
        l2_nbytes: Of the device's cache.
        y_nbytes: Of an output.

    Attributes:
        x: The activation, ``gemm.padded_m`` rows.
        w: The weight, pruned to the pattern of its type.
        bias: N values or None.
        c: What is added, ``gemm.padded_m`` rows, or None.
        sets: At least two.
    """

    def __init__(self, cuda: Cuda, stream: int, gemm: Gemm, *, l2_nbytes: int, y_nbytes: int) -> None:
        self._cuda, self._stream, self._y_nbytes = cuda, stream, y_nbytes
        self._undo = contextlib.ExitStack()
        self._scratch: dict[str, tuple[int, int]] = {}
        rng, kind = np.random.default_rng(), gemm.input_type
        self.x = Matrix.random(kind, gemm.padded_m, gemm.k, rng=rng)
        self.w = Matrix.random(kind, gemm.n, gemm.k, rng=rng, pattern=kind.pattern)
        self.bias = rng.standard_normal(gemm.n).astype(gemm.bias_type.numpy) if gemm.has_bias else None
        self.c = Matrix.random(gemm.output_type, gemm.padded_m, gemm.n, rng=rng) if gemm.has_addend else None
        try:
            self.sets = self._make_sets(l2_nbytes)
        except BaseException:
            self.close()
            raise

    def _make_sets(self, l2_nbytes: int) -> list[Set]:
        sparse_nbytes = self.x.nbytes + self.w.nbytes // 2 + self._y_nbytes + (self.c.nbytes if self.c else 0)
        count = max(2, -(-2 * l2_nbytes // sparse_nbytes) + 1)
        return [
            Set(
                x=self.put(self.x.block, self.x.nbytes),
                w=self.put(self.w.block, self.w.nbytes),
                y=self.allocate(self._y_nbytes),
                c=self.put(self.c.block, self.c.nbytes) if self.c else 0,
            )
            for _ in range(count)
        ]

    def bias_as(self, kind: DataType) -> int:
        """The address of the bias in a type that holds its values; 0 without a bias."""
        if self.bias is None:
            return 0
        values = self.bias.astype(kind.numpy)
        return self.put(values, values.nbytes)

    def allocate(self, nbytes: int) -> int:
        """Device memory that lives as long as this object."""
        address = self._cuda.allocate(max(nbytes, 1))
        self._undo.callback(self._cuda.free, address)
        return address

    def put(self, array: np.ndarray, nbytes: int) -> int:
        """The array's bytes on the device, repeated to fill so many."""
        address = self.allocate(nbytes)
        self._fill(address, array, nbytes)
        return address

    def _fill(self, address: int, array: np.ndarray, nbytes: int) -> None:
        done = min(array.nbytes, nbytes)
        self._cuda.copy_in(address, array.ctypes.data, done, self._stream)
        while done < nbytes:
            step = min(done, nbytes - done)
            self._cuda.copy_across(address + done, address, step, self._stream)
            done += step
        self._cuda.synchronize(self._stream)

    def scratch(self, name: str, nbytes: int) -> int:
        """Memory of at least so many bytes that all who give this name share; it grows."""
        held = self._scratch.get(name, (0, -1))
        if held[1] < nbytes:
            held = self._scratch[name] = (self.allocate(nbytes), nbytes)
        return held[0]

    def poison(self, output: DataType) -> None:
        """Fill the output of the first set with what no kernel writes."""
        self._fill(self.sets[0].y, np.full(_POISON_NBYTES, poison(output), np.uint8), self._y_nbytes)

    def read(self, output: DataType, shape: tuple[int, int]) -> np.ndarray:
        """The output of the first set."""
        y = np.empty(shape, output.numpy)
        self._cuda.copy_out(y.ctypes.data, self.sets[0].y, y.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return y

    def close(self) -> None:
        """Free everything."""
        self._undo.close()

"""Named weights: declared by their shape, later drawn from a seed or read from a local file.

Declaring costs nothing, so a graph can be described, and its parameters counted, without its gigabytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from trtsparse.errors import ConfigError, MissingDependencyError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Names", "Source", "Weight", "he", "open_source", "xavier"]

_TAIL = 0.05  # z * (1 + 0.05 z^2) of a normal z has a kurtosis of 4.5, about what trained layers show
_TAIL_STD = (1 + 6 * _TAIL + 15 * _TAIL**2) ** 0.5
_CHANNEL_SPREAD = 0.25  # standard deviation of the logarithm of an output channel's scale
_FLOATS = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@dataclass(frozen=True)
class Weight:
    """One float32 tensor of a recipe, in the layout in which its ONNX node reads it.

    Args:
        name: Its name in the ONNX file, which is its name in published checkpoints too.
        shape: Its shape in the ONNX file.
        std: Standard deviation of generated values.
        mean: Mean of generated values.
        channels: The axis of output channels, for weights that have one. Such weights are drawn with heavy
            tails and a scale per channel, and each channel is centred as training with normalisation leaves it:
            else the positive mean of ReLU outputs drowns what depends on the input.
        transposed: Whether checkpoints store it the other way round: (N, K) for a MatMul's (K, N).
        trained: False for statistics (a BatchNormalization's mean and variance), which are not parameters.
    """

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    channels: int | None = None
    transposed: bool = False
    trained: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def generate(self, seed: int) -> NDArray[np.float32]:
        """Draw the values; they depend on the seed, this weight's name and its own fields only.

        Example:
            >>> Weight("w", (2, 3), std=0.1).generate(0).shape
            (2, 3)
        """
        digest = hashlib.blake2b(f"{seed}/{self.name}".encode(), digest_size=16).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        values = random.standard_normal(self.shape, dtype=np.float32)
        if self.channels is None:
            values *= np.float32(self.std)
            values += np.float32(self.mean)
            return values
        tail = np.square(values)
        tail *= _TAIL
        tail += 1
        values *= tail
        others = tuple(axis for axis in range(values.ndim) if axis != self.channels)
        if self.size > self.shape[self.channels]:  # a channel of one weight has no mean to lose
            values -= values.mean(axis=others, keepdims=True)
        scale = np.exp(_CHANNEL_SPREAD * random.standard_normal(self.shape[self.channels], dtype=np.float32))
        scale *= self.std / (_TAIL_STD * np.exp(_CHANNEL_SPREAD**2))  # the mean square of the scales is std^2
        values *= np.expand_dims(scale, others)
        return values


Source = Callable[[Weight], "NDArray[np.float32]"]
Names = Callable[[str], Iterable[str]]


def he(fan_in: int) -> float:
    """Return the standard deviation that keeps a ReLU network's variance (He et al., 2015).

    Example:
        >>> he(2)
        1.0
    """
    return float((2 / fan_in) ** 0.5)


def xavier(fan_in: int, fan_out: int) -> float:
    """Return the standard deviation that keeps a linear layer's variance both ways (Glorot and Bengio, 2010).

    Example:
        >>> xavier(1, 1)
        1.0
    """
    return float((2 / (fan_in + fan_out)) ** 0.5)


@contextlib.contextmanager
def open_source(path: Path | None, *, seed: int, names: Names) -> Iterator[Source]:
    """Open what gives a recipe its values: the seed, or a file of trained weights.

    Args:
        path: A .safetensors or .npz file, or None for generated values.
        seed: Used without a file only.
        names: Gives the names under which a file may hold a weight, in the order in which to try them.

    Yields:
        A function from a weight to its values.

    Raises:
        ConfigError: The file is of another kind.
        MissingDependencyError: The file needs safetensors, which is not installed.
        ModelNotFoundError: There is no such file.
        ModelError: The file is damaged, or a weight is missing, of a wrong shape or not floating point.
    """
    if path is None:
        yield lambda weight: weight.generate(seed)
        return
    if not path.is_file():
        raise ModelNotFoundError("no such weights file", where=path)
    with _open_tensors(path) as (keys, tensor):
        yield lambda weight: _checked(weight, path, keys, tensor, names)


@contextlib.contextmanager
def _open_tensors(path: Path) -> Iterator[tuple[frozenset[str], Callable[[str], NDArray[Any]]]]:
    """Open a file of named tensors; yield its names and a function that reads one."""
    if path.suffix == ".safetensors":
        with contextlib.ExitStack() as stack:
            with _damage_named(path):
                file = stack.enter_context(_open_safetensors(path))
            yield frozenset(file.keys()), file.get_tensor
    elif path.suffix == ".npz":
        with _damage_named(path):
            arrays = np.load(path, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise TypeError("one array, not an archive of arrays")
        with arrays:
            yield frozenset(arrays.files), arrays.__getitem__
    else:
        raise ConfigError(
            "weights are read from .safetensors and .npz files",
            where=path,
            got=path.suffix or "no suffix",
            fix="save the state dict with safetensors.torch.save_file or numpy.savez",
        )


def _open_safetensors(path: Path) -> Any:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingDependencyError("reading .safetensors needs safetensors", extra="models", where=path) from error
    return safe_open(path, framework="np")


@contextlib.contextmanager
def _damage_named(path: Path, tensor: str | None = None) -> Iterator[None]:
    """Turn what the readers raise on damaged bytes into a ModelError that names the file."""
    try:
        yield
    except (MissingDependencyError, MemoryError):
        raise
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, tensor, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # its class is importable only with the optional library
            raise
        raise _damaged(path, tensor, error) from error


def _damaged(path: Path, tensor: str | None, error: Exception) -> ModelError:
    where = path if tensor is None else f"{path}, tensor {tensor!r}"
    return ModelError("the weights file cannot be read", where=where, got=error)


def _checked(
    weight: Weight, path: Path, keys: frozenset[str], tensor: Callable[[str], NDArray[Any]], names: Names
) -> NDArray[np.float32]:
    """Read one weight; refuse what is missing, of a wrong shape or not floating point."""
    key = next((name for name in names(weight.name) if name in keys), None)
    if key is None:
        raise ModelError(
            "the weights file lacks a tensor",
            where=path,
            got=f"{len(keys)} tensors",
            expected=f"{weight.name!r} of shape {_stored_shape(weight)}",
        )
    with _damage_named(path, key):
        values = tensor(key)
    where = f"{path}, tensor {key!r}"
    if values.shape != _stored_shape(weight):
        raise ModelError(
            "a tensor in the weights file has the wrong shape",
            where=where,
            got=values.shape,
            expected=_stored_shape(weight),
            fix="give the recipe the options of the network that the file was saved from",
        )
    if values.dtype not in _FLOATS:
        raise ModelError(
            "a tensor in the weights file is not floating point",
            where=where,
            got=values.dtype,
            expected="float16, bfloat16, float32 or float64",
        )
    return np.ascontiguousarray(values.T if weight.transposed else values, dtype=np.float32)


def _stored_shape(weight: Weight) -> tuple[int, ...]:
    return weight.shape[::-1] if weight.transposed else weight.shape

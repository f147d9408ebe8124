"""Inputs to run a model with: random ones, ones from files, and checks that they fit the model."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtsparse.errors import ConfigError, FeedError
from trtsparse.files.model import OnnxModel
from trtsparse.files.shapes import check_shapes, is_shared
from trtsparse.precision.specs import FeedChecker, TensorSpec, did_you_mean, input_specs
from trtsparse.precision.vocabulary import input_range

__all__ = ["Feeds", "FileFeeds", "RandomCalibrationWarning", "check_feeds", "random_feeds", "read_feeds"]

Feeds = Sequence[Mapping[str, np.ndarray]]

_PIXELS = 224  # a dynamic dim of an image: a multiple of 32, as detectors ask
_LENGTH = 16  # any other dynamic dim, such as a sequence


class RandomCalibrationWarning(UserWarning):
    """Quantization ranges were measured on random numbers: the accuracy says nothing about real data."""


def random_feeds(
    model: str | os.PathLike[str] | bytes | Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    count: int = 1,
) -> list[dict[str, np.ndarray]]:
    """Make inputs of the right names, types and shapes.

    Floats are standard normal; integers are any that the model's vocabulary has, see
    `trtsparse.precision.vocabulary.input_range`, and 0 or 1 where it has none.
    A dynamic dim is 1 when it comes first (the batch), 224 when it is an image's height or width, else 16.

    Args:
        model: A path, bytes, a ModelProto or an OnnxModel.
        shapes: The whole shape of each input whose dynamic dims should be something else.
        seed: Equal seeds give equal arrays.
        count: How many feeds.

    Returns:
        ``count`` feeds: input name to array. Initializers that are also graph inputs are left out.

    Raises:
        ConfigError: ``shapes`` names an unknown input, or contradicts the model.
        ModelError: An input is not a tensor, or its rank is unknown and ``shapes`` does not give it.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        >>> feed, = random_feeds(parser.parse_model(text))
        >>> feed["x"].shape, feed["x"].dtype.name
        ((1, 4), 'float32')
    """
    opened = OnnxModel.open(model)
    specs = input_specs(opened)
    sizes = input_shapes(specs, shapes or {})
    ranges = {spec.name: input_range(opened, spec.name) for spec in specs if spec.dtype.kind in "iu"}
    random = np.random.default_rng(seed)
    return [
        {spec.name: _random_array(random, spec.dtype, sizes[spec.name], ranges.get(spec.name, 2)) for spec in specs}
        for _ in range(count)
    ]


def input_shapes(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """A whole shape for each input: the given one, or the model's with a size for each dynamic dim.

    Raises:
        ConfigError: A given shape is of an unknown input, or contradicts the model.
    """
    names = [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise ConfigError(
                "the model has no such input",
                where="shapes",
                got=repr(name),
                expected=", ".join(map(repr, names)),
                fix=did_you_mean(name, names),
            )
    sizes = check_shapes({spec.name: spec.shape for spec in specs}, shapes)
    return {
        spec.name: tuple(shapes[spec.name]) if spec.name in shapes else _default_shape(spec, sizes) for spec in specs
    }


def _default_shape(spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise ConfigError(
            "the model does not say how many dims an input has",
            where=f"input {spec.name!r}",
            fix=f"give it: shapes={{{spec.name!r}: (1, ...)}}",
        )
    found = []
    for i, dim in enumerate(spec.shape):
        usual = 1 if i == 0 else _PIXELS if len(spec.shape) == 4 and i >= 2 else _LENGTH
        if isinstance(dim, int):
            found.append(dim)
        elif is_shared(dim):
            found.append(sizes.setdefault(dim, usual))
        else:
            found.append(usual)
    return tuple(found)


def _random_array(
    random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], values: int
) -> np.ndarray:
    """Standard normal floats, or integers below ``values``."""
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if dtype.kind not in "biu":
        return np.asarray(random.standard_normal(shape, np.float32)).astype(dtype)
    largest = 1 if dtype.kind == "b" else np.iinfo(dtype).max
    return np.asarray(random.integers(0, min(values, int(largest) + 1), shape)).astype(dtype)


def check_feeds(model: str | os.PathLike[str] | bytes | Any, feeds: Iterable[Mapping[str, Any]]) -> None:
    """Raise unless every feed has all inputs of the model, with their types and shapes.

    Raises:
        FeedError: An input is missing or unknown, or there are no feeds; the message names the feed by its number.
        DtypeError: A value is not an array, or of another type.
        ShapeError: Another rank or size, or two dims of the same name differ.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        >>> check_feeds(parser.parse_model(text), [{"x": np.zeros((2, 5), np.float32)}])
        Traceback (most recent call last):
        trtsparse.errors.ShapeError: an array has the wrong shape
          where: feed 0, input 'x', dim 1
          got: (2, 5)
          expected: (n, 4)
    """
    check = FeedChecker(input_specs(OnnxModel.open(model)))
    number = -1
    for number, feed in enumerate(feeds):
        _check_feed(check, number, feed)
    if number < 0:
        raise FeedError("there are no feeds")


def _check_feed(check: FeedChecker, number: int, feed: Mapping[str, Any]) -> None:
    try:
        check(feed)
    except FeedError as error:
        where = f"feed {number}, {error.where}" if error.where else f"feed {number}"
        raise type(error)(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error


def read_feeds(source: str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]], *, input_name: str = "") -> Feeds:
    """Open recorded inputs.

    Args:
        source: One of

            - a folder of ``.npz`` files: each is a feed, its arrays are named like the inputs;
            - a folder with one folder for each input, ``<input>/*.npy``: files of the same name make a feed;
            - a folder of ``.npy`` files, for a model with a single input;
            - one ``.npz`` or ``.npy`` file;
            - an iterable of feeds, which is read to its end.
        input_name: The single input that ``.npy`` files outside input folders are for.

    Returns:
        A sequence of feeds, in the order of the file names. Files are read when they are asked for.

    Raises:
        FeedError: The path does not exist, holds no arrays, or its files cannot be matched to inputs.
    """
    if not isinstance(source, (str, os.PathLike)):
        return list(source)
    path = Path(source)
    if not path.exists():
        raise FeedError("there is no such file or folder", where=path, expected="a folder of .npz or .npy files")
    if path.is_file():
        return FileFeeds([_parts(path, input_name)])
    feeds = _folder_feeds(path, input_name)
    if not feeds:
        raise FeedError(
            "the folder holds no arrays", where=path, expected="*.npz, or <input>/*.npy, or *.npy for a single input"
        )
    return FileFeeds(feeds)


class FileFeeds(Sequence[Mapping[str, np.ndarray]]):
    """Feeds that are read from their files each time they are asked for.

    Args:
        files: For each feed, its files by input name; "" is a ``.npz`` with all inputs.
    """

    def __init__(self, files: Sequence[Mapping[str, Path]]) -> None:
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return FileFeeds(self.files[index])
        feed: dict[str, np.ndarray] = {}
        for name, path in self.files[index].items():
            feed.update(_read_arrays(path) if not name else {name: _single(name, path)})
        return feed


def _single(name: str, path: Path) -> np.ndarray:
    """The array of a file that is for one input."""
    arrays = _read_arrays(path)
    if "" not in arrays:
        raise FeedError(
            "a file with several named arrays is given for one input",
            where=f"input {name!r}, {path}",
            got=", ".join(map(repr, arrays)) or "no arrays",
            expected="a .npy file",
            fix='give a .npz file for all inputs: {"": path}, or read_feeds(path)',
        )
    return arrays[""]


def _folder_feeds(folder: Path, input_name: str) -> list[dict[str, Path]]:
    archives = sorted(folder.glob("*.npz"))
    if archives:
        return [_parts(path, input_name) for path in archives]
    arrays = sorted(folder.glob("*.npy"))
    if arrays:
        return [_parts(path, input_name) for path in arrays]
    inputs = {child.name: {path.name: path for path in child.glob("*.npy")} for child in sorted(folder.iterdir())
              if child.is_dir()}  # fmt: skip
    inputs = {name: files for name, files in inputs.items() if files}
    names = {name: sorted(files) for name, files in inputs.items()}
    first = next(iter(names), "")
    for name, files in names.items():
        if files != names[first]:
            raise FeedError(
                "two inputs have different files",
                where=folder,
                got=f"{name}: {_listed(files)}",
                expected=f"as in {first}: {_listed(names[first])}",
            )
    return [{name: files[file] for name, files in inputs.items()} for file in names.get(first, [])]


def _parts(path: Path, input_name: str) -> dict[str, Path]:
    if path.suffix == ".npz":
        return {"": path}
    if path.suffix == ".npy" and input_name:
        return {input_name: path}
    if path.suffix == ".npy":
        raise FeedError(
            "it is not clear which input a .npy file is for",
            where=path,
            fix="put the files into one folder for each input, <input>/*.npy, or write .npz files",
        )
    raise FeedError("not a file of arrays", where=path, expected="a .npz or .npy file")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FeedError("the arrays cannot be read", where=path, got=str(error)) from error


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

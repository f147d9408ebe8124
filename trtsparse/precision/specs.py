"""What a model's inputs and outputs are, and whether arrays fit them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtsparse.errors import DtypeError, FeedError, ModelError, ShapeError
from trtsparse.files.model import OnnxModel
from trtsparse.files.shapes import Dims, dim_of, is_shared

__all__ = ["FeedChecker", "TensorSpec", "check_named", "check_outputs", "input_specs", "output_specs"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: As in the model.
        dtype: numpy's type of an element; ``object`` for strings.
        shape: A number for a fixed dim, a name for a dynamic one ("?" where the model gives none), or None where
            not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Dims | None

    def __str__(self) -> str:
        dims = "of any rank" if self.shape is None else f"({', '.join(map(str, self.shape))})"
        return f"{self.name!r} {self.dtype} {dims}"


def input_specs(model: OnnxModel) -> tuple[TensorSpec, ...]:
    """The inputs that must be fed; initializers listed among the graph's inputs have a value already.

    Raises:
        ModelError: An input is not a tensor.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        >>> print(*input_specs(OnnxModel.open(parser.parse_model(text))))
        'x' float32 (n, 4)
    """
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    return tuple(_spec(value, "input") for value in graph.input if value.name not in given)


def output_specs(model: OnnxModel) -> tuple[TensorSpec, ...]:
    """The model's outputs.

    Raises:
        ModelError: An output is not a tensor.
    """
    return tuple(_spec(value, "output") for value in model.proto.graph.output)


def check_outputs(model: OnnxModel) -> None:
    """Refuse sequences, maps and optionals; an output without a type is taken for a tensor.

    Raises:
        ModelError: An output is not a tensor.
    """
    for value in model.proto.graph.output:
        if value.type.WhichOneof("value"):
            _check_tensor(value, "output")


def _check_tensor(value: onnx.ValueInfoProto, role: str) -> None:
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"an {role} is not a tensor",
            where=f"{role} {value.name!r}",
            got=value.type.WhichOneof("value") or "no type",
            fix=f"export the model with plain tensors as {role}s",
        )


def _spec(value: onnx.ValueInfoProto, role: str) -> TensorSpec:
    _check_tensor(value, role)
    kind = value.type.tensor_type
    dims = tuple(dim_of(dim) for dim in kind.shape.dim) if kind.HasField("shape") else None
    return TensorSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), dims)


class FeedChecker:
    """Checks feeds against a model's inputs; made once, called before every run. Thread-safe.

    Args:
        inputs: What the model takes.
    """

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = tuple(inputs)
        self._names = frozenset(spec.name for spec in inputs)
        self._expected = tuple(
            (
                spec.name,
                spec.dtype,
                -1 if spec.shape is None else len(spec.shape),
                tuple((i, dim) for i, dim in enumerate(spec.shape or ()) if isinstance(dim, int)),
            )
            for spec in inputs
        )
        symbols = [(dim, spec.name, i) for spec in inputs for i, dim in enumerate(spec.shape or ()) if is_shared(dim)]
        repeated = {dim for dim, _, _ in symbols if sum(dim == other for other, _, _ in symbols) > 1}
        self._shared = tuple(symbol for symbol in symbols if symbol[0] in repeated)

    def __call__(self, feeds: Mapping[str, Any]) -> None:
        """Raise unless every input is there, once, with the right type and shape.

        Raises:
            FeedError: An input is missing or unknown.
            DtypeError: A value is not an array, or of another type.
            ShapeError: Another rank or size, or two dims of the same name differ.
        """
        check_named(feeds, self._inputs)
        if feeds.keys() != self._names:
            self._explain_names(feeds)
        for name, dtype, rank, fixed in self._expected:
            value = feeds[name]
            if dtype.hasobject:
                _check_text(name, dtype, value)
            elif not isinstance(value, np.ndarray) or value.dtype != dtype:
                raise _dtype_error(name, dtype, value)
            shape = value.shape
            if rank >= 0:
                if len(shape) != rank:
                    self._explain_shape(name, shape)
                for i, dim in fixed:
                    if shape[i] != dim:
                        self._explain_shape(name, shape)
        if self._shared:
            self._check_shared(feeds)

    def _explain_names(self, feeds: Mapping[str, Any]) -> None:
        listed = "; ".join(map(str, self._inputs)) or "no inputs"
        for name in feeds:
            if name not in self._names:
                raise FeedError(
                    "the model has no such input",
                    got=repr(name),
                    expected=listed,
                    fix=did_you_mean(name, self._names - feeds.keys()),
                )
        missing = [name for name, _, _, _ in self._expected if name not in feeds]
        raise FeedError("an input is missing", got=", ".join(map(repr, feeds)) or "no inputs", expected=listed,
                        fix=f"add {', '.join(map(repr, missing))}")  # fmt: skip

    def _explain_shape(self, name: str, shape: tuple[int, ...]) -> None:
        spec = next(spec for spec in self._inputs if spec.name == name)
        dims = spec.shape or ()
        wrong = next((i for i, dim in enumerate(dims) if isinstance(dim, int) and dim != shape[i]), None) if (
            len(dims) == len(shape)
        ) else None  # fmt: skip
        place = "" if wrong is None else f", dim {wrong}"
        what = "an array has the wrong number of dims" if wrong is None else "an array has the wrong shape"
        raise ShapeError(what, where=f"input {name!r}{place}", got=f"{_dims(shape)}", expected=_dims(dims))

    def _check_shared(self, feeds: Mapping[str, Any]) -> None:
        seen: dict[int | str, tuple[int, str]] = {}
        for symbol, name, i in self._shared:
            size = feeds[name].shape[i]
            first, place = seen.setdefault(symbol, (size, f"input {name!r}, dim {i}"))
            if size != first:
                raise ShapeError(
                    "two dims of the same name have different sizes",
                    where=f"input {name!r}, dim {i} ({symbol!r})",
                    got=size,
                    expected=f"{first}, as in {place}",
                )


def check_named(arrays: object, specs: Sequence[TensorSpec]) -> None:
    """Refuse what does not give arrays by name.

    Args:
        arrays: Inputs, or outputs to fill.
        specs: What they are of.

    Raises:
        FeedError: Not a mapping.
    """
    if not isinstance(arrays, (dict, Mapping)):  # nearly always a dict, which is told much faster
        raise FeedError(
            "arrays are given by name",
            got=type(arrays).__name__,
            expected="; ".join(map(str, specs)) or None,
            fix=f"{{{specs[0].name!r}: array}}" if specs else None,
        )


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """A hint at the most similar known name, or None when there is none."""
    close = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else None
    return f"did you mean {close[0]!r}?" if close else None


def _check_text(name: str, dtype: np.dtype[Any], value: object) -> None:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OU":
        raise _dtype_error(name, dtype, value)
    for element in value.flat if value.dtype.hasobject else ():
        if not isinstance(element, str):
            raise DtypeError(
                "an array of strings has something else in it",
                where=f"input {name!r}",
                got=f"{type(element).__name__} {element!r}",
                expected="str",
                fix="np.char.decode(array.astype(bytes))" if isinstance(element, bytes) else "array.astype(str)",
            )


def _dtype_error(name: str, dtype: np.dtype[Any], value: object) -> DtypeError:
    got = str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
    kind = "str" if dtype.kind == "O" else f'"{dtype}"'
    fix = f"array.astype({kind})" if isinstance(value, np.ndarray) else f"np.asarray(value, dtype={kind})"
    what = "an array has the wrong data type" if isinstance(value, np.ndarray) else "an input is not a numpy array"
    return DtypeError(what, where=f"input {name!r}", got=got, expected=str(dtype), fix=fix)


def _dims(dims: Iterable[int | str]) -> str:
    return f"({', '.join(map(str, dims))})"

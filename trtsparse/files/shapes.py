"""What a model says about the shapes of its inputs, and whether given ones agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from trtsparse.errors import ConfigError

__all__ = ["Dims", "check_shapes", "dim_of", "input_dims", "is_shared", "with_sizes"]

Dims = tuple["int | str", ...]
"""A number for a fixed dim, a name for a dynamic one; "?" where the model gives none."""


def input_dims(graph: onnx.GraphProto) -> dict[str, Dims | None]:
    """The dims of the tensors that must be fed, by name; None where not even the rank is known.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        >>> input_dims(parser.parse_model(text).graph)
        {'x': ('n', 4)}
    """
    given = {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    kinds = {value.name: value.type.tensor_type for value in graph.input if value.type.HasField("tensor_type")}
    return {
        name: tuple(dim_of(dim) for dim in kind.shape.dim) if kind.HasField("shape") else None
        for name, kind in kinds.items()
        if name not in given
    }


def dim_of(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """A number, a name, or "?" where the model gives neither."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or "?"


def is_shared(dim: int | str) -> bool:
    """True for a name that stands for one size wherever it occurs.

    Exporters also write "?" or a name made up for each file; those say nothing.

    Example:
        >>> [is_shared(dim) for dim in (4, "batch", "?", "unk__12")]
        [False, True, False, False]
    """
    return isinstance(dim, str) and dim.isidentifier() and not dim.lower().startswith("unk__")


def check_shapes(inputs: Mapping[str, Dims | None], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Refuse shapes that the inputs cannot have.

    Args:
        inputs: What the model says, by name.
        shapes: Whole shapes of some of them.

    Returns:
        The sizes of the names that dims share.

    Raises:
        ConfigError: Another rank or size than the model's, or two sizes for dims of one name.

    Example:
        >>> check_shapes({"x": ("n", 4), "y": ("n", "m")}, {"x": (2, 4)})
        {'n': 2}
        >>> check_shapes({"x": ("n", 4)}, {"x": (2, 5)})
        Traceback (most recent call last):
        trtsparse.errors.ConfigError: a shape contradicts the model
          where: shapes
          got: x: (2, 5)
          expected: x: (n, 4)
    """
    seen: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        dims = inputs.get(name)
        if dims is None:
            if any(size < 0 for size in shape):
                raise _contradiction(name, shape, "sizes of 0 or more")
            continue
        if len(dims) != len(shape) or not all(
            size >= 0 and (isinstance(dim, str) or dim == size) for dim, size in zip(dims, shape, strict=True)
        ):
            raise _contradiction(name, shape, f"{name}: {_written(dims)}")
        for i, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if not isinstance(dim, str) or not is_shared(dim):
                continue
            first, place = seen.setdefault(dim, (size, f"input {name!r}, dim {i}"))
            if size != first:
                raise ConfigError(
                    "two dims of the same name have different sizes",
                    where=f"shapes, input {name!r}, dim {i} ({dim!r})",
                    got=size,
                    expected=f"{first}, as in {place}",
                )
    return {dim: size for dim, (size, _) in seen.items()}


def with_sizes(dims: Dims, sizes: Mapping[str, int]) -> Dims:
    """The dims with the names replaced whose sizes are known.

    Example:
        >>> with_sizes(("n", "m", 4), {"n": 2})
        (2, 'm', 4)
    """
    return tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)


def _contradiction(name: str, shape: Sequence[int], expected: str) -> ConfigError:
    got = f"{name}: {_written(shape)}"
    return ConfigError("a shape contradicts the model", where="shapes", got=got, expected=expected)


def _written(dims: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, dims))})"

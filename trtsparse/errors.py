"""Every error that this package raises.

The tree; each class also inherits the builtin that callers would catch without knowing us::

    TrtSparseError
    +-- ModelError(ValueError)                    the ONNX file or its content is wrong
    |   +-- ModelNotFoundError(FileNotFoundError)
    |   +-- ExternalDataError                     weights in a side file: missing, short, outside the folder
    |   +-- OperatorError                         operators or opsets nobody here knows, or the parser refuses
    +-- ConfigError(ValueError)                   an argument or option is wrong
    |   +-- UnsupportedOptionError                right, but not on the installed version
    +-- PatternError(ValueError)                  an array cannot carry the N:M pattern as asked
    +-- PruneError(ValueError)                    a tensor cannot be pruned as asked
    +-- FeedError(ValueError)                     a session's input: unknown or missing name
    |   +-- ShapeError                            ... its shape
    |   +-- DtypeError(TypeError)                 ... its data type
    +-- PrecisionError(RuntimeError)              converted, but less accurate than asked
    +-- BuildError(RuntimeError)                  the builder returned no plan
    +-- PlanError(ValueError)                     not a plan, truncated, of another version or flavour
    +-- EngineError(RuntimeError)                 loading or executing failed
    +-- OutputError(OSError)                      a result could not be written
    +-- MissingDependencyError(ImportError)       an optional library is not installed
    +-- DeviceError(RuntimeError)                 this machine has no GPU, or not the right one
    +-- CudaError(RuntimeError)                   a CUDA call failed

A message has a first line that says what happened, then indented lines: where, got, expected, and what to do.
The same facts are attributes. ``exit_code`` is what the command line returns for the class.
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "ConfigError",
    "CudaError",
    "DeviceError",
    "DtypeError",
    "EngineError",
    "ExternalDataError",
    "FeedError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "OperatorError",
    "OutputError",
    "PatternError",
    "PlanError",
    "PrecisionError",
    "PruneError",
    "ShapeError",
    "TrtSparseError",
    "UnsupportedOptionError",
]


class TrtSparseError(Exception):
    """Root of the tree; catch it to catch everything that this package raises on purpose.

    Args:
        what: What happened, one sentence without a full stop.
        where: The file, tensor, node or option concerned.
        got: What was found.
        expected: What would have been right.
        fix: What the reader can do about it.

    Example:
        >>> print(ModelError("dims and data disagree", where="tensor 'w'", got="60 bytes", expected="64 bytes"))
        dims and data disagree
          where: tensor 'w'
          got: 60 bytes
          expected: 64 bytes
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.fix = fix
        facts = {"where": where, "got": got, "expected": expected, "to fix": fix}
        lines = [what, *(f"  {name}: {fact}" for name, fact in facts.items() if fact is not None)]
        super().__init__("\n".join(lines))

    def __str__(self) -> str:
        return str(self.args[0])


class ModelError(TrtSparseError, ValueError):
    """The ONNX file cannot be read, or its content contradicts itself."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such file."""


class ExternalDataError(ModelError):
    """Weights stored beside the model are missing, too short, or outside its folder."""


class OperatorError(ModelError):
    """Operators that are unknown or refused; ``nodes`` describes each of them."""

    def __init__(self, what: str, *, nodes: tuple[str, ...], where: object = None, fix: str | None = None) -> None:
        self.nodes = nodes
        super().__init__(what, where=where, got="".join(f"\n    {node}" for node in nodes), fix=fix)


class ConfigError(TrtSparseError, ValueError):
    """An argument or option is wrong."""


class UnsupportedOptionError(ConfigError):
    """The option exists, but not in the installed version."""


class PatternError(TrtSparseError, ValueError):
    """An array cannot carry the N:M pattern as asked."""


class PruneError(TrtSparseError, ValueError):
    """A tensor cannot be pruned as asked."""


class FeedError(TrtSparseError, ValueError):
    """A session was given an input that it does not have, or not all that it has."""


class ShapeError(FeedError):
    """An input's shape does not fit."""


class DtypeError(FeedError, TypeError):
    """An input's data type does not fit."""


class PrecisionError(TrtSparseError, RuntimeError):
    """The converted model is less accurate than asked; ``error`` and ``limit`` are relative to the output range."""

    exit_code = 1

    def __init__(
        self, what: str, *, error: float, limit: float, where: object = None, fix: str | None = None
    ) -> None:
        self.error = error
        self.limit = limit
        super().__init__(what, where=where, got=f"{error:.3g}", expected=f"at most {limit:.3g}", fix=fix)


class BuildError(TrtSparseError, RuntimeError):
    """TensorRT returned no plan."""


class PlanError(TrtSparseError, ValueError):
    """The bytes are not a whole plan, or a plan of another version or flavour."""


class EngineError(TrtSparseError, RuntimeError):
    """An engine could not be loaded or executed."""


class OutputError(TrtSparseError, OSError):
    """A result could not be written; nothing was left behind."""


class MissingDependencyError(TrtSparseError, ImportError):
    """An optional library is not installed; ``extra`` names the extra that brings it."""

    exit_code = 3

    def __init__(self, what: str, *, extra: str, where: object = None) -> None:
        self.extra = extra
        super().__init__(what, where=where, fix=f"pip install 'trtsparse[{extra}]'")


class DeviceError(TrtSparseError, RuntimeError):
    """This machine has no GPU, or not one that can do this."""

    exit_code = 3


class CudaError(TrtSparseError, RuntimeError):
    """A CUDA call failed with ``code`` and ``name``."""

    def __init__(self, call: str, *, code: int, name: str, fix: str | None = None) -> None:
        self.call = call
        self.code = code
        self.name = name
        super().__init__(f"{call} failed", got=f"{name} ({code})", fix=fix)

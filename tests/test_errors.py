"""The error tree: every class can be caught by its meaning, and by the builtin that callers know."""

import inspect

import pytest

from trtsparse import errors
from trtsparse.errors import TrtSparseError

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_ours_and_drawn_in_the_tree(kind):
    assert issubclass(kind, TrtSparseError)
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not TrtSparseError])
def test_every_error_inherits_the_matching_builtin(kind):
    builtin = {ValueError, RuntimeError, OSError, ImportError, TypeError, FileNotFoundError}
    assert builtin & set(inspect.getmro(kind))


def test_a_message_has_one_line_a_fact():
    error = errors.ModelError("it broke", where="node 'a'", got=3, expected=4, fix="mend it")
    assert str(error) == "it broke\n  where: node 'a'\n  got: 3\n  expected: 4\n  to fix: mend it"
    assert (error.what, error.where, error.got, error.expected, error.fix) == (
        "it broke",
        "node 'a'",
        3,
        4,
        "mend it",
    )


def test_an_error_that_is_an_oserror_keeps_its_text():
    assert str(errors.OutputError("cannot write", where="x")) == "cannot write\n  where: x"
    assert str(errors.ModelNotFoundError("there is no such file", where="x")) == "there is no such file\n  where: x"


def test_operator_errors_list_every_node():
    error = errors.OperatorError("unknown operators", nodes=("A (node 'a')", "B (node 'b')"))
    assert str(error) == "unknown operators\n  got: \n    A (node 'a')\n    B (node 'b')"


def test_a_missing_dependency_names_the_extra():
    error = errors.MissingDependencyError("ONNX Runtime is not installed", extra="cpu")
    assert str(error) == "ONNX Runtime is not installed\n  to fix: pip install 'trtsparse[cpu]'"
    assert error.exit_code == 3


def test_a_cuda_error_carries_call_code_and_name():
    error = errors.CudaError("cuMemAlloc", code=2, name="CUDA_ERROR_OUT_OF_MEMORY")
    assert str(error) == "cuMemAlloc failed\n  got: CUDA_ERROR_OUT_OF_MEMORY (2)"


def test_a_precision_error_carries_error_and_limit():
    error = errors.PrecisionError("less accurate than asked", error=0.5, limit=0.02)
    assert str(error) == "less accurate than asked\n  got: 0.5\n  expected: at most 0.02"
    assert error.exit_code == 1

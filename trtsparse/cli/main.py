"""The ``trtsparse`` command: finds the verb, runs it, turns errors into one message and an exit code.

Exit codes: 0 yes or done; 1 the answer is no; 2 bad input or usage; 3 this machine lacks something.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from trtsparse._version import __version__
from trtsparse.errors import OutputError, TrtSparseError

__all__ = ["main"]

_VERBS = {
    "validate": "say which weights are 2:4 sparse, and which could be",
    "prune": "make the weights 2:4 sparse, by magnitude or with calibration data",
    "convert": "make a model FP16, BF16 or INT8, and measure what that changes",
    "build": "build a TensorRT engine",
    "run": "run a plan or an ONNX model on given inputs",
    "bench": "measure latency, throughput and energy of a plan or an ONNX model",
    "compare": "measure dense against sparse, and say which to ship",
    "trtexec": "do what NVIDIA's trtexec does, with its command line, on every TensorRT version",
    "tune": "time dense and sparse kernels for a model's products on this GPU",
    "explain": "say why each layer is or is not sparse, and what that gains",
    "permute": "reorder channels so that pruning loses less",
    "export-triton": "write a model repository for NVIDIA Triton Inference Server",
    "doctor": "say what is installed here, and what each part can do",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default: ``sys.argv``.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["trtexec"]:  # its words are read in trtexec's own way, not in argparse's
        return _guarded(lambda: importlib.import_module("trtsparse.cli.trtexec").main(given[1:]))
    parser = argparse.ArgumentParser(
        prog="trtsparse", description="From an ONNX model to a TensorRT engine that uses Sparse Tensor Cores."
    )
    parser.add_argument("--version", action="version", version=f"trtsparse {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    wanted = next((word for word in given if not word.startswith("-")), None)
    for verb, description in _VERBS.items():
        verb_parser = verbs.add_parser(verb, help=description, description=description.capitalize() + ".")
        if verb == wanted != "trtexec":  # the other verbs' modules are not even imported
            _module(verb).configure(verb_parser)
    options = parser.parse_args(given)
    return _guarded(lambda: _module(options.verb).run(options))


def _module(verb: str) -> Any:
    return importlib.import_module(f"trtsparse.cli.{verb.replace('-', '_')}")


class _Output:
    """A stream whose reader may go away: then the rest is dropped, and the verb's answer is what it was.

    Args:
        stream: Where to write.
        required: Any other failure is an error; else there is nobody to tell.
    """

    def __init__(self, stream: Any, *, required: bool) -> None:
        self._stream = stream
        self._required = required

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to the stream, or nowhere."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            with contextlib.suppress(OSError):  # what is still in buffers must not fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._required and not isinstance(error, BrokenPipeError):
                raise OutputError("cannot write what there is to say", got=error.strerror) from error


def _guarded(run: Callable[[], int]) -> int:
    out: Any = sys.stdout and _Output(sys.stdout, required=True)  # None where it was closed from the beginning
    err: Any = sys.stderr and _Output(sys.stderr, required=False)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return _answer(run)


def _answer(run: Callable[[], int]) -> int:
    try:
        code = int(run())
        print(end="", flush=True)  # here, where it may fail
    except TrtSparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if os.environ.get("TRTSPARSE_DEBUG"):
            raise
        print(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "  to fix: this is a defect of trtsparse; run again with TRTSPARSE_DEBUG=1 and report the traceback",
            file=sys.stderr,
        )
        return 2
    else:
        return code


if __name__ == "__main__":
    sys.exit(main())

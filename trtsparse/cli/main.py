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
from collections.abc import Sequence

from trtsparse._version import __version__
from trtsparse.errors import TrtSparseError

__all__ = ["main"]

_VERBS = {
    "validate": "say which weights are 2:4 sparse, and which could be",
    "prune": "make the weights 2:4 sparse by magnitude",
    "build": "build a TensorRT engine",
    "run": "run a plan or an ONNX model on given inputs",
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
    parser = argparse.ArgumentParser(
        prog="trtsparse", description="From an ONNX model to a TensorRT engine that uses Sparse Tensor Cores."
    )
    parser.add_argument("--version", action="version", version=f"trtsparse {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    wanted = next((word for word in given if not word.startswith("-")), None)
    for verb, description in _VERBS.items():
        verb_parser = verbs.add_parser(verb, help=description, description=description.capitalize() + ".")
        if verb == wanted:  # the other verbs' modules are not even imported
            importlib.import_module(f"trtsparse.cli.{verb}").configure(verb_parser)
    return _run(parser.parse_args(given))


def _run(options: argparse.Namespace) -> int:
    try:
        return int(importlib.import_module(f"trtsparse.cli.{options.verb}").run(options))
    except TrtSparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # whoever read our output has gone: say nothing more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("TRTSPARSE_DEBUG"):
            raise
        print(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "  to fix: this is a defect of trtsparse; run again with TRTSPARSE_DEBUG=1 and report the traceback",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())

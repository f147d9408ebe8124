"""Options and output that several verbs share."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trtsparse.errors import ConfigError, FeedError

__all__ = [
    "add_engine",
    "add_files",
    "add_inputs",
    "add_json",
    "add_pattern",
    "add_unknown_operators",
    "parse_shapes",
    "print_json",
    "read_inputs",
    "say",
]


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the model to read and ``--output``, the model to write."""
    parser.add_argument("model", metavar="IN", help="ONNX model")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="where to write; may be IN itself")


def add_pattern(parser: argparse.ArgumentParser) -> None:
    """Add ``--pattern``."""
    parser.add_argument("--pattern", default="2:4", metavar="N:M", help="default: 2:4")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add ``--input``, which `read_inputs` reads."""
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=FILE.npy", help="one input's array; repeatable"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``."""
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "onnxruntime", "tensorrt", "cusparselt"), help="default: auto"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document to stdout, everything else to stderr"
    )


def add_unknown_operators(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-unknown-operators``."""
    parser.add_argument(
        "--allow-unknown-operators",
        action="store_true",
        help="accept operators that ONNX does not define, such as TensorRT plugins exported without a domain",
    )


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document to stdout."""
    print(json.dumps(document, indent=2))


def say(text: str) -> None:
    """Print a line for people to stderr, where it does not disturb what a program reads from stdout."""
    print(text, file=sys.stderr)


def read_inputs(pairs: list[str]) -> dict[str, Any]:
    """Read the arrays of "name=file.npy".

    Raises:
        ConfigError: Not of this form.
        FeedError: A file cannot be read, or holds no array.
    """
    import numpy as np

    feeds = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ConfigError("cannot read an input", where="--input", got=pair, expected="name=file.npy")
        try:
            with Path(path).open("rb") as file:
                feeds[name] = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FeedError("the array cannot be read", where=f"--input {pair}", got=str(error)) from error
    return feeds


def parse_shapes(text: str | None) -> dict[str, tuple[int, ...]] | None:
    """Read "x:1x3x224x224,mask:1x128".

    Raises:
        ConfigError: Not of this form, or a name comes twice.
    """
    if text is None:
        return None
    shapes = {}
    for part in text.split(","):
        name, colon, dims = part.rpartition(":")
        numbers = dims.split("x")
        if not (colon and name and all(number.isdecimal() for number in numbers)):
            raise ConfigError("cannot read a shape", where="--shapes", got=part, expected="name:1x3x224x224")
        if name in shapes:
            once = f"one shape for {name!r}"
            raise ConfigError("a tensor is named twice", where="--shapes", got=text, expected=once)
        shapes[name] = tuple(int(number) for number in numbers)
    return shapes

"""Options and output that several verbs share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from trtsparse.errors import ConfigError

__all__ = ["add_json", "add_unknown_operators", "parse_shapes", "print_json", "say"]


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


def parse_shapes(text: str | None) -> dict[str, tuple[int, ...]] | None:
    """Read "x:1x3x224x224,mask:1x128".

    Raises:
        ConfigError: Not of this form.
    """
    if text is None:
        return None
    shapes = {}
    for part in text.split(","):
        name, colon, dims = part.rpartition(":")
        numbers = dims.split("x")
        if not (colon and name and all(number.isdecimal() for number in numbers)):
            raise ConfigError("cannot read a shape", where="--shapes", got=part, expected="name:1x3x224x224")
        shapes[name] = tuple(int(number) for number in numbers)
    return shapes

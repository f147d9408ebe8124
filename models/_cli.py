"""The command line that every generator has: ``python -m models.<name>``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from models._recipe import FLAG, Recipe
from trtsparse.errors import TrtSparseError

__all__ = ["main"]


def main(recipe: type[Recipe], arguments: Sequence[str] | None = None) -> int:
    """Write a recipe's model as the command line asks; print one line about it.

    Args:
        recipe: The recipe; each of its fields is an option.
        arguments: Words of the command line, by default those of this process.

    Returns:
        The process's exit code.
    """
    options = vars(_parser(recipe).parse_args(arguments))
    path = Path(options.pop("output"))
    try:
        graph = recipe(**options).save(path)
    except TrtSparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{path}: {recipe.name}, {graph.parameters:,} parameters, {graph.nbytes / 1e6:,.1f} MB of weights")
    return 0


def _parser(recipe: type[Recipe]) -> argparse.ArgumentParser:
    summary = (recipe.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m models.{recipe.name}", description=summary)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the .onnx file to write")
    for field in dataclasses.fields(recipe):
        flag, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.metadata["kind"] is FLAG:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            help_text = text if field.default is None else f"{text} (default: {_shown(field.default)})"
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar="VALUE", help=help_text)
    return parser


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

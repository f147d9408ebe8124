"""Reads a trtexec command line of any version into `TrtexecOptions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import BY_NAME, Arguments, split
from trtsparse.trtexec.options import EngineName, ModelOptions, TrtexecOptions
from trtsparse.trtexec.parse_build import read_build
from trtsparse.trtexec.parse_run import read_inference, read_policy, read_reporting, read_system
from trtsparse.trtexec.parse_shapes import read_shapes
from trtsparse.trtexec.policy import Like, Policy
from trtsparse.trtexec.values import read

__all__ = ["parse"]


def parse(
    argv: Sequence[str], *, installed: tuple[Like, str] = (11, "the newest"), engine: EngineName | None = None
) -> TrtexecOptions:
    """Read a command line.

    Args:
        argv: Without the program's name.
        installed: The trtexec of the installed library, whose defaults apply without ``--like``, and the reason, as
            `trtsparse.trtexec.policy.like_of` gives them.
        engine: What executes, where something else than the command line tells it.

    Returns:
        What is asked for, with `TrtexecOptions.notes` to print. With ``--help`` or without any flag nothing else is
        looked at, as in trtexec.

    Raises:
        ConfigError: An unknown or refused flag, a value that cannot be read, flags that exclude each other. Where
            trtexec has a text for it, that is the first line.

    Example:
        >>> options = parse(["--onnx=m.onnx", "--sparsity=enable", "--fp16", "--like=11"])
        >>> options.build.precision, options.policy.graphs
        ('fp16', True)
        >>> print(options.notes[0].text.partition(":")[0])
        trtexec 11 has no --fp16, which exists from 5.1 to 10.16
    """
    words = tuple(argv)
    chosen = engine or cast(EngineName, _value(words, "--engine") or "auto")
    if not words or {"--help", "-h"} & {word.partition("=")[0] for word in words}:
        like, reason = _like(words) or installed
        return TrtexecOptions(argv=words, policy=Policy.of(like, reason=reason), engine=chosen, help=True)
    found = split(words, engine=chosen)
    like, reason = _like(words) or installed
    arguments = Arguments(found, like, installed=installed[0], engine=chosen)
    builds = not arguments.has("--loadEngine")
    if builds and not arguments.has("--onnx"):
        raise ConfigError("Model missing or format not recognized", expected="--onnx=<file> or --loadEngine=<file>")
    profiles, shapes = read_shapes(arguments, builds=builds or chosen == "cusparselt")
    return TrtexecOptions(
        argv=words,
        policy=read_policy(arguments, reason),
        engine=chosen,
        model=ModelOptions(onnx=arguments.get("--onnx", None)),
        build=read_build(arguments, profiles),
        inference=read_inference(arguments, shapes, builds=builds),
        reporting=read_reporting(arguments),
        system=read_system(arguments),
        notes=tuple(arguments.notes),
    )


def _like(words: Sequence[str]) -> tuple[Like, str] | None:
    like = _value(words, "--like")
    return None if like is None else (cast(Like, int(like)), f"--like={like}")


def _value(words: Sequence[str], flag: str) -> Any:
    """The value of a flag that decides how the others are read; None without it."""
    for word in words:
        name, equals, text = word.partition("=")
        if name == flag:
            return read(BY_NAME[name], text if equals else None)
    return None

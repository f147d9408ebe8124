"""``trtsparse trtexec``: the command line of NVIDIA's trtexec, of any version."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run, printing each line as trtexec does.

    Args:
        arguments: What follows ``trtsparse trtexec``; not for argparse, which would read it in its own way.

    Returns:
        0 passed, 1 failed, 130 interrupted.
    """
    from trtsparse.trtexec.run import trtexec

    try:
        return trtexec(list(arguments), write=_write).exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _write(stream: str, line: str) -> None:
    file = sys.stdout if stream == "out" else sys.stderr
    try:
        print(line, file=file, flush=True)
    except BrokenPipeError:  # whoever read our output has gone; the run and its files go on
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())

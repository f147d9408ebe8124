"""The lines that trtexec prints: a time, a level, a text; and the banners that scripts look for.

As trtexec does, information goes to standard output, warnings and errors to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trtsparse._version import __version__

__all__ = ["Library", "Printer", "Write", "banner"]

Level = Literal["I", "W", "E", "V"]
Stream = Literal["out", "err"]
Write = Callable[[Stream, str], None]
"""Where a line goes: standard output or standard error, and the line without its end."""


@dataclass(frozen=True)
class Library:
    """The TensorRT that a banner names.

    Attributes:
        name: "TensorRT" or "TensorRT-RTX"; "" where neither is installed.
        version: (major, minor, patch, build), as far as it is known.
    """

    name: str = ""
    version: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))}" if self.name else "no TensorRT"

    @property
    def tag(self) -> str:
        """As in NVIDIA's banners: "[TensorRT v8601]", "[TensorRT v101401] [b48]".

        One digit for the minor version up to 9, two from 10 on; the build's number from 10.4 on.

        Example:
            >>> Library("TensorRT", (8, 6, 1)).tag, Library("TensorRT", (10, 14, 1, 48)).tag
            ('[TensorRT v8601]', '[TensorRT v101401] [b48]')
        """
        if not self.name:
            return "[no TensorRT]"
        major, minor, patch = (*self.version, 0, 0, 0)[:3]
        old = self.name == "TensorRT" and major < 10
        number = major * (1000 if old else 10_000) + minor * 100 + patch
        told = len(self.version) > 3 and not (self.name == "TensorRT" and (major, minor) < (10, 4))
        return f"[{self.name} v{number}]" + (f" [b{self.version[3]}]" if told else "")


def banner(word: str, library: Library, arguments: Sequence[str]) -> str:
    """The line that begins and ends a run.

    ``&&&& PASSED TensorRT.trtexec`` is what scripts look for, so the name stays; what ran is told by the version in
    brackets and by the command after the number sign.

    Args:
        word: "RUNNING", "PASSED" or "FAILED".
        library: What builds and runs here.
        arguments: The command line without the program's name.

    Example:
        >>> banner("PASSED", Library("TensorRT", (8, 6, 1)), ["--onnx=m.onnx"]).replace(__version__, "X")
        '&&&& PASSED TensorRT.trtexec [TensorRT v8601] [trtsparse X] # trtsparse trtexec --onnx=m.onnx'
    """
    command = " ".join(("trtsparse trtexec", *arguments))
    return f"&&&& {word} TensorRT.trtexec {library.tag} [trtsparse {__version__}] # {command}"


@dataclass
class Printer:
    """Writes lines as trtexec does, and keeps them.

    Args:
        write: Gets each line at once; None keeps them only.
        verbose: Whether lines of level V are written.

    Attributes:
        lines: All that were written, in order.

    Example:
        >>> out = Printer()
        >>> out.info("Starting inference")
        >>> out.lines[0][21:]
        ' [I] Starting inference'
    """

    write: Write | None = None
    verbose: bool = False
    lines: list[str] = field(default_factory=list)

    def info(self, text: str = "") -> None:
        """A line of level I, or several."""
        self._level("I", text)

    def warning(self, text: str) -> None:
        """A line of level W, or several."""
        self._level("W", text)

    def error(self, text: str) -> None:
        """A line of level E, or several."""
        self._level("E", text)

    def detail(self, text: str = "") -> None:
        """A line of level V, or several; only where asked for."""
        if self.verbose:
            self._level("V", text)

    def plain(self, text: str) -> None:
        """Lines without a time: banners, help."""
        for line in text.splitlines():
            self._put("out", line)

    def _level(self, level: Level, text: str) -> None:
        stream: Stream = "out" if level in "IV" else "err"
        for line in text.split("\n"):
            self._put(stream, f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{level}] {line}")

    def _put(self, stream: Stream, line: str) -> None:
        self.lines.append(line)
        if self.write is not None:
            self.write(stream, line)

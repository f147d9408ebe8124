"""A child process that answers with lines of JSON, each within a time, or is killed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Child", "Died"]

_LAST_LINES = 5
_HOME = str(Path(__file__).parents[2])
"""Where this package is: a child has to find it too, however its parent did."""


class Died(Exception):  # noqa: N818 - what happened to another process, which its parent reports
    """The child ended or was too slow; the text says how."""


class Child:
    """A process that reads and writes lines of JSON.

    Args:
        command: What to start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), _HOME)))},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._complaints: deque[str] = deque(maxlen=_LAST_LINES)
        self._readers = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_complaints, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_answers(self) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout or ():
                self._lines.put(line)
        self._lines.put(None)

    def _read_complaints(self) -> None:
        with contextlib.suppress(ValueError):
            self._complaints.extend(self._process.stderr or ())

    def send(self, document: dict[str, Any]) -> None:
        """Write a line.

        Raises:
            Died: It has ended.
        """
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(document) + "\n")
                self._process.stdin.flush()
        except OSError:
            raise Died(self._end()) from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next line.

        Raises:
            Died: It has ended, or took longer and was killed.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise Died(f"no answer in {timeout_s:g} s") from None
        if line is None:
            raise Died(self._end())
        try:
            return dict(json.loads(line))
        except ValueError:
            self.close()
            raise Died(f"not an answer: {line.strip()!r}") from None

    def _end(self) -> str:
        """How it ended, in words."""
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1)
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        last = self._complaints[-1].strip() if self._complaints else ""
        return f"ended with exit code {code}" + (f": {last}" if last else "")

    def close(self) -> None:
        """End it; nothing of it is left."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

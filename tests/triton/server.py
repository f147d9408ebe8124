"""A real tritonserver on this machine, started and stopped by a test; nothing of it is left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.triton.environment import Environment

_count = itertools.count()
_START_SECONDS = 60
_STOP_SECONDS = 30
_EXIT_SECONDS = 10
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM: a test run that is killed leaves no server behind
os.execv(sys.argv[1], sys.argv[1:])
"""


class TritonServer:
    """The server and its addresses; a context manager.

    Args:
        environment: From `environment.make`.
        repository: The model repository.
        log: A file for what the server prints.
        arguments: More of the command line.
        backends: Another folder of backends.
    """

    def __init__(
        self, environment: Environment, repository: Path, log: Path, *arguments: str, backends: Path | None = None
    ) -> None:
        self.environment = environment
        self.log_path = log
        self._ports = free_ports(3)
        self._memory = f"trtsparse-test-{os.getpid()}-{next(_count)}-"
        http, grpc, metrics = (str(port) for port in self._ports)
        self._command = [
            str(environment.server),
            f"--model-repository={repository}",
            f"--backend-directory={backends or environment.backends}",
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            f"--backend-config=python,shm-region-prefix-name={self._memory}",
            f"--exit-timeout-secs={_EXIT_SECONDS}",
            *arguments,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def metrics(self) -> str:
        return f"127.0.0.1:{self._ports[2]}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> TritonServer:  # noqa: PYI034 - Self is not in Python 3.10
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-c", _DIE_WITH_PARENT, *self._command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment.variables(),
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_live():
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log[-8000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server did not start in {_START_SECONDS} s:\n{self.log[-8000:]}")
            time.sleep(0.05)

    def _is_live(self) -> bool:
        """True when every model was loaded, or found to be faulty."""
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://{self.http}/v2/health/live", timeout=1).close()
            return "Started HTTPService" in self.log
        return False

    def terminate(self) -> None:
        """SIGTERM, as a container's runtime sends it; returns at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status, when the server has ended."""
        assert self.process is not None
        return self.process.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """End the server, and its stubs even if it crashed, and remove its shared memory."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for path in Path("/dev/shm").glob(f"{self._memory}*"):  # noqa: S108 - shared memory has no other place
            path.unlink()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

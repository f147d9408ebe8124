"""Sessions: what an application holds to run a model."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trtsparse.builder.engine import BuiltEngine
from trtsparse.cuda.driver import count_gpus
from trtsparse.engines import Engine, TensorSpec, cusparselt_lacks, engine_from, needs_gpu, plan_header
from trtsparse.engines.device import DeviceEngine
from trtsparse.errors import ConfigError, DeviceError, EngineError, MissingDependencyError
from trtsparse.runtime.host import HostRunner
from trtsparse.runtime.memory import PoolStats
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.requests import Request

if TYPE_CHECKING:
    from typing_extensions import Self

    from trtsparse.cuda.base import Cuda
    from trtsparse.runtime.device import DeviceRunner

__all__ = ["Session"]

Place = Literal["host", "device"]
_owners: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_owners_lock = threading.Lock()
_open: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[object] = []
"""What a forked process has of its parent's sessions: freeing it would wait for threads that are not there."""


class Session:
    """A loaded model that checks what it is fed. Any number of threads may use it at once.

    An ONNX model runs on the CPU, or with ``engine="cusparselt"`` on a GPU, as a plan does. Inputs are numpy arrays,
    or arrays of PyTorch, CuPy, PyCUDA, JAX or whatever implements ``__dlpack__`` or ``__cuda_array_interface__``; on
    the GPU those are used in place when they are contiguous, on the session's GPU and at a multiple of 256 bytes.
    What the producer of an array has enqueued on its stream is waited for, on the GPU.

    A session is used in the process that opened it: neither CUDA nor the threads of ONNX Runtime are there after a
    fork, so the child opens one of its own.

    Args:
        source: An ONNX model: a path (needed for external data), bytes, a ModelProto or an OnnxModel; a plan: a path,
            bytes or what `build` returned; or an engine. Several sessions may share one: the last one closes it.
        engine: "auto", "onnxruntime", "tensorrt" or "cusparselt"; see `trtsparse.engines.engine_from`.
        threads: Of the CPU within one operator; by default as many as there are cores.
        device: The GPU's number, by default 0; where there is one.
        cuda: The CUDA binding: "auto", "cuda-python" or "pycuda" (which has no CUDA graphs).
        options: How to use the GPU, and how many requests at once.

    Raises:
        TrtSparseError: As in `trtsparse.engines.engine_from`, and as in `SessionOptions`.
        DeviceError: There is no such GPU, or the engine is on another one.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Add(x, x) }'
        >>> with Session(parser.parse_model(text)) as session:
        ...     session.run({"x": np.ones((3, 2), np.float32)})["y"].sum()
        np.float32(12.0)
    """

    _runner: DeviceRunner | HostRunner | None = None
    _is_inherited = False

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | Engine | DeviceEngine | Any,
        *,
        engine: str = "auto",
        threads: int | None = None,
        device: int | None = None,
        cuda: str | Cuda = "auto",
        options: SessionOptions | None = None,
    ) -> None:
        if options is not None and not isinstance(options, SessionOptions):
            raise ConfigError(
                "not options of a session",
                where="options",
                got=type(options).__name__,
                expected="SessionOptions(...)",
            )
        if isinstance(source, BuiltEngine):
            source = source.plan
        self._options = options or SessionOptions()
        self._lock = threading.Lock()
        self._tasks: ThreadPoolExecutor | None = None
        loaded: Engine | DeviceEngine
        on_host = isinstance(source, Engine)
        if isinstance(source, DeviceEngine) or (not on_host and needs_gpu(source, engine)):
            loaded = self._open_on_gpu(source, engine, threads=threads, device=device, cuda=cuda)
        else:
            if device is not None or cuda != "auto":
                raise ConfigError(
                    "an ONNX model is executed on the CPU",
                    where="cuda" if device is None else "device",
                    fix="build a plan of it for the GPU, take engine='cusparselt', or leave the option out",
                )
            opened: Any = source if on_host else engine_from(source, engine=engine, threads=threads)
            loaded = opened
            self._runner = HostRunner(opened, contexts=self._options.contexts)
        self._engine = loaded
        _own(loaded)
        self._inputs: tuple[TensorSpec, ...] = loaded.inputs
        self._outputs: tuple[TensorSpec, ...] = loaded.outputs
        self._description = loaded.description
        _open.add(self)

    def _open_on_gpu(
        self, source: Any, engine: str, *, threads: int | None, device: int | None, cuda: str | Cuda
    ) -> DeviceEngine:
        from trtsparse.cuda.base import current, open_cuda
        from trtsparse.runtime.device import DeviceRunner

        if threads is not None:
            raise ConfigError(
                "this is executed by a GPU, without threads of the CPU",
                where="threads",
                got=threads,
                fix="leave it out",
            )
        if device is None:
            device = source.device if isinstance(source, DeviceEngine) else getattr(cuda, "device", 0)
        try:
            provider = open_cuda(cuda, device=device)
        except (DeviceError, MissingDependencyError) as error:
            raise _no_gpu(source, error) from error
        if isinstance(source, DeviceEngine):
            self._runner = DeviceRunner(source, provider, self._options)
            return source
        with current(provider):
            loaded = engine_from(source, engine=engine, device=device)
        if not isinstance(loaded, DeviceEngine):
            loaded.close()
            raise EngineError("the engine for plans does not execute on a GPU", where=loaded.description)
        try:
            self._runner = DeviceRunner(loaded, provider, self._options)
        except BaseException:
            loaded.close()
            raise
        return loaded

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        return self._outputs

    @property
    def engine(self) -> Engine | DeviceEngine:
        """The engine, for another session to share."""
        return self._engine

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._runner is None

    @property
    def memory(self) -> dict[str, PoolStats]:
        """What the pools of "device" and "pinned" memory hold; empty on the CPU."""
        return self._alive().memory

    @property
    def contexts(self) -> int:
        """How many execution contexts there are now; they are made when needed."""
        return self._alive().contexts

    @property
    def contexts_replaced(self) -> int:
        """How many execution contexts were replaced because an execution had failed."""
        return self._alive().contexts_replaced

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        to: Place | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Execute once.

        Args:
            feeds: An array for each input, of exactly its data type. Host arrays need not be contiguous.
            outputs: Names of the outputs to return, by default all.
            to: "host" for numpy arrays, "device" for `trtsparse.runtime.arrays.DeviceArray`; by default "host", with
                ``stream`` "device".
            stream: The application's CUDA stream: everything is enqueued there and nothing is waited for. Arrays fed
                must stay unchanged until the stream has got there; they are kept alive.

        Returns:
            Output name to array, owned by the caller.

        Raises:
            FeedError: An input is missing or unknown.
            DtypeError: A value is not an array, or of another type: nothing is cast in silence.
            ShapeError: Another rank or size, two dims of the same name differ, or no profile admits the shapes.
            ConfigError: ``outputs`` has an unknown name, or a device array does not fit (see `SessionOptions.unfit`).
            EngineError: The session is closed, or the library reports a failure.
            CudaError: A CUDA call failed.
        """
        on_device = _goes_to_device(to, stream)
        runner = self._runner
        if runner is None:
            runner = self._alive()
        return runner.run(feeds, outputs=outputs, on_device=on_device, stream=stream)

    def run_into(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any], *, stream: Any = None) -> dict[str, Any]:
        """Execute once and fill arrays of the caller.

        Args:
            feeds: As in `run`.
            outputs: Output name to a writable array of its shape and type: numpy, best from `host_array`, or on the
                GPU, where it is written in place. Outputs left out are dropped.
            stream: As in `run`; host arrays must then come from `host_array`.

        Returns:
            ``outputs``.

        Raises:
            TrtSparseError: As in `run`, also where an array cannot be filled.
        """
        return self._alive().run(feeds, into=outputs, on_device=stream is not None, stream=stream)

    def submit(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
        to: Place = "host",
    ) -> Request:
        """Enqueue one execution and return at once, so that its copies overlap with other executions.

        Waits while `SessionOptions.contexts` requests are under way. Arrays in device memory or from `host_array`
        must stay unchanged until the result is there; others are copied before this returns.

        Args:
            feeds: As in `run`.
            outputs: As in `run`; not beside ``into``.
            into: As the outputs of `run_into`, filled when the result is there.
            to: As in `run`.

        Raises:
            TrtSparseError: As in `run`, for what is known at once; the rest comes with the result.
        """
        on_device = _goes_to_device(to, None)
        if into is not None and outputs is not None:
            raise ConfigError(
                "the arrays to fill name the outputs", where="outputs", got=outputs, fix="leave outputs out"
            )
        made = self._alive().submit(feeds, outputs=outputs, into=into, on_device=on_device)
        return made if isinstance(made, Request) else Request(made.result, made.done)

    async def arun(
        self, feeds: Mapping[str, Any], *, outputs: Sequence[str] | None = None, to: Place = "host"
    ) -> dict[str, Any]:
        """`run` for asyncio: the event loop goes on meanwhile.

        Args:
            feeds: As in `run`.
            outputs: As in `run`.
            to: As in `run`.

        Raises:
            TrtSparseError: As in `run`.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self._alive()
            if self._tasks is None:
                self._tasks = ThreadPoolExecutor(self._options.contexts, thread_name_prefix="trtsparse-async")
            made = loop.run_in_executor(self._tasks, lambda: self.run(feeds, outputs=outputs, to=to))
        return await made

    def host_array(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """A numpy array that the GPU reads and writes without a copy in between; on the CPU an ordinary one.

        Args:
            shape: The array's.
            dtype: The array's.

        Returns:
            Not initialised. Its memory goes back to the session's pool when nobody holds it any more.
        """
        return self._alive().host_array(tuple(shape), np.dtype(dtype))

    def close(self) -> None:
        """Finish what is under way and free everything. Closing twice is harmless.

        Requests that were submitted keep their results; calls that wait in other threads are told.
        """
        with self._lock:
            runner, self._runner = self._runner, None
            tasks, self._tasks = self._tasks, None
        if runner is None:
            return
        try:
            runner.close()
        finally:
            if tasks is not None:
                tasks.shutdown()
            with runner.current():
                _disown(self._engine)

    def _alive(self) -> DeviceRunner | HostRunner:
        runner = self._runner
        if runner is None and self._is_inherited:
            raise EngineError(
                "the session was opened before this process was forked",
                where=self._description,
                fix="open a session in the child",
            )
        if runner is None:
            raise EngineError("the session is closed", where=self._description, fix="open another one")
        return runner

    def _leave(self) -> None:
        """The process was forked: what the session holds is the parent's, and a thread might have held the lock."""
        _inherited.append((self._runner, self._engine, self._tasks))
        self._is_inherited |= self._runner is not None
        self._runner = self._tasks = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._runner is None or not hasattr(self, "_engine"):
            return  # closed, or never quite made: what was made has been freed
        if not isinstance(self._runner, HostRunner):
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
        self.close()

    def __repr__(self) -> str:
        return f"<Session of {self._description}{', closed' if self.closed else ''}>"


def _leave_all() -> None:
    for session in list(_open):
        session._leave()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)


def _goes_to_device(to: object, stream: object) -> bool:
    """Whether outputs stay on the GPU.

    Raises:
        ConfigError: There is no such place, or it is the host and the stream is the application's.
    """
    on_device = to == "device" or (to is None and stream is not None)
    if to not in (None, "host", "device") or (stream is not None and not on_device):
        raise ConfigError(
            "outputs cannot go there", where="to", got=repr(to), expected="'device' with stream, else also 'host'"
        )
    return on_device


def _own(engine: Any) -> None:
    with _owners_lock:
        _owners[engine] = _owners.get(engine, 0) + 1


def _disown(engine: Any) -> None:
    """Close an engine that no session uses any more."""
    with _owners_lock:
        left = _owners.get(engine, 1) - 1
        if left:
            _owners[engine] = left
        else:
            _owners.pop(engine, None)
    if not left:
        engine.close()


def _no_gpu(source: Any, error: DeviceError | MissingDependencyError) -> DeviceError | MissingDependencyError:
    """Where there is no GPU at all, say that rather than which package is missing."""
    if isinstance(source, DeviceEngine):
        return cusparselt_lacks(error) if source.name == "cusparselt" else error
    header = plan_header(source)
    if header is None:
        return cusparselt_lacks(error)
    if count_gpus():
        return error
    return DeviceError(
        "a plan is executed by the library that built it, on an NVIDIA GPU",
        where="bytes" if isinstance(source, (bytes, bytearray, memoryview)) else source,
        got="no GPU that CUDA can use",
        expected=f"{header} and a GPU that the plan was built for",
        fix="run the ONNX model that the plan was built from on the CPU",
    )

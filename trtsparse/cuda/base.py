"""The few CUDA calls that a session needs, as one protocol with a provider for each Python binding.

Handles and addresses are plain integers, which TensorRT, DLPack and ``__cuda_array_interface__`` take as well.
``cuda.core`` was judged first: its buffers come from the driver's memory pool, which keeps what was freed to it, so a
byte limit of our own could not hold, and its copies want both ends as its objects. Its streams are accepted from the
application. The calls below are those of ``cuda.bindings.runtime``, which is what TensorRT itself uses.

Nothing here runs at import. PyCUDA has no CUDA graphs; with it, sessions execute without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from trtsparse.errors import ConfigError, MissingDependencyError

__all__ = ["PROVIDERS", "Cuda", "current", "open_cuda", "stream_handle"]

PROVIDERS = ("auto", "cuda-python", "pycuda")


@runtime_checkable
class Cuda(Protocol):
    """One GPU through one binding. Thread-safe. Each call raises `CudaError` unless CUDA reports success.

    `enter` and `leave` bracket all other calls; they nest, and cost little where the device is current already.

    Attributes:
        name: Of the binding: "cuda-python" or "pycuda".
        device: The GPU's number.
        graphs: CUDA graphs can be captured.
    """

    name: str
    device: int
    graphs: bool

    def enter(self) -> Any:
        """Make the device current in this thread; returns what `leave` takes."""

    def leave(self, token: Any) -> None:
        """Make current again what was current before `enter`."""

    def allocate(self, nbytes: int) -> int:
        """Device memory; its address is a multiple of 256."""

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""

    def allocate_pinned(self, nbytes: int) -> int:
        """Page-locked host memory."""

    def free_pinned(self, address: int) -> None:
        """Free what `allocate_pinned` returned."""

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of the device."""

    def pci_bus_id(self) -> str:
        """Where the device is plugged in, such as "0000:65:00.0": by this other libraries find it."""

    def device_of(self, address: int) -> int | None:
        """The GPU that an address belongs to; None for host memory, or where the binding cannot tell."""

    def stream_of(self, stream: Any) -> int:
        """The handle of an application's stream object.

        Raises:
            ConfigError: Not a stream that this binding can use.
        """

    def create_stream(self) -> int:
        """A stream that does not wait for the legacy default stream."""

    def destroy_stream(self, stream: int) -> None:
        """Destroy what `create_stream` returned."""

    def synchronize(self, stream: int) -> None:
        """Wait until a stream has finished."""

    def synchronize_device(self) -> None:
        """Wait until every stream of the device has finished."""

    def create_event(self, *, timing: bool = False, blocking: bool = False) -> int:
        """An event.

        Args:
            timing: It notes when it happens, for `elapsed_ms`.
            blocking: A thread that waits for it sleeps instead of spinning.
        """

    def destroy_event(self, event: int) -> None:
        """Destroy what `create_event` returned."""

    def record(self, event: int, stream: int) -> None:
        """The event happens when the stream gets here."""

    def wait(self, stream: int, event: int) -> None:
        """The stream goes on after the event."""

    def synchronize_event(self, event: int) -> None:
        """Wait for an event; one that was never recorded has happened."""

    def event_done(self, event: int) -> bool:
        """Whether an event has happened."""

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events with timing that have happened, to about half a microsecond."""

    def copy_in(self, device: int, host: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy from host memory to the device."""

    def copy_out(self, host: int, device: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy from the device to host memory."""

    def copy_across(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy between two places on devices."""

    def begin_capture(self, stream: int) -> None:
        """Collect what is enqueued on the stream instead of executing it."""

    def end_capture(self, stream: int) -> int:
        """Stop collecting; returns an executable graph."""

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a graph."""

    def destroy_graph(self, graph: int) -> None:
        """Destroy what `end_capture` returned."""


def open_cuda(provider: str | Cuda = "auto", *, device: int = 0) -> Cuda:
    """The GPU through a binding.

    Args:
        provider: "cuda-python", "pycuda", "auto" for the first of these that is installed, or an object that
            implements `Cuda`.
        device: The GPU's number.

    Raises:
        ConfigError: There is no such provider, or ``provider`` is an object for another device.
        MissingDependencyError: The binding is not installed.
        DeviceError: There is no such GPU.
    """
    if not isinstance(provider, str):
        if provider.device != device:
            raise ConfigError(
                "the CUDA provider is for another device", where="cuda", got=provider.device, expected=device
            )
        return provider
    if provider not in PROVIDERS:
        raise ConfigError("no such CUDA provider", where="cuda", got=repr(provider), expected=", ".join(PROVIDERS))
    from trtsparse.cuda.cuda_pycuda import PyCuda
    from trtsparse.cuda.cuda_python import CudaPython

    choices: dict[str, type[PyCuda | CudaPython]] = {"cuda-python": CudaPython, "pycuda": PyCuda}
    if provider != "auto":
        return choices[provider](device)
    try:
        return CudaPython(device)
    except MissingDependencyError as missing:
        try:
            return PyCuda(device)
        except MissingDependencyError:
            raise missing from None


@contextlib.contextmanager
def current(cuda: Cuda) -> Iterator[None]:
    """The device is current in this thread during the block."""
    token = cuda.enter()
    try:
        yield
    finally:
        cuda.leave(token)


def stream_handle(stream: Any) -> int:
    """The handle in a stream object of any library.

    Args:
        stream: A handle, or an object with ``__cuda_stream__`` (cuda.core), ``cuda_stream`` (PyTorch), ``ptr`` (CuPy)
            or ``handle`` (PyCUDA).

    Raises:
        ConfigError: None of these.

    Example:
        >>> stream_handle(7)
        7
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr", "handle"):
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(handle)
    raise ConfigError(
        "not a CUDA stream",
        where="stream",
        got=type(stream).__name__,
        expected="a handle, or a stream of PyTorch, CuPy, PyCUDA or cuda.core",
    )

"""How a session uses the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from trtsparse.errors import ConfigError

__all__ = ["SessionOptions"]

OnUnfit = Literal["copy", "refuse"]
Scratch = Literal["context", "pool", "shared"]


@dataclass(frozen=True)
class SessionOptions:
    """How a session uses the GPU; an ONNX model on the CPU uses ``contexts`` only.

    Attributes:
        contexts: How many requests may be under way at once. Each has an execution context, a stream and buffers of
            its own, made when first needed.
        graphs: Replay CUDA graphs. None: where the CUDA provider and the engine can, which PyCUDA cannot.
        graph_limit: Graphs kept by each context; the least recently used goes first.
        unfit: What to do with a device array that cannot be used in place, because of its device, its layout or an
            address that is not a multiple of 256: "copy" it, or "refuse".
        scratch: Where intermediate results lie: "context" lets the library allocate them for each context, "pool"
            takes them from the session's pool, so that its limit and statistics cover them, "shared" has all contexts
            use the same memory, one execution after another; copies overlap with them still.
        weights_nbytes: Keep only so much of the weights on the GPU, where the version and the plan allow it.
        device_limit_nbytes: The most device memory the session's pool may hold.
        pinned_limit_nbytes: The same for page-locked host memory.

    Raises:
        ConfigError: A value is out of range, or no number.

    Example:
        >>> SessionOptions(contexts=4, scratch="shared").unfit
        'copy'
    """

    contexts: int = 2
    graphs: bool | None = None
    graph_limit: int = 16
    unfit: OnUnfit = "copy"
    scratch: Scratch = "context"
    weights_nbytes: int | None = None
    device_limit_nbytes: int | None = None
    pinned_limit_nbytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("contexts", "graph_limit", "weights_nbytes", "device_limit_nbytes", "pinned_limit_nbytes"):
            value = getattr(self, name)
            if value is None and name not in ("contexts", "graph_limit"):
                continue
            if not isinstance(value, Integral):
                raise ConfigError("an option must be a whole number", where=name, got=repr(value))
            if value < 1:
                raise ConfigError("an option must be positive", where=name, got=value)
        for name, choices in (("unfit", get_args(OnUnfit)), ("scratch", get_args(Scratch))):
            if getattr(self, name) not in choices:
                got, expected = repr(getattr(self, name)), ", ".join(map(repr, choices))
                raise ConfigError(f"{name} has no such value", where=name, got=got, expected=expected)

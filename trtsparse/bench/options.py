"""How a measurement is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trtsparse.errors import ConfigError

__all__ = ["BenchOptions"]


@dataclass(frozen=True)
class BenchOptions:
    """How a measurement is made; the defaults are those of trtexec up to version 10.16, but for CUDA graphs.

    Attributes:
        iterations: The least number of counted queries on each stream.
        duration_s: The least time from the end of the warm-up to the start of the last query.
        warm_up_ms: Queries whose execution starts before this are not counted.
        streams: How many queries run side by side, each with a context, CUDA streams and buffers of its own; on the
            CPU, threads that call the engine.
        threads: Serve each stream from a thread of its own; on the CPU this is always so.
        graphs: Replay a CUDA graph. None: where the CUDA binding and the engine can.
        transfers: Each query copies its inputs in and its outputs out.
        expose_dma: Wait for each query before the next one, so that no copy overlaps with another query.
        queue_depth: How many queries are enqueued on a stream before the first is waited for; 1 with ``expose_dma``.
        spin_wait: The host spins while it waits, which is quicker by some microseconds than being woken.
        idle_ms: Pause after each counted round.
        sleep_ms: Pause between the setting up and the first query.
        profile_layers: Time each layer in a run of its own, after the measured one.
        percentiles: Of the summaries, each from 0 to 100.
        energy: Measure power and energy of the GPU with NVML.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> BenchOptions(expose_dma=True).depth
        1
    """

    iterations: int = 10
    duration_s: float = 3.0
    warm_up_ms: float = 200.0
    streams: int = 1
    threads: bool = False
    graphs: bool | None = None
    transfers: bool = True
    expose_dma: bool = False
    queue_depth: int = 2
    spin_wait: bool = False
    idle_ms: float = 0.0
    sleep_ms: float = 0.0
    profile_layers: bool = False
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    energy: bool = True

    def __post_init__(self) -> None:
        for name in ("iterations", "streams", "queue_depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError("an option must be a positive whole number", where=name, got=repr(value))
        for name in ("duration_s", "warm_up_ms", "idle_ms", "sleep_ms"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise ConfigError("an option must be a time of 0 or more", where=name, got=repr(value))
        for percentile in self.percentiles:
            if not 0 <= percentile <= 100:
                raise ConfigError(
                    "a percentile is out of range", where="percentiles", got=percentile, expected="0 to 100"
                )

    @property
    def depth(self) -> int:
        """The queue depth in force."""
        return 1 if self.expose_dma else self.queue_depth

"""What a measurement found: timed queries, layers, energy, and all of it together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from trtsparse.bench.options import BenchOptions

__all__ = ["Clocks", "Energy", "LayerTime", "Measurement", "Query"]

SCHEMA = "trtsparse.bench/1"


@dataclass(frozen=True)
class Query:
    """One counted query. Milliseconds on one clock, which begins when the host turns to the first counted query.

    The parts on the GPU are timed by CUDA events, the enqueueing by the host's clock; the two clocks agree within
    some microseconds. Without transfers, ``start_h2d_ms == end_h2d_ms`` and ``start_d2h_ms == end_d2h_ms``. On the
    CPU only the execution is timed; the other parts take no time.

    Attributes:
        start_enqueue_ms: The host begins to enqueue the execution.
        end_enqueue_ms: It has enqueued it.
        start_h2d_ms: The copies of the inputs begin.
        end_h2d_ms: They end.
        start_compute_ms: The execution begins.
        end_compute_ms: It ends.
        start_d2h_ms: The copies of the outputs begin.
        end_d2h_ms: They end.
        stream: Which of the streams served it, from 0.

    Example:
        >>> Query(0.0, 0.1, 0.0, 0.25, 0.25, 1.25, 1.5, 2.0).latency_ms
        1.75
    """

    start_enqueue_ms: float
    end_enqueue_ms: float
    start_h2d_ms: float
    end_h2d_ms: float
    start_compute_ms: float
    end_compute_ms: float
    start_d2h_ms: float
    end_d2h_ms: float
    stream: int = 0

    @property
    def enqueue_ms(self) -> float:
        """Host time to enqueue the execution."""
        return self.end_enqueue_ms - self.start_enqueue_ms

    @property
    def h2d_ms(self) -> float:
        """Copies from host to device."""
        return self.end_h2d_ms - self.start_h2d_ms

    @property
    def compute_ms(self) -> float:
        """The execution."""
        return self.end_compute_ms - self.start_compute_ms

    @property
    def d2h_ms(self) -> float:
        """Copies from device to host."""
        return self.end_d2h_ms - self.start_d2h_ms

    @property
    def latency_ms(self) -> float:
        """Copies and execution, without waiting between them, as trtexec defines it."""
        return self.h2d_ms + self.compute_ms + self.d2h_ms


@dataclass(frozen=True)
class LayerTime:
    """Times of one layer of an engine, or one node of a model.

    Attributes:
        name: As the execution library names it.
        times_ms: One for each profiled query.
    """

    name: str
    times_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        """Of all profiled queries."""
        return sum(self.times_ms)

    @property
    def average_ms(self) -> float:
        """Of one query."""
        return self.total_ms / len(self.times_ms)

    @property
    def median_ms(self) -> float:
        """Of one query."""
        return statistics.median(self.times_ms)


@dataclass(frozen=True)
class Energy:
    """What the whole GPU took during the counted queries, its idle power included.

    Attributes:
        joules: During ``Measurement.wall_s``.
        joules_per_query: The same by query.
        mean_watts: Average power.
        samples: How many readings it comes from.
        source: "counter" for the GPU's own energy counter, "power" for sampled power, summed up.
    """

    joules: float
    joules_per_query: float
    mean_watts: float
    samples: int
    source: Literal["counter", "power"]


@dataclass(frozen=True)
class Clocks:
    """What NVML tells of the GPU's clock; None where it does not.

    Attributes:
        start_mhz: The clock of the multiprocessors at the first counted query.
        end_mhz: At the last.
        max_mhz: The most it can be.
        temperature_c: At the last.
        slowed_by: Why the clock was below what it could be, in NVML's words.
    """

    start_mhz: int | None = None
    end_mhz: int | None = None
    max_mhz: int | None = None
    temperature_c: int | None = None
    slowed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What one measurement found.

    Attributes:
        engine: The engine's name, such as "tensorrt".
        description: One line for people.
        place: "gpu" where CUDA events timed the parts, "cpu" where the host's clock timed the execution.
        options: What was asked.
        queries: Those counted, in order of their start.
        warm_up_queries: How many ran before.
        warm_up_ms: How long the warm-up really lasted; ``options.warm_up_ms`` is what was asked.
        wall_s: From the first counted query's first copy, or execution, to the last one's end.
        graphs: The executions were launched as CUDA graphs.
        cuda: The CUDA binding; None on the CPU.
        shapes: Of the inputs.
        random: Inputs that were filled with random numbers.
        layers: In the engine's order; None where layers were not timed.
        profile_queries: How many queries the layers' times come from.
        energy: None where it was not measured.
        clocks: None where NVML was not asked.
        outputs: Of the last query.
        notes: What a reader of the figures must know, such as why there is no energy.
    """

    engine: str
    description: str
    place: Literal["gpu", "cpu"]
    options: BenchOptions
    queries: tuple[Query, ...]
    warm_up_queries: int
    warm_up_ms: float
    wall_s: float
    graphs: bool = False
    cuda: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    random: tuple[str, ...] = ()
    layers: tuple[LayerTime, ...] | None = None
    profile_queries: int = 0
    energy: Energy | None = None
    clocks: Clocks | None = None
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self, *, queries: bool = False) -> dict[str, Any]:
        """The facts as plain data, for JSON.

        Args:
            queries: Also each single query.
        """
        from trtsparse.bench.statistics import advice, summaries, throughput_qps

        return {
            "schema": SCHEMA,
            "engine": self.engine,
            "description": self.description,
            "place": self.place,
            "cuda": self.cuda,
            "graphs": self.graphs,
            "options": {**asdict(self.options), "percentiles": list(self.options.percentiles)},
            "inputs": {
                name: {"shape": list(shape), "random": name in self.random} for name, shape in self.shapes.items()
            },
            "outputs": {
                name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in self.outputs.items()
            },
            "count": len(self.queries),
            "warm_up_queries": self.warm_up_queries,
            "warm_up_ms": self.warm_up_ms,
            "wall_s": self.wall_s,
            "throughput_qps": throughput_qps(self.queries),
            "times": {name: found.to_dict() for name, found in summaries(self).items()},
            "layers": None if self.layers is None else [_layer(layer) for layer in self.layers],
            "profile_queries": self.profile_queries,
            "energy": None if self.energy is None else asdict(self.energy),
            "clocks": None if self.clocks is None else asdict(self.clocks),
            "warnings": [asdict(found) for found in advice(self)],
            "notes": list(self.notes),
            **({"queries": [asdict(query) for query in self.queries]} if queries else {}),
        }


def _layer(layer: LayerTime) -> dict[str, Any]:
    return {
        "name": layer.name,
        "total_ms": layer.total_ms,
        "average_ms": layer.average_ms,
        "median_ms": layer.median_ms,
    }

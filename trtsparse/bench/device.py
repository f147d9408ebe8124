"""Measuring an engine on a GPU, by CUDA events."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trtsparse.bench.layers import WARM_UP_RUNS, collect, profile_runs
from trtsparse.bench.loop import Pace, Progress, in_threads, quiet
from trtsparse.bench.nvml import Meter, open_sensors
from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import LayerTime, Measurement, Query
from trtsparse.bench.statistics import wall_ms
from trtsparse.bench.track import Origin, Times, Track, free_all
from trtsparse.cuda.base import Cuda, current
from trtsparse.engines.device import DeviceEngine
from trtsparse.errors import DeviceError, FeedError, MissingDependencyError, UnsupportedOptionError
from trtsparse.runtime.feeds import FeedReader

__all__ = ["measure_on_gpu"]

_SHORTEST_ENERGY_S = 0.5
_clock = time.perf_counter_ns
_sleep = time.sleep


def measure_on_gpu(
    engine: DeviceEngine,
    feeds: Mapping[str, Any],
    *,
    options: BenchOptions,
    cuda: Cuda,
    progress: Progress | None = None,
) -> Measurement:
    """Measure; see `trtsparse.bench.measure.measure`."""
    _require_possible(engine, cuda, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(current(cuda))
        arrays, profiles = _read(engine, cuda, feeds, options)
        tracks = _make_tracks(stack, engine, cuda, arrays, profiles=profiles, options=options)
        meter, notes = _make_meter(stack, cuda, options)
        run = _Run(cuda, options, meter, progress)
        with quiet():
            times = run.measure(tracks)
        queries, warm_up_ms = _counted(times, options)
        wall_s = wall_ms(queries) / 1e3
        energy = meter.energy(wall_s=wall_s, queries=len(queries)) if meter is not None else None
        layers, profiled, why_not = _profile(tracks[0], options, queries)
        notes += _track_notes(tracks[0], options)
        notes += [*_energy_notes(meter, wall_s, is_known=energy is not None), *why_not]
        return Measurement(
            engine=engine.name,
            description=engine.description,
            place="gpu",
            options=options,
            queries=queries,
            warm_up_queries=len(times) - len(queries),
            warm_up_ms=warm_up_ms,
            wall_s=wall_s,
            graphs=tracks[0].has_graphs,
            cuda=cuda.name,
            shapes={name: array.shape for name, array in arrays.items()},
            layers=layers,
            profile_queries=profiled,
            energy=energy,
            clocks=meter.clocks() if meter is not None else None,
            outputs=tracks[max(times).stream].outputs(),
            notes=tuple(notes),
        )


def _require_possible(engine: DeviceEngine, cuda: Cuda, options: BenchOptions) -> None:
    if engine.device != cuda.device:
        raise DeviceError(
            "the engine is loaded on another GPU",
            where="device",
            got=f"GPU {engine.device}",
            expected=f"GPU {cuda.device}",
        )
    if options.graphs and not cuda.graphs:
        raise UnsupportedOptionError(
            "this CUDA provider has no CUDA graphs", where="graphs=True", got=cuda.name, expected="cuda-python"
        )


def _read(
    engine: DeviceEngine, cuda: Cuda, feeds: Mapping[str, Any], options: BenchOptions
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """The inputs, checked, and the profile of each stream."""
    for name, array in feeds.items():
        if not isinstance(array, np.ndarray):
            raise FeedError(
                "inputs to measure with are numpy arrays", where=f"input {name!r}", got=type(array).__name__
            )
    arrays, _, profiles = FeedReader(engine, cuda, intake=0)(feeds)
    if not engine.exclusive_profiles:
        profiles = profiles[:1] * options.streams
    elif options.streams > len(profiles):
        raise UnsupportedOptionError(
            "two contexts cannot use one profile of this plan at a time",
            where="streams",
            got=options.streams,
            expected=f"at most {len(profiles)}, the profiles that admit the inputs",
            fix="build the plan with more profiles, or with TensorRT 10 or later",
        )
    return {spec.name: array for spec, array in zip(engine.inputs, arrays, strict=True)}, profiles


def _make_tracks(
    stack: contextlib.ExitStack,
    engine: DeviceEngine,
    cuda: Cuda,
    arrays: Mapping[str, np.ndarray],
    *,
    profiles: Sequence[int],
    options: BenchOptions,
) -> list[Track]:
    graphs = engine.can_capture and (cuda.graphs if options.graphs is None else options.graphs)
    tracks = []
    for number in range(options.streams):
        track = Track(
            engine, cuda, arrays,
            profile=profiles[number], number=number, options=options, graphs=graphs, clock=_clock,
        )  # fmt: skip
        stack.callback(track.close)
        tracks.append(track)
    return tracks


def _make_meter(stack: contextlib.ExitStack, cuda: Cuda, options: BenchOptions) -> tuple[Meter | None, list[str]]:
    """The energy meter, or the reason why there is none."""
    if not options.energy:
        return None, []
    try:
        sensors = open_sensors(cuda.pci_bus_id())
    except (MissingDependencyError, DeviceError) as error:
        return None, [f"no power and energy: {_in_one_line(error)}"]
    stack.callback(sensors.close)
    meter = Meter(sensors, clock=_clock)
    stack.callback(meter.stop)
    return meter, []


def _in_one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


@dataclass
class _Run:
    """One measured run over all tracks."""

    cuda: Cuda
    options: BenchOptions
    meter: Meter | None
    progress: Progress | None

    def measure(self, tracks: Sequence[Track]) -> list[Times]:
        """Run and return every query, also those of the warm-up, in order of their start."""
        if self.options.sleep_ms:
            _sleep(self.options.sleep_ms / 1e3)
        groups = [[track] for track in tracks] if self.options.threads else [list(tracks)]
        with self._origin() as origin:
            served = in_threads(
                [partial(self._serve, group, origin, leads=not number) for number, group in enumerate(groups)]
            )
        return sorted((times for group in served for times in group), key=lambda times: times.start_h2d)

    @contextlib.contextmanager
    def _origin(self) -> Iterator[Origin]:
        """Where the clocks begin: the host's and the GPU's agree here within the time of one call."""
        cuda = self.cuda
        stream, event = cuda.create_stream(), cuda.create_event(timing=True)
        try:
            cuda.record(event, stream)  # the first one takes longer
            cuda.synchronize_event(event)
            now = _clock()
            cuda.record(event, stream)
            cuda.synchronize_event(event)
            yield Origin(event, now)
        finally:
            free_all(
                [
                    partial(cuda.synchronize, stream),
                    partial(cuda.destroy_event, event),
                    partial(cuda.destroy_stream, stream),
                ]
            )

    def _serve(self, tracks: Sequence[Track], origin: Origin, stop: threading.Event, *, leads: bool) -> list[Times]:
        """Keep some tracks busy until the run is over; the first thread leads the energy meter."""
        meter = self.meter if leads else None
        on_warm = meter.start if meter is not None else None
        pace = Pace(self.options, on_warm=on_warm, progress=self.progress if leads else None)
        found: list[Times] = []
        with current(self.cuda):
            while not (pace.done or stop.is_set()):
                for track in tracks:
                    track.enqueue()
                starts = []
                for track in tracks:
                    if track.is_full:
                        times = track.finish(origin)
                        found.append(times)
                        starts.append(times.start_compute)
                pace.finished(starts)
                if self.options.idle_ms and pace.is_warm:
                    _sleep(self.options.idle_ms / 1e3)
            if meter is not None:
                meter.stop()
            for track in tracks:
                while not track.is_idle:
                    found.append(track.finish(origin))
        return found


def _counted(times: Sequence[Times], options: BenchOptions) -> tuple[tuple[Query, ...], float]:
    """Queries after the warm-up, on a clock that begins with them, and when that is."""
    counted = [query for query in times if query.start_compute >= options.warm_up_ms]
    zero = min((query.began for query in counted), default=0.0)
    return tuple(_query(query, zero) for query in counted), zero


def _query(times: Times, zero: float) -> Query:
    return Query(
        start_enqueue_ms=times.start_enqueue - zero,
        end_enqueue_ms=times.end_enqueue - zero,
        start_h2d_ms=times.start_h2d - zero,
        end_h2d_ms=times.end_h2d - zero,
        start_compute_ms=times.start_compute - zero,
        end_compute_ms=times.end_compute - zero,
        start_d2h_ms=times.start_d2h - zero,
        end_d2h_ms=times.end_d2h - zero,
        stream=times.stream,
    )


def _profile(
    track: Track, options: BenchOptions, queries: Sequence[Query]
) -> tuple[tuple[LayerTime, ...] | None, int, list[str]]:
    """Times of layers and of how many queries, or the reason why there are none."""
    if not options.profile_layers:
        return None, 0, []
    runs = profile_runs(options, query_ms=statistics.median(query.compute_ms for query in queries))
    try:
        found = [track.profile() for _ in range(runs + WARM_UP_RUNS)][WARM_UP_RUNS:]
    except UnsupportedOptionError as error:
        return None, 0, [f"no times of layers: {_in_one_line(error)}"]
    return collect(found), len(found), []


def _track_notes(track: Track, options: BenchOptions) -> list[str]:
    notes = []
    if track.graph_failure is not None:
        notes.append(
            f"CUDA graphs cannot be captured here, so executions were enqueued one by one: {track.graph_failure}"
        )
    elif options.graphs and not track.has_graphs:
        notes.append("CUDA graphs are not used: this engine cannot be captured, or only the data decides a size")
    if track.late:
        names = ", ".join(map(repr, track.late))
        notes.append(f"only the data decides the size of {names}: the host waits for each execution before it copies")
    return notes


def _energy_notes(meter: Meter | None, wall_s: float, *, is_known: bool) -> list[str]:
    if meter is None:
        return []
    if not is_known:
        return ["no power and energy: this GPU tells neither"]
    if wall_s < _SHORTEST_ENERGY_S:
        return [f"power and energy come from {wall_s:.2g} s, which is little for sensors that are read now and then"]
    return []

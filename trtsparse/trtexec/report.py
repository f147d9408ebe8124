"""What trtexec prints about a measurement: prologue, averages, summary, warnings, profile, outputs.

The lines are trtexec's, so that what reads its log reads ours. What was not measured is named, never printed as zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from trtsparse.bench.records import LayerTime, Measurement, Query
from trtsparse.bench.statistics import Summary, advice, averages, summarize, throughput_qps
from trtsparse.trtexec.exports import dims, number_texts
from trtsparse.trtexec.log import Printer

__all__ = ["explain_metrics", "number", "print_outputs", "print_performance", "print_profile"]

_SHOWN_AVERAGES = 200  # first and last lines that trtexec shows of a long trace
_GPU_PARTS = {"Enqueue Time": "enqueue", "H2D Latency": "h2d", "GPU Compute Time": "compute", "D2H Latency": "d2h"}
_FIXES = {
    "enqueue-bound": (
        "If not already in use, --useCudaGraph (utilize CUDA graphs where possible) may increase the throughput.",
        "If you are using --noCudaGraph, removing it may increase throughput.",
    ),
    "h2d-bound": (
        "Add --noDataTransfers flag to disable data transfers.",
        "Consider removing --includeDataTransfers to disable data transfers and potentially increase throughput.",
    ),
    "unstable": (
        "If not already in use, locking GPU clock frequency or adding --useSpinWait may improve the stability.",
        "If not already in use, locking GPU clock frequency may improve the stability.",
    ),
}
_FIXES["d2h-bound"] = _FIXES["h2d-bound"]
_STREAMS = (
    "* Multiple inference streams are used. Latencies may not be accurate since inferences may run in   parallel. "
    'Please use "Throughput" as the performance metric instead.'
)
_METRICS = {
    "Total Host Walltime": "host time from the first query after the warm-up to the end of the last.",
    "GPU Compute Time": "time that the GPU needs to execute the kernels of a query.",
    "Total GPU Compute Time": "the sum of GPU Compute Time over all queries. Where it is much shorter than Total "
    "Host Walltime, the GPU waits for the host or for copies.",
    "Throughput": "queries divided by Total Host Walltime. Where it is much lower than one by GPU Compute Time, the "
    "GPU waits for the host or for copies.",
    "Enqueue Time": "host time to enqueue a query. Where it is longer than GPU Compute Time, the GPU waits.",
    "H2D Latency": "time to copy the inputs of a query to the GPU.",
    "D2H Latency": "time to copy the outputs of a query from the GPU.",
    "Latency": "H2D Latency, GPU Compute Time and D2H Latency of a query, added up.",
}


def number(value: float) -> str:
    """A number as C++ streams print it by default: six significant digits, no trailing zeros.

    Example:
        >>> number(0.4340001), number(41087.66), number(1234567.0), number(5.0)
        ('0.434', '41087.7', '1.23457e+06', '5')
    """
    return f"{value:.6g}"


def print_performance(out: Printer, measured: Measurement, *, runs: int, major: int) -> None:
    """Print the performance report of a run.

    Args:
        out: Where.
        measured: What the run found.
        runs: How many queries an average is of, ``--avgRuns``.
        major: The version of trtexec whose advice names its flags, such as 10.

    Raises:
        ConfigError: Nothing was measured.
    """
    out.info(
        f"Warmup completed {measured.warm_up_queries} queries over {number(measured.options.warm_up_ms)} ms\n"
        f"Timing trace has {len(measured.queries)} queries over {number(measured.wall_s)} s"
    )
    _print_averages(out, measured, runs)
    _print_summary(out, measured)
    for found in advice(measured):
        out.warning(f"* {found.text}")
        before_11, since = _FIXES[found.kind]
        cpu = measured.place == "cpu"
        out.warning(f"  To fix: {found.fix}" if cpu else f"  {before_11 if major < 11 else since}")
    if measured.options.streams > 1:
        out.warning(_STREAMS)
    out.info("Explanations of the performance metrics are printed in the verbose logs.")
    explain_metrics(out)
    out.info()


def explain_metrics(out: Printer) -> None:
    """Print what each figure means, at level V."""
    out.detail()
    out.detail("=== Explanations of the performance metrics ===")
    for metric, meaning in _METRICS.items():
        out.detail(f"{metric}: {meaning}")


def _print_averages(out: Printer, measured: Measurement, runs: int) -> None:
    out.info()
    out.info(f"=== Trace details ===\nTrace averages of {runs} runs:")
    lines = []
    for average in averages(measured.queries, runs):
        host = f"Host latency: {number(average.latency_ms)} ms"
        if measured.place == "gpu":
            gpu = f"GPU latency: {number(average.compute_ms)} ms"
            host = f"{gpu} - {host} (enqueue {number(average.enqueue_ms)} ms)"
        lines.append(f"Average on {runs} runs - {host}")
    if len(lines) > 2 * _SHOWN_AVERAGES:
        omitted = len(measured.queries) - 2 * _SHOWN_AVERAGES * runs
        lines[_SHOWN_AVERAGES:-_SHOWN_AVERAGES] = [f"... Omitting {omitted} lines"]
    for line in lines:
        out.info(line)


def _print_summary(out: Printer, measured: Measurement) -> None:
    queries, percents = measured.queries, measured.options.percentiles
    out.info()
    out.info("=== Performance summary ===")
    out.info(f"Throughput: {number(throughput_qps(queries))} qps")
    out.info(f"Latency: {_statistics(summarize([query.latency_ms for query in queries], percents))}")
    on_gpu = measured.place == "gpu"
    for name, part in _GPU_PARTS.items() if on_gpu else ():
        out.info(f"{name}: {_statistics(summarize(_part(queries, part), percents))}")
    out.info(f"Total Host Walltime: {number(measured.wall_s)} s")
    if on_gpu:
        total = math.fsum(_part(queries, "compute")) / 1e3
        out.info(f"Total GPU Compute Time: {number(total)} s")
    else:
        out.info(f"Not measured, since nothing runs on a GPU: {', '.join((*_GPU_PARTS, 'Total GPU Compute Time'))}")
    if measured.energy is not None:
        energy = measured.energy
        out.info(
            f"Energy: {number(energy.joules_per_query)} J per query, "
            f"{number(energy.mean_watts)} W on average, of the whole GPU"
        )
    for note in measured.notes:
        out.info(f"Note: {note}")


def _part(queries: Sequence[Query], name: str) -> list[float]:
    return [getattr(query, f"{name}_ms") for query in queries]


def _statistics(found: Summary) -> str:
    parts = {name: getattr(found, name) for name in ("min", "max", "mean", "median")}
    parts |= {f"percentile({number(percent)}%)": value for percent, value in found.percentiles}
    return ", ".join(f"{name} = {number(value)} ms" for name, value in parts.items())


def print_profile(out: Printer, layers: Sequence[LayerTime], *, count: int) -> None:
    """Print the table of ``--dumpProfile``; layers that took no time are left out, as trtexec does.

    Args:
        out: Where.
        layers: In the engine's order.
        count: Profiled queries.
    """
    headers = ("   Time(ms)", "     Avg.(ms)", "   Median(ms)", "   Time(%)")
    total = math.fsum(layer.total_ms for layer in layers)
    rows = [
        (layer.total_ms, layer.average_ms, layer.median_ms, layer.total_ms / total * 100, layer.name)
        for layer in layers
        if layer.total_ms > 0
    ]
    whole = statistics.median(map(math.fsum, zip(*(layer.times_ms for layer in layers), strict=False)))
    rows.append((total, total / count, whole, 100.0, "Total"))
    out.info()
    out.info(f"=== Profile ({count} iterations ) ===\n{''.join(headers)}   Layer")
    for *figures, name in rows:
        cells = zip(figures, headers, (2, 4, 4, 1), strict=True)
        text = "".join(f"{figure:{len(header)}.{digits}f}" for figure, header, digits in cells)
        out.info(f"{text}   {name}")
    out.info()


def print_outputs(out: Printer, outputs: Mapping[str, np.ndarray]) -> None:
    """Print what ``--dumpOutput`` shows: each output's name, dims and values."""
    out.info("Output Tensors:")
    for name, array in outputs.items():
        out.info(f"{name}: ({dims(array.shape)})\n{' '.join(number_texts(array))}")

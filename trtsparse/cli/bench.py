"""``trtsparse bench``: how fast a plan or an ONNX model is, where the time goes, and what it costs in energy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from trtsparse.bench.options import BenchOptions
    from trtsparse.bench.records import LayerTime, Measurement

__all__ = ["configure", "run"]

_PARTS = {
    "latency": "latency",
    "enqueue": "enqueue (host)",
    "h2d": "copies in",
    "compute": "execution",
    "d2h": "copies out",
}
_MOST_LAYERS = 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; most are fields of `trtsparse.bench.options.BenchOptions`."""
    parser.add_argument("model", metavar="MODEL_OR_PLAN", help="what to measure; recognised by its content")
    shared.add_inputs(parser)
    parser.add_argument(
        "--shapes", metavar="NAME:1x3x224x224,...", help="shapes of inputs, which are random otherwise"
    )
    shared.add_engine(parser)
    parser.add_argument("--device", type=int, metavar="N", help="the GPU's number (default: 0); not for the CPU")
    parser.add_argument(
        "--cuda", default="auto", choices=("auto", "cuda-python", "pycuda"), help="the CUDA binding (default: auto)"
    )
    _configure_run(parser)
    _configure_gpu(parser)
    parser.add_argument(
        "--percentiles", default="90,95,99", metavar="P,...", help="of the times, 0 to 100 (default: 90,95,99)"
    )
    parser.add_argument("--profile", action="store_true", help="time each layer, in a run of its own afterwards")
    shared.add_json(parser)


def _configure_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--iterations",
        type=int,
        default=10,
        metavar="N",
        help="at least so many queries on each stream (default: 10)",
    )
    group.add_argument(
        "--duration", type=float, default=3.0, metavar="S", help="at least so many seconds (default: 3)"
    )
    group.add_argument(
        "--warm-up", type=float, default=200.0, metavar="MS", help="before the first counted query (default: 200)"
    )
    group.add_argument("--streams", type=int, default=1, metavar="N", help="queries side by side (default: 1)")
    group.add_argument("--threads", action="store_true", help="serve each stream from a thread of its own")
    group.add_argument("--idle", type=float, default=0.0, metavar="MS", help="pause after each query (default: 0)")


def _configure_gpu(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a GPU")
    group.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="launch CUDA graphs (default: where the CUDA binding and the engine can)",
    )
    group.add_argument(
        "--transfers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy inputs and outputs in every query (default: yes)",
    )
    group.add_argument("--expose-dma", action="store_true", help="wait for each query before the next one")
    group.add_argument(
        "--queue-depth", type=int, default=2, metavar="N", help="queries in flight on a stream (default: 2)"
    )
    group.add_argument("--spin-wait", action="store_true", help="the host spins while it waits")
    group.add_argument(
        "--energy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure power and energy with NVML (default: yes, where it is)",
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    chosen = _bench_options(options)
    from trtsparse.bench.measure import bench
    from trtsparse.report.progress import progress_bar

    feeds = shared.read_inputs(options.input)
    with progress_bar("measuring") as progress:
        found = bench(
            options.model,
            feeds=feeds,
            shapes=shared.parse_shapes(options.shapes),
            options=chosen,
            engine=options.engine,
            device=options.device,
            cuda=options.cuda,
            progress=progress,
        )
    if options.json:
        shared.print_json({**found.to_dict(), "model": options.model})
        return 0
    _print(found)
    return 0


def _bench_options(options: argparse.Namespace) -> BenchOptions:
    from trtsparse.bench.options import BenchOptions

    return BenchOptions(
        iterations=options.iterations,
        duration_s=options.duration,
        warm_up_ms=options.warm_up,
        streams=options.streams,
        threads=options.threads,
        graphs=options.graphs,
        transfers=options.transfers,
        expose_dma=options.expose_dma,
        queue_depth=options.queue_depth,
        spin_wait=options.spin_wait,
        idle_ms=options.idle,
        profile_layers=options.profile,
        percentiles=_percentiles(options.percentiles),
        energy=options.energy,
    )


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(
            "cannot read the percentiles", where="--percentiles", got=text, expected="numbers from 0 to 100: 50,99"
        ) from error


def _print(found: Measurement) -> None:
    from rich.markup import escape

    from trtsparse.report.console import console

    out = console()
    _print_times(found, out)
    out.print(_throughput(found), soft_wrap=True)
    out.print(escape(_policy(found)), soft_wrap=True)
    for line in _sensors(found):
        out.print(line, soft_wrap=True)
    if found.layers is not None:
        _print_layers(found.layers, found.profile_queries, out)
    _say_what_matters(found)


def _print_times(found: Measurement, out: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trtsparse.bench.statistics import summaries

    out.print(escape(found.description), soft_wrap=True)
    table = Table()
    table.add_column("ms")
    percents = [f"p{percent:g}" for percent in found.options.percentiles]
    for column in ("min", "mean", "median", *percents, "max"):
        table.add_column(column, justify="right")
    parts = summaries(found)
    if found.place == "cpu":
        del parts["compute"]  # the same as the latency
    for name, summary in parts.items():
        values = (summary.min, summary.mean, summary.median, *(v for _, v in summary.percentiles), summary.max)
        table.add_row(_PARTS[name], *(f"{value:.4g}" for value in values))
    out.print(table)


def _throughput(found: Measurement) -> str:
    from trtsparse.bench.statistics import throughput_qps

    return (
        f"throughput: {throughput_qps(found.queries):.6g} queries/s: {len(found.queries):,} queries in "
        f"{found.wall_s:.4g} s, after {found.warm_up_queries:,} in {found.warm_up_ms:.4g} ms to warm up"
    )


def _policy(found: Measurement) -> str:
    """How it was measured, without which figures cannot be compared."""
    options = found.options
    streams = f"{options.streams} stream{'s' if options.streams > 1 else ''}"
    inputs = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in found.shapes.items())
    if found.place == "cpu":
        return f"measured with: {streams}; inputs {inputs}"
    parts = (
        streams + (" in threads" if options.threads else ""),
        f"queue depth {options.depth}",
        "CUDA graphs" if found.graphs else "no CUDA graphs",
        "transfers" if options.transfers else "no transfers",
        "spinning" if options.spin_wait else "blocking waits",
        f"{found.cuda}",
    )
    return f"measured with: {', '.join(parts)}; inputs {inputs}"


def _sensors(found: Measurement) -> list[str]:
    lines = []
    energy, clocks = found.energy, found.clocks
    if energy is not None:
        lines.append(
            f"energy: {energy.joules_per_query * 1e3:.4g} mJ per query, {energy.mean_watts:.4g} W "
            f"(the whole GPU, by its {'energy counter' if energy.source == 'counter' else 'power, sampled'})"
        )
    if clocks is not None and clocks.end_mhz is not None:
        slowed = f", held back by: {', '.join(clocks.slowed_by)}" if clocks.slowed_by else ""
        heat = "" if clocks.temperature_c is None else f", {clocks.temperature_c} C"
        lines.append(f"clock: {clocks.start_mhz} to {clocks.end_mhz} of {clocks.max_mhz} MHz{heat}{slowed}")
    return lines


def _print_layers(layers: tuple[LayerTime, ...], queries: int, out: Console) -> None:
    """The slowest layers, by their medians: a single query that was interrupted says nothing about its layer."""
    from rich.markup import escape
    from rich.table import Table

    total = sum(layer.median_ms for layer in layers) or 1.0
    table = Table(title=f"layers, by time ({queries:,} queries with timed layers)", title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("median ms", "mean ms", "share"):
        table.add_column(column, justify="right")
    ordered = sorted(layers, key=lambda layer: -layer.median_ms)
    for layer in ordered[:_MOST_LAYERS]:
        times = f"{layer.median_ms:.4g}", f"{layer.average_ms:.4g}"
        table.add_row(escape(layer.name), *times, f"{layer.median_ms / total:.1%}")
    out.print(table)
    if len(ordered) > _MOST_LAYERS:
        rest = sum(layer.median_ms for layer in ordered[_MOST_LAYERS:])
        out.print(f"and {len(ordered) - _MOST_LAYERS} more, {rest / total:.1%}; --json has them all")


def _say_what_matters(found: Measurement) -> None:
    from trtsparse.bench.statistics import advice

    if found.random:
        shared.say(f"note: random numbers were fed to {', '.join(found.random)}")
    for note in found.notes:
        shared.say(f"note: {note}")
    for warning in advice(found):
        shared.say(f"warning: {warning.text}\n  to fix: {warning.fix}")

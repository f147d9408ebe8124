"""What faster weight products gain in all: Amdahl's law, with bounds for the part that does not get faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trtsparse.tune.gpus import Gpu
from trtsparse.tune.reasons import FASTER
from trtsparse.tune.rest import Rest
from trtsparse.tune.rows import SiteRow

__all__ = ["Gain", "Totals", "amdahl", "totals"]


@dataclass(frozen=True)
class Gain:
    """Dense over sparse time of the whole model.

    Attributes:
        lower: At least.
        expected: Most likely.
        upper: At most.
    """

    lower: float
    expected: float
    upper: float


@dataclass(frozen=True)
class Totals:
    """Of a whole model, in milliseconds.

    Attributes:
        dense_ms: All weight products whose times are known, dense.
        now_ms: The same with sparse kernels where the weight is compliant and they are faster.
        pruned_ms: The same if all eligible weights were compliant.
        rest_ms: Everything else, estimated with usual fusion; None with a measured total.
        rest_most_ms: Everything else if nothing were fused; None with a measured total.
        total_ms: The measured time of the dense engine; None if not given.
        share: Of weight products in the whole dense time, 0 to 1.
        now: Expected gain of the model as it is.
        pruned: Expected gain if all eligible weights were compliant.
    """

    dense_ms: float
    now_ms: float
    pruned_ms: float
    rest_ms: float | None
    rest_most_ms: float | None
    total_ms: float | None
    share: float
    now: Gain
    pruned: Gain


@dataclass(frozen=True)
class _Saved:
    """Milliseconds that sparse kernels save: least, most likely, most."""

    low: float
    expected: float
    high: float


def amdahl(total_ms: float, saved_ms: float) -> float:
    """The gain of a whole of which a part is saved.

    Args:
        total_ms: The whole, before.
        saved_ms: What is saved, at most 99 % of it.

    Example:
        >>> amdahl(10.0, 2.0)
        1.25
    """
    return total_ms / (total_ms - min(saved_ms, 0.99 * total_ms))


def totals(
    rows: Sequence[SiteRow], rest: Rest, peaks: Gpu | None, *, dtype: str, total_ms: float | None
) -> Totals | None:
    """Add up the rows, of each If those of the branch that takes longer; None where no times are known.

    Args:
        rows: With their times.
        rest: What the model does beside them.
        peaks: Of the GPU, for the time of that; without, only ``total_ms`` can tell.
        dtype: What the model is computed in.
        total_ms: The measured time of the dense engine.
    """
    rows = _one_branch([(row.bodies, row) for row in rows])
    dense = _dense(rows)
    if not dense:
        return None
    now = _saved([row for row in rows if row.compliant and row.chosen is not False])
    pruned = _saved(rows)
    if total_ms is not None:
        wholes = (max(total_ms, dense),) * 3
        rest_ms = rest_most = None
    elif peaks is not None:
        value_nbytes = 4 if dtype in ("fp32", "tf32") else 2
        rest_ms = rest.fused.ms(peaks, value_nbytes=value_nbytes, dtype=dtype)
        rest_most = max(rest_ms, rest.unfused.ms(peaks, value_nbytes=value_nbytes, dtype=dtype))
        wholes = (dense + rest_most, dense + rest_ms, dense)
    else:  # nothing is known of the rest: as if there were none, or as much again
        rest_ms = rest_most = None
        wholes = (2 * dense, dense, dense)
    return Totals(
        dense_ms=dense,
        now_ms=dense - now.expected,
        pruned_ms=dense - pruned.expected,
        rest_ms=rest_ms,
        rest_most_ms=rest_most,
        total_ms=total_ms,
        share=dense / wholes[1],
        now=_gain(now, wholes),
        pruned=_gain(pruned, wholes),
    )


def _one_branch(rows: Sequence[tuple[tuple[str, ...], SiteRow]]) -> list[SiteRow]:
    """What one execution runs: of a node with several bodies that whose products take longer."""
    taken = [row for around, row in rows if not around]
    inside: dict[str, dict[str, list[tuple[tuple[str, ...], SiteRow]]]] = {}
    for around, row in rows:
        if around:
            of_node = inside.setdefault(around[0].rpartition(".")[0], {})
            of_node.setdefault(around[0], []).append((around[1:], row))
    for of_node in inside.values():
        taken += max((_one_branch(body) for body in of_node.values()), key=_dense)
    return taken


def _dense(rows: Iterable[SiteRow]) -> float:
    return sum(row.dense_ms or 0.0 for row in rows)


def _saved(rows: Sequence[SiteRow]) -> _Saved:
    """What the sparse kernels of these sites save where they are faster."""
    low = expected = high = 0.0
    for row in rows:
        if row.dense_ms and row.gain is not None and row.gain > FASTER:
            low += row.dense_ms * (1 - 1 / min(row.low, row.gain))
            expected += row.dense_ms * (1 - 1 / row.gain)
            high += row.dense_ms * (1 - 1 / max(row.high, row.gain))
    return _Saved(low, expected, high)


def _gain(saved: _Saved, wholes: tuple[float, float, float]) -> Gain:
    """Bounds: the least saved of the largest whole, the most saved of the smallest."""
    most, likely, least = wholes
    return Gain(amdahl(most, saved.low), amdahl(likely, saved.expected), amdahl(least, saved.high))

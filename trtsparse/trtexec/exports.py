"""The JSON files that trtexec writes, in its shapes: times, profile, outputs; laid out one record a line, as it does.

Numbers have all their digits, where trtexec has six, so that values read back are the values that were computed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trtsparse.bench.records import LayerTime, Query

__all__ = ["dims", "number_texts", "outputs_json", "profile_json", "times_json"]

_HOST_TIMES = ("startComputeMs", "endComputeMs", "computeMs", "latencyMs")
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def times_json(queries: Sequence[Query], *, place: Literal["gpu", "cpu"] = "gpu") -> str:
    """What ``--exportTimes`` writes: for each counted query when its parts began and ended.

    Args:
        queries: In the order of their start.
        place: "cpu" leaves out the parts that only a GPU has.

    Example:
        >>> print(times_json([Query(0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 2.0, 2.0)], place="cpu"), end="")
        [
          { "startComputeMs" : 0.5, "endComputeMs" : 2.0, "computeMs" : 1.5, "latencyMs" : 1.5 }
        ]
    """
    records = (_times(query) for query in queries)
    if place == "cpu":
        records = ({key: record[key] for key in _HOST_TIMES} for record in records)
    return _rows(_row(record) for record in records)


def profile_json(layers: Sequence[LayerTime], *, count: int) -> str:
    """What ``--exportProfile`` writes: how many queries were profiled, then the time of each layer.

    Args:
        layers: In the engine's order.
        count: Profiled queries.

    Example:
        >>> print(profile_json([LayerTime("conv", (1.0, 2.0))], count=2), end="")
        [
          { "count" : 2 }
        , { "name" : "conv", "timeMs" : 3.0, "averageMs" : 1.5, "medianMs" : 1.5, "percentage" : 100.0 }
        ]
    """
    total = math.fsum(layer.total_ms for layer in layers)
    return _rows([_row({"count": count}), *(_row(_profile(layer, total)) for layer in layers)])


def outputs_json(outputs: Mapping[str, np.ndarray]) -> str:
    """What ``--exportOutput`` writes: each output's name, dims and values.

    Infinities and NaNs are written as Python's ``json`` reads them; JSON itself has none.

    Args:
        outputs: Output name to array.

    Example:
        >>> print(outputs_json({"y": np.array([[1.5, 2.0]], np.float32)}), end="")
        [
          { "name" : "y"
          , "dimensions" : "1x2"
          , "values" : [ 1.5, 2 ]
          }
        ]
    """
    return _rows(
        f'{{ "name" : {json.dumps(name)}\n  , "dimensions" : "{dims(array.shape)}"\n'
        f'  , "values" : [ {", ".join(number_texts(array))} ]\n  }}'
        for name, array in outputs.items()
    )


def dims(shape: Iterable[int]) -> str:
    """A shape as trtexec prints it, such as "1x3x224x224"; nothing for a scalar."""
    return "x".join(map(str, shape))


def number_texts(array: np.ndarray) -> list[str]:
    """Each value as JSON, in row-major order, short but exact."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind in "biu":
        return [str(int(value)) for value in flat.tolist()]
    if flat.dtype.kind in "OSU":
        return [json.dumps(str(value)) for value in flat.tolist()]
    if flat.dtype == np.float64:
        texts = [f"{value:.17g}" for value in flat.tolist()]
    else:  # float32 has 9 digits; float16, bfloat16 and the 8-bit types are subsets of it
        flat = flat.astype(np.float32)
        texts = [f"{value:.9g}" for value in flat.tolist()]
    return texts if np.isfinite(flat).all() else [_NOT_FINITE.get(text, text) for text in texts]


def _profile(layer: LayerTime, total: float) -> dict[str, Any]:
    return {
        "name": layer.name,
        "timeMs": _rounded(layer.total_ms),
        "averageMs": _rounded(layer.average_ms),
        "medianMs": _rounded(layer.median_ms),
        "percentage": _rounded(layer.total_ms / total * 100 if total else 0.0),
    }


def _times(query: Query) -> dict[str, float]:
    times = {
        "startEnqMs": query.start_enqueue_ms,
        "endEnqMs": query.end_enqueue_ms,
        "startH2dMs": query.start_h2d_ms,
        "endH2dMs": query.end_h2d_ms,
        "startComputeMs": query.start_compute_ms,
        "endComputeMs": query.end_compute_ms,
        "startD2hMs": query.start_d2h_ms,
        "endD2hMs": query.end_d2h_ms,
        "h2dMs": query.h2d_ms,
        "computeMs": query.compute_ms,
        "d2hMs": query.d2h_ms,
        "latencyMs": query.latency_ms,
    }
    return {key: _rounded(value) for key, value in times.items()}


def _rounded(value: float) -> float:
    """To a millionth: of a millisecond, that is finer than any clock here."""
    return round(value, 6)


def _row(record: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f'"{key}" : {json.dumps(value)}' for key, value in record.items()) + " }"


def _rows(rows: Iterable[str]) -> str:
    text = "\n, ".join(rows)
    return f"[\n  {text}\n]\n" if text else "[\n]\n"

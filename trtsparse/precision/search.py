"""Which nodes to leave in float32 so that an error stays below a limit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx

from trtsparse.precision.observe import Observer, relative_noise

__all__ = ["fewest", "rank"]


def fewest(
    measure: Callable[[Sequence[str]], float], ranking: Callable[[], Sequence[str]], *, limit: float
) -> tuple[float, Sequence[str]]:
    """Find a short beginning of a ranking that, kept in float32, brings the error to the limit.

    One node, then twice as many at each try, up to half of them: a model with more in float32 is hardly converted.
    Then, between the last two numbers, down to about the fewest. At most ``2 * log2(nodes)`` measurements.

    Args:
        measure: The error with these nodes kept.
        ranking: Gives all nodes, the most promising first; only called when the error is above the limit without.
        limit: The largest error wanted.

    Returns:
        The error reached, which is above the limit where half of the nodes were not enough, and the nodes kept.

    Example:
        >>> fewest(lambda kept: 9 - 2 * len(kept), lambda: list("abcdefghij"), limit=3)
        (3, ['a', 'b', 'c'])
    """
    error = measure([])
    if error <= limit:
        return error, []
    ranked = list(ranking())
    most = max(1, len(ranked) // 2)
    few, many = 0, 1
    while (error := measure(ranked[:many])) > limit and many < most:
        few, many = many, min(2 * many, most)
    while error <= limit and many - few > max(1, many // 8):
        middle = (few + many) // 2
        tried = measure(ranked[:middle])
        if tried <= limit:
            error, many = tried, middle
        else:
            few = middle
    return error, ranked[:many]


def rank(
    nodes: Sequence[onnx.NodeProto],
    values: Mapping[str, Collection[str]],
    reference: Observer,
    converted: Observer,
    feed: Mapping[str, np.ndarray],
) -> list[str]:
    """Order nodes by the noise that each adds to that of its inputs, most first.

    A difference of large numbers adds much noise because its operands were rounded: what makes the inputs of a node
    comes right behind it.

    Args:
        nodes: Of the reference.
        values: For each node's name, the float values that it reads and makes and that both observers give.
        reference: The model in float32.
        converted: The converted model; its values have the reference's names.
        feed: What to run both on.
    """
    pairs = zip(reference.run(feed), converted.run(feed), strict=True)
    noise = {name: relative_noise(a, b) for (name, a), (_, b) in pairs}

    def added(node: onnx.NodeProto) -> float:
        made = max((noise[name] for name in node.output if name in values[node.name]), default=0.0)
        read = max((noise[name] for name in node.input if name in values[node.name]), default=0.0)
        return 0.0 if read == np.inf else made - read

    own = {node.name: added(node) for node in nodes}
    readers: dict[str, float] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = max(own[node.name], readers.get(name, -np.inf))
    score = {node.name: max(own[node.name], *(readers.get(name, -np.inf) for name in node.output)) for node in nodes}
    return sorted(score, key=lambda name: (-score[name], -own[name]))

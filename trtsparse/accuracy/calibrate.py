"""Prune the layers of a model one after another, each with moments of its input in the model pruned so far."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from trtsparse.accuracy.algebra import open_algebra
from trtsparse.accuracy.biases import Bias, Biases
from trtsparse.accuracy.calibration import Calibration
from trtsparse.accuracy.layers import Layer, open_layer
from trtsparse.accuracy.located import located
from trtsparse.accuracy.moments import Moments, output_error
from trtsparse.accuracy.sparsegpt import Solution, sparsegpt
from trtsparse.accuracy.stages import Graph, Stages
from trtsparse.accuracy.wanda import wanda
from trtsparse.errors import PatternError, PruneError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import Feeds
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.prune import Selection, ref_of
from trtsparse.sparsity.readers import find_readers
from trtsparse.sparsity.trace import Scope, subgraphs
from trtsparse.sparsity.values import prune_values, unpack_int4
from trtsparse.sparsity.weights import WeightSite, has_weights, inlined

__all__ = ["Calibrator", "LayerError", "Outcome"]

_PRODUCTS = {"Conv", "Gemm", "MatMul"}
_WIDEST = 16384  # columns: their moments take 2 GB


@dataclass(frozen=True)
class LayerError:
    """What pruning one tensor does to the output of its layer, on the calibration data.

    Attributes:
        tensor: The weight.
        nodes: The nodes that use it.
        method: How its values were found: the method asked for, or "magnitude" where that was better or the only one.
        error: ``||(W - W') X|| / ||W X||`` for X as the model pruned so far computes it, the mean taken out where a
            bias makes up for it; None where the layer's input could not be calibrated.
        magnitude_error: The same for magnitude; ``error`` is never larger.
        rows: How many rows of X there were.
        damping: Of "sparsegpt", relative to the mean of the diagonal; else None.
        biases: The biases that were changed.
        reason: Why it was not the method asked for; else "".
    """

    tensor: str
    nodes: tuple[str, ...]
    method: str
    error: float | None
    magnitude_error: float | None
    rows: int
    damping: float | None
    biases: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Outcome:
    """New values of one tensor.

    Attributes:
        uses: Its sites.
        values: What to store, of the stored shape and type (4-bit ones unpacked).
        zeroed: Elements that were not zero and now are.
        biases: New biases.
        layer: What the report says.
    """

    uses: tuple[WeightSite, ...]
    values: np.ndarray
    zeroed: int
    biases: tuple[tuple[Bias, np.ndarray], ...]
    layer: LayerError

    def changes(self) -> dict[tuple[str, int], np.ndarray]:
        """All new values by where they are stored."""
        return {ref_of(self.uses).key: self.values, **{bias.ref.key: values for bias, values in self.biases}}


class Calibrator:
    """Prunes tensors of one model with calibration data; changes nothing itself.

    Args:
        model: The model.
        selection: Its sites, and what to prune: the tensors that are not compliant yet.
        pattern: N:M.
        method: "magnitude", "wanda" or "sparsegpt".
        options: How.
        feeds: The data, as ``options.read`` gives them.
    """

    def __init__(
        self,
        model: OnnxModel,
        *,
        selection: Selection,
        pattern: Pattern,
        method: str,
        options: Calibration,
        feeds: Feeds,
    ) -> None:
        self.model = located(model)
        proto = self.model.proto
        if proto.functions:
            proto = inlined(proto, model.name)
        self.graph = Graph(OnnxModel(self.model.files, name=model.name, folder=model.folder, proto=proto))
        self._pattern = pattern
        self._method = method
        self._options = options
        self._feeds = feeds
        self._algebra = open_algebra(options.device)
        self._biases = Biases(self.graph)
        self._ranks: dict[str, int] = {}  # of layers' inputs
        layers = self._open(selection.sites)
        readers = find_readers(self.graph.model, selection.violating)
        self._tensors = [
            _Tensor(uses, [layers[id(site)] for site in uses], ", ".join(readers.get(ref_of(uses).key, ())))
            for uses in selection.violating
        ]

    def _open(self, sites: Sequence[WeightSite]) -> dict[int, Layer | str]:
        """Every site's layer by the site's identity."""
        scope = Scope(self.graph.proto.graph)
        nodes = [node for node in _all_nodes(scope) if node[0].op_type in _PRODUCTS and has_weights(node[0])]
        products = [site for site in sites if site.op in _PRODUCTS]
        return {
            id(site): self._opened(scope, node, site) if inside is None else inside
            for site, (node, inside) in zip(products, nodes, strict=True)
        }

    def _opened(self, scope: Scope, node: onnx.NodeProto, site: WeightSite) -> Layer | str:
        layer = open_layer(self.model, scope, node, site)
        if isinstance(layer, Layer) and layer.input in self.graph.constant:
            return "its input does not depend on the model's inputs"
        return layer

    @property
    def tensors(self) -> list[tuple[WeightSite, ...]]:
        """The uses of every tensor that `run` prunes; a tensor's number is its place here."""
        return [tensor.uses for tensor in self._tensors]

    def run(
        self,
        *,
        dense: Collection[int] = (),
        sequential: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[int, Outcome]:
        """Prune every tensor.

        Args:
            dense: Numbers of tensors to leave as they are.
            sequential: Calibrate each layer on the model whose earlier layers are already pruned; else on the dense
                model.
            progress: Called with (bytes pruned, bytes in all) after every tensor.

        Returns:
            The outcomes by number.

        Raises:
            FeedError: A layer's input is not finite.
            EngineError: ONNX Runtime does not run the model.
        """
        found: dict[int, Outcome] = {}
        weights: dict[tuple[str, int], np.ndarray] = {}
        chosen = [number for number in range(len(self._tensors)) if number not in dense]
        total = sum(ref_of(self._tensors[number].uses).nbytes for number in chosen)

        def take(number: int, outcome: Outcome) -> None:
            found[number] = outcome
            if sequential:
                weights.update(outcome.changes())
            if progress is not None:
                progress(sum(ref_of(self._tensors[n].uses).nbytes for n in found), total)

        waiting: dict[int, list[Layer]] = {}
        for number in chosen:
            tensor = self._tensors[number]
            if reason := tensor.obstacle():
                take(number, self._by_magnitude(tensor, reason))
            else:
                waiting[number] = [layer for layer in tensor.layers if isinstance(layer, Layer)]
        for number, moments in self._moments(waiting, weights):
            take(number, self._solved(self._tensors[number], waiting[number], moments))
        return {number: found[number] for number in chosen}

    def _moments(
        self, waiting: Mapping[int, Sequence[Layer]], weights: Mapping[tuple[str, int], np.ndarray]
    ) -> Iterator[tuple[int, list[list[Moments]]]]:
        """Every tensor as soon as the inputs of all its layers have been seen, with their moments."""
        stages: dict[tuple[object, ...], list[tuple[int, Layer]]] = {}
        order = {id(node): place for place, node in enumerate(self.graph.nodes)}
        pairs = [(number, layer) for number, layers in waiting.items() for layer in layers]
        for number, layer in sorted(pairs, key=lambda pair: order[id(pair[1].node)]):
            stages.setdefault(layer.unfolding, []).append((number, layer))
        targets = [stage[0][1].input for stage in stages.values()]
        seen: dict[int, list[list[Moments]]] = {number: [] for number in waiting}
        with contextlib.closing(Stages(self.graph, self._feeds, targets=targets, weights=weights)) as passing:
            for stage in stages.values():
                moments = self._observed(stage[0][1], passing)
                for number, _ in stage:
                    seen[number].append(moments)
                    if len(seen[number]) == len(waiting[number]):
                        yield number, seen.pop(number)

    def _observed(self, layer: Layer, passing: Stages) -> list[Moments]:
        """Moments of a layer's input over all samples, one for each of its stacked matrices."""
        count, _, columns = layer.weights.shape
        moments = [Moments(columns, self._algebra) for _ in range(count)]
        for values in passing.advance([layer.input]):
            self._ranks[layer.input] = values[layer.input].ndim
            for rows in layer.rows(values[layer.input]):
                for one, part in zip(moments, rows, strict=True):
                    one.add(part, name=layer.input)
        return moments

    def _by_magnitude(self, tensor: _Tensor, reason: str) -> Outcome:
        layer = LayerError(tensor.name, tensor.nodes, "magnitude", None, None, 0, None, (), reason)
        return self._outcome(tensor, self._magnitude(tensor), (), layer)

    def _outcome(
        self, tensor: _Tensor, values: np.ndarray, biases: tuple[tuple[Bias, np.ndarray], ...], layer: LayerError
    ) -> Outcome:
        quantization = tensor.uses[0].quantization
        zero = 0 if quantization is None else quantization.zero_point
        zeroed = int(np.count_nonzero((values == zero) & (self._stored(tensor) != zero)))
        return Outcome(tensor.uses, values, zeroed, biases, layer)

    def _magnitude(self, tensor: _Tensor) -> np.ndarray:
        """The stored values, pruned by magnitude."""
        values: np.ndarray = self._stored(tensor).copy()
        try:
            prune_values(values, axes=tensor.axes, pattern=self._pattern, quantization=tensor.uses[0].quantization)
        except PatternError as error:
            fix = f"exclude it: exclude=[{tensor.name!r}]"
            raise PruneError(error.what, where=repr(tensor.name), got=error.got, fix=fix) from error
        return values

    def _stored(self, tensor: _Tensor) -> np.ndarray:
        site = tensor.uses[0]
        values: np.ndarray = self.model.read(ref_of(tensor.uses))
        return unpack_int4(values, site) if ref_of(tensor.uses).packed else values

    def _solved(self, tensor: _Tensor, layers: Sequence[Layer], seen: Sequence[Sequence[Moments]]) -> Outcome:
        """The better of the method and magnitude, and the biases that go with it."""
        moments = [functools.reduce(Moments.__add__, parts) for parts in zip(*seen, strict=True)]
        matrix = layers[0].weights
        original = matrix.read(self._stored(tensor))
        if not moments[0].count or not np.isfinite(original).all():
            return self._by_magnitude(
                tensor, "no input came" if not moments[0].count else "the weights are not finite"
            )
        biases = [self._bias(layer) for layer in layers]
        centred = len(biases) == 1 and biases[0] is not None
        values = self._magnitude(tensor)
        error = magnitude_error = output_error(original, matrix.read(values), moments, centred=centred)
        method, damping, reason = "magnitude", None, ""
        if self._method != "magnitude":
            solutions = [self._tried(w, m, centred=centred) for w, m in zip(original, moments, strict=True)]
            tried = matrix.write(np.stack([solution.weights for solution in solutions]))
            tried_error = output_error(original, matrix.read(tried), moments, centred=centred)
            if tried_error <= magnitude_error:
                values, error, method = tried, tried_error, self._method
                damping = max(solution.damping for solution in solutions) if method == "sparsegpt" else None
            else:
                reason = f"{self._method} moves the output more: {tried_error:.3g}"
        moved = original - matrix.read(values)
        changed = [
            (bias, shifted)
            for bias, parts in zip(biases, seen, strict=True)
            if bias is not None and (shifted := self._shifted(bias, moved[0], parts[0])) is not None
        ]
        names = tuple(bias.tensor for bias, _ in changed)
        report = LayerError(
            tensor.name, tensor.nodes, method, error, magnitude_error, moments[0].count, damping, names, reason
        )
        return self._outcome(tensor, values, tuple(changed), report)

    def _bias(self, layer: Layer) -> Bias | None:
        return self._biases.find(layer, input_rank=self._ranks[layer.input]) if self._options.biases else None

    def _tried(self, weights: np.ndarray, moments: Moments, *, centred: bool) -> Solution:
        if self._method == "wanda":
            return Solution(wanda(weights, moments, pattern=self._pattern), 0.0)
        return sparsegpt(
            weights,
            moments,
            pattern=self._pattern,
            damping=self._options.damping,
            centred=centred,
            fit=self._options.refit,
        )

    def _shifted(self, bias: Bias, moved: np.ndarray, moments: Moments) -> np.ndarray | None:
        return bias.shifted(self.model.read(bias.ref), moved @ moments.algebra.get(moments.mean))


@dataclass(frozen=True)
class _Tensor:
    """A constant to prune and its layers, or why one of its uses is none."""

    uses: tuple[WeightSite, ...]
    layers: list[Layer | str]
    others: str

    @property
    def name(self) -> str:
        return self.uses[0].tensor

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(site.node for site in self.uses)

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(sorted({site.axis for site in self.uses}))

    def obstacle(self) -> str:
        """Why it can only be pruned by magnitude; "" when it can be calibrated."""
        if self.others:
            return f"also read by {self.others}"
        reason = next((layer for layer in self.layers if isinstance(layer, str)), "")
        if reason:
            return reason
        layers = [layer for layer in self.layers if isinstance(layer, Layer)]
        if len(self.axes) > 1:
            return "its uses add up along different axes"
        if not all(layer.weights.same_columns(layers[0].weights) for layer in layers[1:]):
            return "its uses see it as different matrices"
        count, _, columns = layers[0].weights.shape
        if count * columns**2 > _WIDEST**2:
            return f"the moments of {columns} columns are too large"
        return ""


def _all_nodes(scope: Scope) -> Iterator[tuple[onnx.NodeProto, str | None]]:
    """Nodes in the order of the walk over sites, with why those inside other nodes cannot be calibrated."""

    def walk(graph: onnx.GraphProto, inside: str | None) -> Iterator[tuple[onnx.NodeProto, str | None]]:
        for node in graph.node:
            yield node, inside
            for inner in subgraphs(node):
                yield from walk(inner, inside or f"inputs inside {node.op_type} {node.name!r} cannot be observed")

    return walk(scope.graph, None)

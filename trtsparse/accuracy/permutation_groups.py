"""The channels of a model that may be permuted, and the weights on which their order has an effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from trtsparse.accuracy.permutation_axes import Axis, find, indices, leaves, occurrences, pin
from trtsparse.accuracy.permutation_rules import apply_rule
from trtsparse.accuracy.permutation_step import Axes, Dims, Step
from trtsparse.accuracy.stages import reads
from trtsparse.files.model import OnnxModel
from trtsparse.files.tensor import TensorRef
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.trace import Scope, trace
from trtsparse.sparsity.values import is_site_compliant
from trtsparse.sparsity.weights import WeightSite

__all__ = ["Channels", "Layout", "Piece", "Stored", "find_layout"]


@dataclass(frozen=True)
class Stored:
    """A constant of the model, with its axes; tensors that share their bytes are one.

    Attributes:
        ref: Where the bytes are.
        names: What the graph calls it.
        axes: One for each dim.
    """

    ref: TensorRef
    names: tuple[str, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Piece:
    """Channels on the reduction axis of a weight: ``size`` places from each of the starts on.

    Attributes:
        site: The weight.
        starts: (n,) int64, multiples of M.
    """

    site: WeightSite
    starts: np.ndarray


@dataclass(frozen=True)
class Channels:
    """Channels that are permuted together.

    Attributes:
        axis: The leaf that stands for them.
        pieces: Weights in whose N:M groups they are four by four: what a search is made on.
        stored: All constants that are permuted.
        disturbed: Eligible weights whose groups the order has another effect on, such as a Gemm behind a Flatten.
    """

    axis: Axis
    pieces: tuple[Piece, ...]
    stored: tuple[Stored, ...]
    disturbed: tuple[WeightSite, ...] = ()


@dataclass
class Layout:
    """What `find_layout` found.

    Attributes:
        model: The model, in which every constant has a place.
        stored: Its constants, by place.
        channels: What may be permuted.
        left_alone: (tensor, reason) for eligible weights whose channels keep their order.
    """

    model: OnnxModel
    stored: dict[tuple[str, int], Stored] = field(default_factory=dict)
    channels: list[Channels] = field(default_factory=list)
    left_alone: list[tuple[str, str]] = field(default_factory=list)

    def axis(self, site: WeightSite) -> Axis:
        """The reduction axis of a weight in `stored`."""
        return self.stored[_key(site)].axes[site.axis]


def find_layout(
    model: OnnxModel,
    sites: Sequence[WeightSite],
    *,
    pattern: Pattern,
    included: Sequence[WeightSite],
    excluded: Sequence[WeightSite] = (),
) -> Layout:
    """Find the channels of a model that may be permuted.

    Args:
        model: From `trtsparse.accuracy.permutation_model.prepared`.
        sites: All its weights. Those that are compliant stay so.
        pattern: N:M.
        included: The eligible weights in which more shall be kept.
        excluded: Weights whose bytes must stay.
    """
    walk = _Walk(model)
    walk.run()
    for site in excluded:
        walk.pin_tensor(site, f"{site.tensor} is excluded")
    for site in sites:
        if site.eligible and is_site_compliant(model, site, pattern=pattern):
            walk.pin_tensor(site, f"{site.tensor} is compliant already", axis=site.axis)
    for site in included:
        if any(other is not site and _key(other) == _key(site) and other.axis != site.axis for other in included):
            walk.pin_tensor(site, f"{site.tensor} is used along two axes")
    layout = Layout(model, {key: walk.stored(key) for key in walk.constants})
    unique = list({(_key(site), site.axis): site for site in included}.values())
    layout.channels = _channels(layout, [site for site in unique if _key(site) in layout.stored], pattern)
    movable = {_key(piece.site) for channels in layout.channels for piece in channels.pieces}
    layout.left_alone = [(s.tensor, _why(layout, s, pattern)) for s in unique if _key(s) not in movable]
    return layout


def _key(site: WeightSite) -> tuple[str, int]:
    return site.ref.key if site.ref is not None else ("", -1)


def _channels(layout: Layout, sites: Sequence[WeightSite], pattern: Pattern) -> list[Channels]:
    pieces: dict[Axis, list[Piece]] = {}
    disturbed: dict[Axis, list[WeightSite]] = {}
    for site in sites:
        axis = layout.axis(site)
        for leaf in dict.fromkeys(leaves(axis)):
            if leaf.reason or leaf.size < 2:
                continue
            places = list(occurrences(axis, leaf))
            if all(_is_aligned(leaf, starts, stride, pattern) for starts, stride in places):
                starts = np.concatenate([starts for starts, _ in places])
                pieces.setdefault(leaf, []).append(Piece(site, starts))
            elif not _keeps_groups(axis, leaf, pattern):
                disturbed.setdefault(leaf, []).append(site)
    users = _users(layout)
    return [
        Channels(leaf, tuple(found), tuple(users[leaf]), tuple(disturbed.get(leaf, ())))
        for leaf, found in pieces.items()
    ]


def _users(layout: Layout) -> dict[Axis, list[Stored]]:
    users: dict[Axis, list[Stored]] = {}
    for stored in layout.stored.values():
        for leaf in dict.fromkeys(leaf for axis in stored.axes for leaf in leaves(axis)):
            users.setdefault(leaf, []).append(stored)
    return users


def _is_aligned(leaf: Axis, starts: np.ndarray, stride: int, pattern: Pattern) -> bool:
    """True when the leaf's channels fill whole groups of a weight, and there is more than one group."""
    return stride == 1 and leaf.size > pattern.m and not leaf.size % pattern.m and not np.any(starts % pattern.m)


def _keeps_groups(axis: Axis, leaf: Axis, pattern: Pattern) -> bool:
    """True when every order of the leaf moves whole groups: tried with the channels turned round by one."""
    moved = indices(axis, {leaf: np.roll(np.arange(leaf.size), 1)}).reshape(-1, pattern.m) // pattern.m
    return bool((moved == moved[:, :1]).all())


def _why(layout: Layout, site: WeightSite, pattern: Pattern) -> str:
    """Why the channels that a weight reads keep their order."""
    if _key(site) not in layout.stored:
        return "it is inside a subgraph (If, Loop or Scan)"
    found = list(leaves(layout.axis(site)))
    reasons = [leaf.reason for leaf in found if leaf.reason]
    if reasons:
        return reasons[0]
    if max(leaf.size for leaf in found) <= pattern.m:
        return f"it has one group of {pattern.m} channels only: no order is better"
    return f"its channels do not fill whole groups of {pattern.m}"


class _Walk:
    """One walk over the main graph that gives every value its axes and applies every node's rule.

    Args:
        model: From `trtsparse.accuracy.permutation_model.prepared`.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.constants: dict[tuple[str, int], tuple[TensorRef, tuple[Axis, ...]]] = {}
        self._model = model
        self._graph = model.proto.graph
        self._scope = Scope(self._graph)
        self._names: dict[tuple[str, int], list[str]] = {}
        self._axes: dict[str, Axes | None] = {}
        self._dims: dict[str, Dims | None] = {}

    def run(self) -> None:
        """Unite and pin the axes of the whole graph."""
        self._add_constants()
        self._pin_shared_bytes()
        for value in self._graph.input:
            if value.name not in self._axes:
                self._pin(value.name, f"graph input {value.name!r}")
        for tensor in self._graph.sparse_initializer:
            self._pin(tensor.values.name, "stored as a sparse tensor")
        opsets = [o.version for o in self._model.proto.opset_import if o.domain in ("", "ai.onnx")]
        opset = max(opsets, default=1)
        for node in self._graph.node:
            if node.op_type != "Constant":
                self._apply(node, opset)
        for value in self._graph.output:
            self._pin(value.name, f"graph output {value.name!r}")

    def stored(self, key: tuple[str, int]) -> Stored:
        """A constant with its axes."""
        ref, axes = self.constants[key]
        return Stored(ref, tuple(self._names[key]), tuple(map(find, axes)))

    def pin_tensor(self, site: WeightSite, reason: str, *, axis: int | None = None) -> None:
        """Keep a weight as it is, or its order along one axis."""
        if site.ref is not None:
            self._pin_bytes(site.ref, reason, axis=axis)

    def _apply(self, node: onnx.NodeProto, opset: int) -> None:
        step = Step(
            node=node,
            opset=opset,
            inputs=tuple(self._of(name) for name in node.input),
            outputs=tuple(self._of(name) for name in node.output),
            dims=self._dims_of,
            constant=self._constant,
        )
        apply_rule(step)
        for name in set(reads(node)) - set(node.input):
            self._pin(name, f"read inside the subgraphs of {step.label}")

    def _of(self, name: str) -> Axes | None:
        """A value's axes; () for one that is left out."""
        if not name:
            return ()
        if name not in self._axes:
            dims = self._dims_of(name)
            sized = None if dims is None else tuple(Axis(dim) if isinstance(dim, int) else None for dim in dims)
            self._axes[name] = sized
        return self._axes[name]

    def _dims_of(self, name: str) -> Dims | None:
        if name not in self._dims:
            kind = self._scope.types.get(name)
            known = kind is not None and kind.tensor_type.HasField("shape")
            self._dims[name] = tuple(map(_dim, kind.tensor_type.shape.dim)) if kind is not None and known else None
        return self._dims[name]

    def _constant(self, name: str) -> np.ndarray | None:
        found = trace(self._model, self._scope, name)
        return None if isinstance(found, str) else self._model.array(found.tensor).reshape(found.shape)

    def _pin(self, name: str, reason: str) -> None:
        for axis in self._of(name) or ():
            if axis is not None:
                pin(axis, reason)

    def _add_constants(self) -> None:
        for name, tensor in _named_tensors(self._graph):
            self._dims[name] = tuple(tensor.dims)
            self._axes[name] = axes = tuple(Axis(dim) for dim in tensor.dims)
            ref = self._model.ref(tensor)
            if ref is None or not _is_plain(ref):
                self._pin(name, f"the elements of {name} cannot be exchanged in place")
                continue
            self._names.setdefault(ref.key, []).append(name)
            first, tied = self.constants.setdefault(ref.key, (ref, axes))
            if (first.shape, first.data_type) == (ref.shape, ref.data_type):
                self._axes[name] = tied
            else:
                for axis in (*axes, *tied):
                    pin(axis, f"{first.name} and {name} are the same bytes with different shapes or types")

    def _pin_shared_bytes(self) -> None:
        """Keep tensors whose bytes are used inside subgraphs too, or by another tensor in part."""
        refs = sorted((ref for ref in self._model.refs() if ref.nbytes), key=lambda ref: (*ref.key, ref.nbytes))
        uses = Counter(ref.key for ref in refs)
        furthest: TensorRef | None = None
        for ref in refs:
            clash = None if furthest is None or not _overlap(furthest, ref) else furthest
            if uses[ref.key] > len(self._names.get(ref.key, ())):
                self._pin_bytes(ref, f"the bytes of {ref.name} are used inside a subgraph")
            if clash is not None:
                self._pin_bytes(ref, f"{clash.name} and {ref.name} share bytes of the same file")
                self._pin_bytes(clash, f"{clash.name} and {ref.name} share bytes of the same file")
            if clash is None or ref.offset + ref.nbytes > clash.offset + clash.nbytes:
                furthest = ref

    def _pin_bytes(self, ref: TensorRef, reason: str, *, axis: int | None = None) -> None:
        axes = self.constants.get(ref.key, (None, ()))[1]
        for each in axes if axis is None else axes[axis : axis + 1]:
            pin(each, reason)


def _is_plain(ref: TensorRef) -> bool:
    """True when elements of at least four bits lie one after another."""
    return ref.encoding == "raw_data" and ref.nbytes > 0 and (not ref.packed or ref.nbytes == (ref.size + 1) // 2)


def _overlap(a: TensorRef, b: TensorRef) -> bool:
    """True when two references share bytes but are not to the same ones."""
    starts_inside = a.location == b.location and b.offset < a.offset + a.nbytes
    return starts_inside and (a.offset, a.nbytes) != (b.offset, b.nbytes)


def _named_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initializers, and the values of Constant nodes, of one graph."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _is_symbol(name: str) -> bool:
    """Exporters also write "?" or a name made up for each dim; those say nothing."""
    return bool(name) and name != "?" and not name.lower().startswith("unk__")


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return dim.dim_value
    return dim.dim_param if _is_symbol(dim.dim_param) else None

"""The report's rows: every weight site of the source model with compliant, eligible and chosen side by side."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx

from trtsparse.builder.config import SparsityWarning
from trtsparse.builder.report import Chosen, Notes, SiteRow
from trtsparse.builder.sparsity_log import NodeNames, SparseLayers
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import Scope, bodies, dequantized_from, subgraphs
from trtsparse.sparsity.validate import SiteReport
from trtsparse.sparsity.weights import find_sites, has_weights, with_shapes

__all__ = ["Evidence", "make_rows", "node_names", "nodes_in_fp32", "warn_about_open_layers", "warn_before"]

_DENSE = ("fp32", "tf32")
_SPARSE_FROM = 8.0
_SINCE = "they came with compute capability 8.0"
_OPEN = "its output stays floating point: sparse INT8 kernels were only seen chosen where the output is INT8 too"
_COMMUTING = {
    "Concat", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
_LISTED = 5  # names in a warning before "and n more"


@dataclass(frozen=True)
class Evidence:
    """What is known about the kernels of a built engine.

    Attributes:
        asked: Sparse kernels were allowed.
        at_load: Kernels are chosen when the engine is loaded.
        log: What the build log says.
        tactics: (layer, tactic) of sparse kernels from the inspector; None when it could not be asked.
        names: For every node of the source model, the names that layers may carry for it.
    """

    asked: bool
    at_load: bool
    log: SparseLayers = field(default_factory=SparseLayers)
    tactics: tuple[tuple[str, str], ...] | None = None
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """The library told which layers run sparse."""
        return self.log.chosen is not None or self.tactics is not None

    def found(self, node: str) -> bool | None:
        """Whether the log lists the node among the eligible."""
        return None if self.log.eligible is None else not self._listed.isdisjoint(self.names[node])

    def chosen(self, node: str, *, possible: bool) -> Chosen:
        """Whether the node runs sparse; ``possible``: it is eligible and compliant."""
        if not self.asked:
            return False
        if self.at_load:
            return "decided at load" if possible else False
        if not self.known:
            return None
        return not self._sparse.isdisjoint(self.names[node])

    def untraced(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """Names of chosen layers in which none of the nodes is recognised."""
        sought = {alias for node in nodes for alias in self.names[node]}
        layers = [layer for layer, _ in self.tactics or ()] or self._nodes.layers(self.log.chosen or "")
        return tuple(layer for layer in layers if layer and self._nodes.within(layer).isdisjoint(sought))

    def knowing(self, nodes: Iterable[str]) -> Evidence:
        """The same with these nodes among ``names``; what else is asked is about nodes that are."""
        missing = {node: (node,) for node in nodes if node not in self.names}
        return dataclasses.replace(self, names={**self.names, **missing}) if missing else self

    @functools.cached_property
    def _nodes(self) -> NodeNames:
        return NodeNames(alias for aliases in self.names.values() for alias in aliases)

    @functools.cached_property
    def _listed(self) -> set[str]:
        return self._nodes.within(self.log.eligible or "")

    @functools.cached_property
    def _sparse(self) -> set[str]:
        layers = (self.log.chosen or "", *(layer for layer, _ in self.tactics or ()))
        return {name for text in layers for name in self._nodes.within(text)}


def make_rows(
    sites: Sequence[SiteReport],
    evidence: Evidence,
    *,
    reached: str,
    kept: Sequence[str] = (),
    in_fp32: Collection[str] = (),
    open_layers: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> tuple[SiteRow, ...]:
    """One row a site; a site whose precision has no sparse kernels is not eligible, whatever its structure.

    A site of a fitting structure that runs sparse is eligible, whatever the other arguments say.

    Args:
        sites: Of the source model.
        evidence: What TensorRT told.
        reached: The precision of the build.
        kept: Nodes that the conversion left in FP32.
        in_fp32: `nodes_in_fp32` of the built model, where TensorRT keeps to its types.
        open_layers: Quantized nodes whose output stays floating point.
        targets: Compute capabilities that are built for, if they are named.
    """
    rows = []
    evidence = evidence.knowing(site.node for site in sites)
    for site in sites:
        expected = _reason(site, reached, kept, in_fp32, targets)
        possible = not site.reason and not expected and bool(site.compliant)
        chosen = evidence.chosen(site.node, possible=possible)
        reason = site.reason or ("" if chosen is True else expected)
        rows.append(
            SiteRow(
                node=site.node,
                op=site.op,
                tensor=site.tensor,
                shape=site.shape,
                axis=site.axis,
                parameters=site.parameters,
                macs=site.macs,
                compliant=site.compliant,
                eligible=not reason,
                found=evidence.found(site.node),
                chosen=chosen,
                reason=reason,
                warnings=() if reason else (*site.warnings, *([_OPEN] if site.node in open_layers else [])),
            )
        )
    return tuple(rows)


def warn_before(
    sites: Sequence[SiteReport],
    notes: Notes,
    *,
    reached: str,
    forced: bool,
    kept: Sequence[str] = (),
    in_fp32: Collection[str] = (),
    targets: Sequence[str] = (),
) -> None:
    """Say, before a sparse build, what will keep it from being sparse; arguments as of `make_rows`."""
    without = _without_sparse_cores(targets)
    if without and len(without) == len(targets):
        text = f"sparsity is on, but no target has Sparse Tensor Cores ({', '.join(without)}): {_SINCE}"
        notes.warn(text, SparsityWarning)
        return
    if without:
        text = f"sparsity is on, but targets without Sparse Tensor Cores run dense ({', '.join(without)}): {_SINCE}"
        notes.warn(text, SparsityWarning)
    reasons = [site.reason or _left_out(site, reached, kept, in_fp32) for site in sites]
    eligible = [site for site, reason in zip(sites, reasons, strict=True) if not reason]
    compliant = [site for site in eligible if site.compliant]
    grouped = [site.node for site in sites if site.reason.startswith("grouped")]
    if reached in _DENSE:
        text = (
            f"sparsity is on, but everything is {reached.upper()}: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"
        )
        notes.warn(f"{text}; build with precision='fp16'", SparsityWarning)
    if not eligible:
        why = f": {'; '.join(dict.fromkeys(reasons))}" if reasons else ": it has no Conv, Gemm or MatMul"
        notes.warn(f"sparsity is on, but no weight of the model is eligible{why}", SparsityWarning)
    elif not compliant and not forced:
        text = (
            f"sparsity is on, but none of the {len(eligible)} eligible weights is compliant: nothing can run sparse"
        )
        notes.warn(f"{text}; prune the model first, or build with sparsity='force'", SparsityWarning)
    elif len(compliant) < len(eligible) and not forced:
        dense = [site.node for site in eligible if not site.compliant]
        text = f"{len(dense)} of {len(eligible)} eligible weights are not compliant and will run dense"
        notes.warn(f"{text}: {_listed(dense)}", SparsityWarning)
    if grouped:
        text = "grouped convolutions never run sparse in TensorRT"
        notes.warn(f"{text}: {_listed(grouped)}", SparsityWarning)


def warn_about_open_layers(open_layers: Sequence[str], notes: Notes) -> None:
    """Say which layers of an INT8 build will hardly run sparse."""
    if open_layers:
        text = "sparse INT8 kernels were only seen chosen where the output is INT8 too, and these outputs are not"
        notes.warn(f"{text}: {_listed(open_layers)}", SparsityWarning)


def node_names(source: OnnxModel, built: OnnxModel) -> dict[str, tuple[str, ...]]:
    """For every node of ``source``, as weight sites call it: the names that TensorRT may give its layer.

    Args:
        source: The user's model.
        built: What was parsed: the same, or converted, with other node names around the same tensors.
    """
    names = {name: _aliases(name, node) for name, node in _named(source.proto.graph)}
    if built is source:
        return names
    users: dict[str, list[str]] = {}
    for site in find_sites(source, allow_unknown_operators=True):
        users.setdefault(site.tensor, []).append(site.node)
    nodes = dict(_named(built.proto.graph))
    for site in find_sites(built, allow_unknown_operators=True):
        node = nodes.get(site.node)
        for user in users.get(site.tensor, ()) if site.node not in names else ():
            names[user] = (
                *names.get(user, (user,)),
                *(_aliases(site.node, node) if node is not None else (site.node,)),
            )
    return names


def nodes_in_fp32(source: OnnxModel, built: OnnxModel) -> frozenset[str]:
    """Nodes with weights that the types of a graph say are computed in FP32, as weight sites of ``source`` call them.

    A product is INT8 when both of its operands are dequantized; of a dequantized weight alone it is floating point.

    Args:
        source: The user's model.
        built: What was parsed: the same, or converted.
    """
    graph = with_shapes(built.proto, {}, built.name).graph
    floating: dict[bool, set[str]] = {True: set(), False: set()}
    for name, fp32 in _products(Scope(graph)):
        floating[fp32].add(name)
    found = floating[True] - floating[False]  # nodes without names may be called alike in two graphs
    if found and built is not source:
        names = node_names(source, built).items()
        found |= {node for node, aliases in names if node not in floating[False] and not found.isdisjoint(aliases)}
    return frozenset(found)


def _products(scope: Scope) -> Iterator[tuple[str, bool]]:
    """Nodes with weights, and whether they are computed in FP32."""
    for position, node in enumerate(scope.graph.node):
        if has_weights(node):
            operands = node.input[:2]
            types = {dtype for dtype in map(scope.dtype, operands) if dtype}
            fp32 = types == {"float32"} and not all(_is_dequantized(scope, name) for name in operands)
            yield node.name or f"{node.op_type}_{position}", fp32
        for _, graph in bodies(node, position):
            yield from _products(Scope(graph, scope))


def _is_dequantized(scope: Scope, name: str) -> bool:
    """Whether a value comes out of DequantizeLinear, also past nodes that TensorRT moves it over."""
    while not dequantized_from(scope, name):
        found = scope.find(name)
        node = None if found is None else found.producers.get(name)
        if found is None or node is None or node.op_type not in _COMMUTING:
            return False
        scope, name = found, node.input[0]
    return True


def _reason(
    site: SiteReport, reached: str, kept: Sequence[str], in_fp32: Collection[str], targets: Sequence[str]
) -> str:
    if targets and len(_without_sparse_cores(targets)) == len(targets):
        return f"no target has Sparse Tensor Cores: {_SINCE}"
    if reached in _DENSE and site.quantization is None:
        return f"{reached.upper()} build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"
    return _left_out(site, reached, kept, in_fp32)


def _left_out(site: SiteReport, reached: str, kept: Sequence[str], in_fp32: Collection[str]) -> str:
    """Why a site is not computed in the precision of the build; "" where it is."""
    if site.node in kept:
        return "kept in FP32 by the conversion"
    if site.node in in_fp32:
        return "computed in FP32: not quantized" if reached == "int8" else "computed in FP32: stored so"
    return ""


def _without_sparse_cores(targets: Sequence[str]) -> list[str]:
    """Those of the compute capabilities that have no Sparse Tensor Cores; of "current" nothing is known."""
    return [target for target in targets if target != "current" and float(target) < _SPARSE_FROM]


def _named(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Nodes under the names that weight sites use."""
    for position, node in enumerate(graph.node):
        yield node.name or f"{node.op_type}_{position}", node
        for inner in subgraphs(node):
            yield from _named(inner)


def _aliases(name: str, node: onnx.NodeProto) -> tuple[str, ...]:
    """TensorRT calls a node without a name after its first output, or by operator and position."""
    return (name,) if node.name or not node.output else (name, f"node_of_{node.output[0]}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

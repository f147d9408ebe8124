"""The report's rows: every weight site of the source model with compliant, eligible and chosen side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx

from trtsparse.builder.config import SparsityWarning
from trtsparse.builder.report import Chosen, Notes, SiteRow
from trtsparse.builder.sparsity_log import SparseLayers, nodes_in
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import subgraphs
from trtsparse.sparsity.validate import SiteReport
from trtsparse.sparsity.weights import find_sites

__all__ = ["Evidence", "make_rows", "node_names", "warn_about_open_layers", "warn_before"]

_DENSE = ("fp32", "tf32")
_OPEN = "its output stays floating point: sparse INT8 kernels were only seen chosen where the output is INT8 too"
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
        return None if self.log.eligible is None else self._in(self.log.eligible, node)

    def chosen(self, node: str, *, possible: bool) -> Chosen:
        """Whether the node runs sparse; ``possible``: it is eligible and compliant."""
        if not self.asked:
            return False
        if self.at_load:
            return "decided at load" if possible else False
        if not self.known:
            return None
        return self._in(self.log.chosen or "", node) or self._in(self._sparse_layers, node)

    @functools.cached_property
    def _sparse_layers(self) -> str:
        return ", ".join(layer for layer, _ in self.tactics or ())

    def untraced(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """Names of chosen layers in which no node of the model is recognised."""
        known = [alias for node in nodes for alias in self.names.get(node, (node,))]
        layers = [layer for layer, _ in self.tactics or ()] or (self.log.chosen or "").split(", ")
        traced = set(nodes_in(", ".join(layers), known))
        return tuple(layer for layer in layers if layer and not nodes_in(layer, traced))

    def _in(self, layers: str, node: str) -> bool:
        return bool(layers) and bool(nodes_in(layers, self.names.get(node, (node,))))


def make_rows(
    sites: Sequence[SiteReport],
    evidence: Evidence,
    *,
    reached: str,
    kept: Sequence[str] = (),
    open_layers: Sequence[str] = (),
) -> tuple[SiteRow, ...]:
    """One row a site; a site whose precision has no sparse kernels is not eligible, whatever its structure.

    Args:
        sites: Of the source model.
        evidence: What TensorRT told.
        reached: The precision of the build.
        kept: Nodes that a conversion left in FP32.
        open_layers: Quantized nodes whose output stays floating point.
    """
    rows = []
    for site in sites:
        reason = site.reason or _precision_reason(site, reached, kept)
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
                chosen=evidence.chosen(site.node, possible=not reason and bool(site.compliant)),
                reason=reason,
                warnings=() if reason else (*site.warnings, *([_OPEN] if site.node in open_layers else [])),
            )
        )
    return tuple(rows)


def warn_before(sites: Sequence[SiteReport], notes: Notes, *, reached: str, forced: bool) -> None:
    """Say, before a sparse build, what will keep it from being sparse."""
    eligible = [site for site in sites if site.eligible]
    compliant = [site for site in eligible if site.compliant]
    grouped = [site.node for site in sites if site.reason.startswith("grouped")]
    if reached in _DENSE:
        text = (
            f"sparsity is on, but everything is {reached.upper()}: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"
        )
        notes.warn(f"{text}; build with precision='fp16'", SparsityWarning)
    if not eligible:
        reasons = dict.fromkeys(site.reason for site in sites if site.reason)
        why = f": {'; '.join(reasons)}" if reasons else ": it has no Conv, Gemm or MatMul"
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


def _precision_reason(site: SiteReport, reached: str, kept: Sequence[str]) -> str:
    if reached in _DENSE and site.quantization is None:
        return f"{reached.upper()} build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"
    if site.node in kept:
        return "kept in FP32 by the conversion"
    return ""


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

"""Prune a model to N:M by magnitude; everything but the pruned weights' bytes stays as it is.

The model is copied, byte for byte, and the copy's weights are changed in place, one tensor after another: memory does
not grow with the model.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from trtsparse.errors import ConfigError, ModelError, PatternError, PruneError
from trtsparse.files.model import OnnxModel
from trtsparse.files.tensor import TensorRef
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.readers import Readers, find_readers
from trtsparse.sparsity.validate import as_pattern
from trtsparse.sparsity.values import is_site_compliant, pack_int4, prune_values, unpack_int4
from trtsparse.sparsity.weights import WeightSite, find_sites

__all__ = [
    "PruneResult",
    "PrunedTensor",
    "Selection",
    "check_globs",
    "describe",
    "matches_globs",
    "prune",
    "ref_of",
    "select",
]

SCHEMA = "trtsparse.prune/1"


@dataclass(frozen=True)
class PrunedTensor:
    """What happened to one tensor.

    Attributes:
        tensor: Its name.
        nodes: The nodes that use it as a weight.
        axes: The reduction axes along which the pattern now holds.
        parameters: Elements.
        zeroed: Elements that were not zero and now are; 0 for a tensor that was compliant and stays untouched.
        also_read_by: What else reads the same bytes, such as the Gather of a tied embedding: it sees the zeros too.
    """

    tensor: str
    nodes: tuple[str, ...]
    axes: tuple[int, ...]
    parameters: int
    zeroed: int
    also_read_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class PruneResult:
    """A pruned model and what changed in it.

    Attributes:
        model: The pruned model; ``model.save(path)`` writes it, ``model.load()`` gives a ModelProto.
        pattern: "2:4".
        tensors: Every eligible tensor that was chosen.
        skipped: Tensors left alone, with the reason in words.
    """

    model: OnnxModel
    pattern: str
    tensors: tuple[PrunedTensor, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def zeroed(self) -> int:
        """Elements that became zero."""
        return sum(tensor.zeroed for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The changes as JSON types."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "pattern": self.pattern,
            "zeroed": self.zeroed,
            "tensors": [
                {name: list(value) if isinstance(value, tuple) else value for name, value in vars(tensor).items()}
                for tensor in self.tensors
            ],
            "skipped": [{"tensor": name, "reason": reason} for name, reason in self.skipped],
        }


def prune(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    output: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: Pattern | str = TWO_FOUR,
    allow_unknown_operators: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PruneResult:
    """Make every eligible weight compliant by zeroing the smallest magnitudes of each group.

    Of equal magnitudes the lower index is kept. Pruning twice changes nothing more. A tensor with several uses is
    pruned once so that every use is compliant. Quantized weights are compared by dequantized magnitude.

    Args:
        model: A path, serialized bytes, or a model in memory. It is not changed, unless ``output`` is its path.
        output: Where to write; without it the result stays in memory. External data files are written beside it.
        include: Globs; only tensors whose name, or a using node's name, matches one. Empty: all.
        exclude: Globs of tensors or nodes to leave alone.
        pattern: N:M, or "N:M".
        allow_unknown_operators: Accept operators of the standard domain that ONNX does not define (plugins).
        progress: Called with (bytes pruned, bytes in all) after every tensor.

    Raises:
        ModelError: The model cannot be read or contradicts itself.
        ConfigError: A glob matches nothing, or what is no pattern.
        PatternError: A text that is not N:M.
        PruneError: A tensor named in ``include`` is not eligible, or its uses contradict each other.
        OutputError: ``output`` cannot be written; nothing is left behind.

    Example:
        >>> import numpy as np
        >>> from onnx import helper, numpy_helper
        >>> w = numpy_helper.from_array(np.float32([[4, -3, 2, 1]]), "w")
        >>> x, y = helper.make_tensor_value_info("x", 1, [2, 4]), helper.make_tensor_value_info("y", 1, [2, 1])
        >>> graph = helper.make_graph([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "g", [x], [y], [w])
        >>> result = prune(helper.make_model(graph))
        >>> result.zeroed, numpy_helper.to_array(result.model.load().graph.initializer[0]).tolist()
        (2, [[4.0, -3.0, 0.0, 0.0]])
    """
    wanted = as_pattern(pattern)
    opened = OnnxModel.open(model)

    def sites_of(source: OnnxModel) -> tuple[WeightSite, ...]:
        return find_sites(source, pattern=wanted, allow_unknown_operators=allow_unknown_operators)

    selection = select(opened, sites_of(opened), include=include, exclude=exclude, pattern=wanted)
    pruned = []
    done, total = 0, sum(ref_of(uses).nbytes for uses in selection.chosen)
    positions = {id(site): position for position, site in enumerate(selection.sites)}
    target = None if output is None else Path(output)
    with opened.copying(target, replaced=[ref_of(uses) for uses in selection.violating]) as copy:
        copied = selection.sites if copy.proto is opened.proto else sites_of(copy)  # else offsets may differ
        chosen = [[copied[positions[id(site)]] for site in uses] for uses in selection.chosen]
        readers = find_readers(copy, chosen)
        for uses, there in zip(selection.chosen, chosen, strict=True):
            zeroed = _edit(copy, there, wanted) if any(uses is other for other in selection.violating) else 0
            pruned.append(describe(there, zeroed=zeroed, readers=readers))
            done += ref_of(uses).nbytes
            if progress is not None:
                progress(done, total)
    result = copy if output is None else OnnxModel.open(output)
    return PruneResult(result, str(wanted), tuple(pruned), selection.skipped)


@dataclass(frozen=True)
class Selection:
    """The tensors that a call to `prune` is about.

    Attributes:
        sites: All of the model.
        chosen: The eligible uses of each tensor to prune.
        violating: Those of ``chosen`` that are not compliant yet.
        skipped: Tensors left alone, with the reason.
    """

    sites: tuple[WeightSite, ...]
    chosen: tuple[tuple[WeightSite, ...], ...]
    violating: tuple[tuple[WeightSite, ...], ...]
    skipped: tuple[tuple[str, str], ...]


def select(
    opened: OnnxModel,
    sites: tuple[WeightSite, ...],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    pattern: Pattern,
) -> Selection:
    """Choose what to prune; arguments and errors as in `prune`."""
    check_globs(sites, include, "include")
    check_globs(sites, exclude, "exclude")
    chosen, skipped = _choose(sites, include, exclude)
    for uses in chosen:
        _check_uses(uses)
    _check_overlaps(opened, {ref_of(uses).key for uses in chosen})
    violating = tuple(uses for uses in chosen if _is_violating(opened, uses, pattern))
    return Selection(sites, tuple(chosen), violating, tuple(skipped))


def check_globs(sites: Sequence[WeightSite], globs: Sequence[str], option: str) -> None:
    """Refuse a glob that matches nothing.

    Raises:
        ConfigError: It is named, with what is near.
    """
    names = sorted({name for site in sites for name in (site.tensor, site.node)})
    for glob in globs:
        if not any(_is_like(name, glob) for name in names):
            close = difflib.get_close_matches(glob, names, n=3)
            raise ConfigError(
                "no weight or node has this name",
                where=option,
                got=glob,
                expected=f"for example {', '.join(close or names[:3])}" if names else "a model with weights",
                fix="`trtsparse validate` lists the names; * and ? are wildcards",
            )


def matches_globs(site: WeightSite, globs: Sequence[str]) -> bool:
    """Whether the tensor's or the node's name is like one of the globs."""
    return any(_is_like(name, glob) for glob in globs for name in (site.tensor, site.node))


def _is_like(name: str, glob: str) -> bool:
    return name == glob or fnmatch.fnmatchcase(name, glob)  # names may have brackets


def _choose(
    sites: Sequence[WeightSite], include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[tuple[WeightSite, ...]], list[tuple[str, str]]]:
    """Eligible uses of every tensor to prune, and the tensors left alone with the reason."""
    tensors: dict[object, list[WeightSite]] = {}
    for site in sites:
        tensors.setdefault(site.ref.key if site.ref else (site.tensor, site.node), []).append(site)
    chosen, skipped = [], []
    for uses in tensors.values():
        name = uses[0].tensor
        eligible = [site for site in uses if site.eligible]
        excluded = next((site for site in uses if matches_globs(site, exclude)), None)
        if include and not any(matches_globs(site, include) for site in uses):
            skipped.append((name, "not included"))
        elif excluded is not None:
            skipped.append((name, f"excluded (node {excluded.node!r})"))
        elif not eligible:
            if any(glob in (site.tensor, site.node) for glob in include for site in uses):
                raise PruneError(
                    "the tensor cannot be pruned",
                    where=f"{name!r}, used by node {uses[0].node!r}",
                    got=uses[0].reason,
                    fix="leave it out of `include`",
                )
            skipped.append((name, uses[0].reason))
        else:
            chosen.append(tuple(eligible))
    return chosen, skipped


def ref_of(uses: Sequence[WeightSite]) -> TensorRef:
    """Where the bytes of a tensor are, given its uses.

    Raises:
        PruneError: It is not constant.
    """
    ref = uses[0].ref
    if ref is None:
        raise PruneError("the tensor is not constant", where=uses[0].tensor)
    return ref


def _check_uses(uses: Sequence[WeightSite]) -> None:
    """Refuse a tensor whose uses want different things."""
    first = uses[0]
    where = f"{first.tensor!r}, used by {', '.join(sorted({repr(site.node) for site in uses}))}"
    fix = f"exclude it: exclude=[{first.tensor!r}]"
    if len({site.axis for site in uses}) > 2:
        raise PruneError("the tensor is used along more than two axes", where=where, fix=fix)
    if len({(site.shape, site.dtype) for site in uses}) > 1:
        raise PruneError("the same bytes are used with different shapes or types", where=where, fix=fix)
    quantizations = [site.quantization for site in uses]
    if any(
        (q is None) != (quantizations[0] is None) or (q and not q.same_as(quantizations[0])) for q in quantizations
    ):
        raise PruneError("the tensor is dequantized with different scales", where=where, fix=fix)


def _check_overlaps(model: OnnxModel, chosen: set[tuple[str, int]]) -> None:
    """Refuse to change bytes that belong to another tensor too."""
    furthest: TensorRef | None = None
    for ref in sorted(model.refs(), key=lambda ref: (*ref.key, ref.nbytes)):
        if furthest is None or ref.location != furthest.location or ref.offset >= furthest.offset + furthest.nbytes:
            furthest = ref
        elif (ref.offset, ref.nbytes) != (furthest.offset, furthest.nbytes):
            if not chosen.isdisjoint((ref.key, furthest.key)):
                raise ModelError(
                    "two tensors share bytes of the same file",
                    where=f"{furthest.name!r} and {ref.name!r} in {ref.location!r}",
                    fix="save the model again with onnx.save",
                )
            furthest = max(ref, furthest, key=lambda ref: ref.offset + ref.nbytes)


def _axes(uses: Sequence[WeightSite]) -> tuple[int, ...]:
    return tuple(sorted({site.axis for site in uses}))


def _is_violating(model: OnnxModel, uses: Sequence[WeightSite], pattern: Pattern) -> bool:
    one_each = [next(site for site in uses if site.axis == axis) for axis in _axes(uses)]
    return not all(is_site_compliant(model, site, pattern=pattern) for site in one_each)


def _edit(model: OnnxModel, uses: Sequence[WeightSite], pattern: Pattern) -> int:
    """Prune one tensor in place; return how many elements became zero."""
    site, ref = uses[0], ref_of(uses)
    try:
        with model.edit(ref) as stored:
            values = unpack_int4(stored, site) if ref.packed else stored
            zeroed = prune_values(values, axes=_axes(uses), pattern=pattern, quantization=site.quantization)
            if ref.packed:
                stored[...] = pack_int4(values)
    except PatternError as error:
        fix = f"exclude it: exclude=[{site.tensor!r}]"
        raise PruneError(error.what, where=repr(site.tensor), got=error.got, fix=fix) from error
    return zeroed


def describe(uses: Sequence[WeightSite], *, zeroed: int, readers: Readers) -> PrunedTensor:
    """What a report says about a pruned tensor; ``readers`` are those of the model whose sites the uses are."""
    ref = ref_of(uses)
    nodes = tuple(site.node for site in uses)
    return PrunedTensor(uses[0].tensor, nodes, _axes(uses), ref.size, zeroed, readers.get(ref.key, ()))

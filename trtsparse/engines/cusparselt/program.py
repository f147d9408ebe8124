"""Executes a graph step by step with PyTorch, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from trtsparse.engines.cusparselt import fused, resizing, shaping, spatial
from trtsparse.engines.cusparselt.graph import PRODUCTS, Graph, Node
from trtsparse.engines.cusparselt.lowering import keeps_exact, lowered
from trtsparse.engines.cusparselt.operators import FAILURES, OPERATORS, Tensor, is_known, to_tensor
from trtsparse.errors import EngineError, ModelError

__all__ = ["Linear", "Program", "check_operators", "to_tensor"]

Shapes = tuple[tuple[int, ...], ...]
Linear = Callable[..., Tensor]
"""(..., K), and what the node adds if it adds something, to (..., N): a product with its bias and activation."""
_REGISTERED = (fused, resizing, shaping, spatial)  # importing them enters their operators into the table
_HOST_INPUTS = {
    "Reshape": (1,), "Slice": (1, 2, 3, 4), "Expand": (1,), "Unsqueeze": (1,), "Squeeze": (1,), "Split": (1,),
    "Tile": (1,), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Clip": (1, 2), "ConstantOfShape": (0,),
    "Range": (0, 1, 2), "Dropout": (1, 2), "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,),
    "ReduceMin": (1,), "ReduceL2": (1,),
}  # fmt: skip
_HOST_OUTPUTS = {"Shape", "Size"}
_CONV2D = 4  # dims of its weight


def check_operators(graph: Graph) -> None:
    """Refuse a graph with operators that are not executed here, naming all of them.

    Raises:
        ModelError: There are such.
    """
    missing: dict[str, list[str]] = {}
    for node in graph.nodes:
        what = _missing(node, [graph.constants[name] for name in node.inputs if name in graph.constants])
        if what:
            missing.setdefault(what, []).append(node.name)
    if missing:
        listed = "; ".join(f"{what} ({len(names)}, first {names[0]!r})" for what, names in sorted(missing.items()))
        raise ModelError(
            "this engine does not execute some of the model's operators",
            where=graph.name,
            got=listed,
            fix="build a TensorRT engine, or run the model with engine='onnxruntime'",
        )


def _missing(node: Node, constants: Sequence[np.ndarray]) -> str:
    """What of a node is not executed here; "" for nothing."""
    unknown = next((array.dtype.name for array in constants if not is_known(array)), None)
    if unknown is not None:
        return f"{node.op} with values of type {unknown}"
    if node.op in PRODUCTS:
        return ""
    if node.op not in OPERATORS:
        return node.op
    try:
        OPERATORS[node.op](node)
    except NotImplementedError as error:
        return f"{node.op} with {error}"
    return ""


@dataclass
class _Step:
    """A node with what executes it.

    Attributes:
        node: The node.
        compute: Its function.
        on_host: It computes a shape.
        sources: For each input: where it comes from, "" for one left out.
        host: For each input: it is wanted on the CPU.
        last: Values that nothing reads after this step.
    """

    node: Node
    compute: Callable[..., Any]
    on_host: bool
    sources: list[str]
    host: list[bool]
    last: list[str]


@dataclass
class _Values:
    """What one execution reads.

    Attributes:
        shapes: Of the inputs.
        sizes: What steps on the host computed for such inputs.
        computed: What the other steps computed and is still read.
        lowered: Those of these that were float32, in the program's type, where that was asked for.
    """

    shapes: Shapes
    sizes: dict[str, Any]
    computed: dict[str, Tensor]
    lowered: dict[str, Tensor] = field(default_factory=dict)

    def find(self, names: Sequence[str]) -> list[Any]:
        """What was computed under some names, among which others may be."""
        return [held[name] for name in names for held in (self.computed, self.sizes) if name in held]

    def forget(self, names: Sequence[str]) -> None:
        """Free what nothing reads any more."""
        for name in names:
            self.computed.pop(name, None)
            self.lowered.pop(name, None)


class Program:
    """A graph that was made ready for a device. Not thread-safe.

    Args:
        graph: After fusion; its operators were checked.
        device: PyTorch's name of it, such as "cuda:0" or "cpu".
        floating: PyTorch's type in which float32 values are computed, but for those that come from integers; None: as
            the model has them.
        linear: Makes the step of a "Linear" node from the node, its weight (N, K) and its bias (N,) or None.
        attend: In place of ``torch.nn.functional.scaled_dot_product_attention``.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        device: str,
        floating: Any = None,
        linear: Callable[[Node, np.ndarray, np.ndarray | None], Linear],
        attend: Callable[..., Tensor] | None = None,
    ) -> None:
        import torch

        self._torch = torch
        self.graph, self.device, self.floating = graph, torch.device(device), floating
        self._constants: dict[tuple[str, bool, bool], Tensor] = {}
        self._filters = {node.inputs[1] for node in graph.nodes if node.op == "Conv"}
        self._moved: dict[tuple[Shapes, str, bool], Tensor] = {}
        self._sizes: dict[Shapes, dict[str, Tensor]] = {}  # what steps on the host computed for inputs of some shapes
        self._on_host: set[str] = set()
        self.steps = self._plan(linear, attend)

    def _plan(
        self,
        linear: Callable[[Node, np.ndarray, np.ndarray | None], Linear],
        attend: Callable[..., Tensor] | None,
    ) -> list[_Step]:
        graph, on_host, steps = self.graph, self._on_host, []
        last = {value: node for node in graph.nodes for value in node.inputs}
        outputs = set(graph.outputs)
        for node in graph.nodes:
            computed = [value for value in node.inputs if value and value not in graph.constants]
            host = node.op in _HOST_OUTPUTS or (
                all(value in on_host for value in computed)
                and node.op not in PRODUCTS  # their weights are on the device
            )
            if host:
                on_host.update(node.outputs)
            slots = _HOST_INPUTS.get(node.op, ())
            sources = list(node.inputs)
            if node.op in PRODUCTS:
                compute, sources = self._linear(node, linear), [node.inputs[0], *node.inputs[3:]]
            elif node.op == "Cast" and self.floating is not None and not host:
                cast, kind = OPERATORS["Cast"](node), self.floating
                compute = lambda x, cast=cast, kind=kind: cast(x, floating=kind)  # noqa: E731 - one expression
            elif node.op == "Attention" and attend is not None:
                compute = partial(OPERATORS["Attention"](node), attend=attend)
            else:
                compute = OPERATORS[node.op](node)
            wanted = [(host and node.op not in _HOST_OUTPUTS) or index in slots for index in range(len(sources))]
            gone = [v for v in dict.fromkeys(node.inputs) if v and last[v] is node and v not in outputs]
            for source, wants_host in zip(sources, wanted, strict=True):
                if source in graph.constants:
                    self._constant(source, host=wants_host, exact=wants_host)
            steps.append(_Step(node, compute, host, sources, wanted, gone))
        return steps

    def _linear(
        self, node: Node, make: Callable[[Node, np.ndarray, np.ndarray | None], Linear]
    ) -> Callable[..., Any]:
        weight = self.graph.constants[node.inputs[1]]
        bias = self.graph.constants[node.inputs[2]] if any(node.inputs[2:3]) else None
        if node.attributes.get("channels"):
            product = make(node, weight.reshape(weight.shape[:2]), bias)

            return lambda *values: product(*map(_channels_last, values)).movedim(-1, -3)
        return make(node, weight if node.attributes["transposed"] else weight.T, bias)

    def _constant(self, name: str, *, host: bool, exact: bool) -> Tensor:
        exact = exact or self.floating is None
        found = self._constants.get((name, host, exact))
        if found is None:
            array = self.graph.constants[name]
            place = "cpu" if host else self.device
            found = to_tensor(array, device=place, floating=None if exact else self.floating)
            if name in self._filters and found.dim() == _CONV2D and not host:
                # as Tensor Cores take it, and so that the convolution's other operands follow: given otherwise, it is
                # copied in every execution
                found = found.contiguous(memory_format=self._torch.channels_last)
            self._constants[name, host, exact] = found
        return found

    def _on_device(self, value: Tensor) -> Tensor:
        return lowered(value, self.floating).to(self.device)

    def __call__(
        self, inputs: Sequence[Tensor], *, watch: Callable[[str, Callable[[], Any]], Any] | None = None
    ) -> list[Tensor]:
        """Execute once.

        Args:
            inputs: In the order of the graph's inputs, on the device.
            watch: Called instead of each step that is not about shapes, with its name and what executes it.

        Returns:
            The outputs, in order; their memory is PyTorch's.

        Raises:
            EngineError: A step failed; the node is named.
        """
        shapes = tuple(tuple(value.shape) for value in inputs)
        return self._execute(inputs, shapes, self._sizes.setdefault(shapes, {}), self.steps, watch)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Execute once.

        Args:
            inputs: As for a call.
            outputs: Get the results, converted to their types.

        Raises:
            EngineError: As when it is called.
        """
        for output, result in zip(outputs, self(inputs), strict=True):
            output.copy_(result)

    def trace(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
        """The same for inputs of these shapes as a graph of PyTorch's operators; executes twice.

        Returns:
            A ``torch.fx.GraphModule``: takes the inputs and the outputs, which it writes.

        Raises:
            EngineError: As when it is called.
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        self(inputs)
        shapes = tuple(tuple(value.shape) for value in inputs)
        # as numpy arrays, which are no part of the graph
        known = {name: _numpy(value) for name, value in self._sizes[shapes].items()}
        steps = [step for step in self.steps if not step.on_host]

        def run(*values: Tensor) -> None:
            found = self._execute(values[: len(inputs)], shapes, known, steps)
            for output, result in zip(values[len(inputs) :], found, strict=True):
                output.copy_(result)

        return make_fx(run)(*inputs, *outputs)

    def close(self) -> None:
        """Free constants. Closing twice is harmless."""
        for held in (self._constants, self._moved, self._sizes):
            held.clear()

    def _execute(
        self,
        inputs: Sequence[Tensor],
        shapes: Shapes,
        sizes: dict[str, Any],
        steps: Sequence[_Step],
        watch: Callable[[str, Callable[[], Any]], Any] | None = None,
    ) -> list[Tensor]:
        """Take some steps; ``sizes`` holds what those on the host computed."""
        fed = dict(zip(self.graph.inputs, map(self._on_device, inputs), strict=True))
        values = _Values(shapes, sizes, fed)
        for step in steps:
            work = partial(step.compute, *self._arguments(step, values))
            try:
                found = work() if watch is None or step.on_host else watch(step.node.name, work)
            except EngineError:
                raise
            except FAILURES as error:
                raise EngineError(
                    "a step failed",
                    where=f"{self.graph.name}: node {step.node.name!r} ({step.node.op})",
                    got=str(error),
                ) from error
            whole = found if isinstance(found, tuple) else (found,)
            (sizes if step.on_host else values.computed).update(zip(step.node.outputs, whole, strict=False))
            values.forget(step.last)
        return [self._value(values, name, host=False, exact=True) for name in self.graph.outputs]

    def _arguments(self, step: _Step, values: _Values) -> list[Tensor | None]:
        exact = self.floating is None or step.on_host or keeps_exact(step.node.op, values.find(step.sources))
        return [
            self._value(values, source, host=host, exact=exact or host) if source else None
            for source, host in zip(step.sources, step.host, strict=True)
        ]

    def _value(self, values: _Values, name: str, *, host: bool, exact: bool) -> Tensor:
        if name in values.computed:
            return values.computed[name] if exact else self._lowered(values, name)
        if name not in values.sizes:
            return self._constant(name, host=host, exact=exact)
        if host:
            return values.sizes[name]
        key = (values.shapes, name, exact)
        if key not in self._moved:  # of these shapes it is always the same
            found = values.sizes[name].to(self.device)
            self._moved[key] = found if exact else lowered(found, self.floating)
        return self._moved[key]

    def _lowered(self, values: _Values, name: str) -> Tensor:
        if values.computed[name].dtype != self._torch.float32:
            return values.computed[name]
        if name not in values.lowered:
            values.lowered[name] = lowered(values.computed[name], self.floating)
        return values.lowered[name]


def _channels_last(value: Tensor) -> Tensor:
    """(..., C, H, W) as (..., H, W, C)."""
    missing = max(3 - value.dim(), 0)
    return value.reshape((*[1] * missing, *value.shape)).movedim(-3, -1)


def _numpy(value: Tensor) -> np.ndarray:
    """In the type that it has."""
    import ml_dtypes
    import torch

    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return value.numpy()  # type: ignore[no-any-return]

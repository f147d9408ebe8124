"""Linear layers with weights in INT8, FP8, or compressed 2:4, and how to put them in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

STEP = 16
"""What the kernels want both sizes of a weight to be a multiple of."""
_LARGEST_INT8 = 127.0
_LARGEST_FP8 = 448.0  # of e4m3
_ALGORITHMS = 22
"""How many there are for bfloat16 on an H100 in cuSPARSELt 0.8; ids that a library does not have are refused."""
_TRIED = 5

Make = Callable[[str, nn.Linear], "nn.Module | None"]


class Int8Linear(nn.Module):  # type: ignore[misc,unused-ignore]
    """Static scales: one for activations, one for each output channel of the weight.

    Args:
        layer: With its weight in a floating type, which results have.
        largest: The largest magnitude of an activation, as calibrated.
    """

    def __init__(self, layer: nn.Linear, largest: float) -> None:
        super().__init__()
        rows = layer.weight.detach().float()
        scale = rows.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST_INT8
        step = largest / _LARGEST_INT8
        self.dtype = layer.weight.dtype
        self.register_buffer("weight", (rows / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale * step)
        self.register_buffer("inverse", torch.full((), 1 / step, device=rows.device))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        whole = (x.float() * self.inverse).round().clamp(-_LARGEST_INT8, _LARGEST_INT8).to(torch.int8)
        y = torch._int_mm(whole.reshape(-1, x.shape[-1]), self.weight.t())  # noqa: SLF001 - its only name
        y = y.float() * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.to(self.dtype).view(*x.shape[:-1], -1)


class Fp8Linear(nn.Module):  # type: ignore[misc,unused-ignore]
    """e4m3 with static scales, one for activations and one for the weight.

    Args:
        layer: With its weight in bfloat16.
        largest: The largest magnitude of an activation, as calibrated.
    """

    def __init__(self, layer: nn.Linear, largest: float) -> None:
        super().__init__()
        rows = layer.weight.detach().float()
        scale = rows.abs().amax().clamp(min=1e-12) / _LARGEST_FP8
        step = torch.full((), largest / _LARGEST_FP8, device=rows.device)
        self.dtype = layer.weight.dtype
        self.register_buffer("weight", (rows / scale).to(torch.float8_e4m3fn))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("scale", step)
        self.register_buffer("inverse", 1 / step)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        small = (x.float() * self.inverse).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(  # noqa: SLF001 - its only name
            small.reshape(-1, x.shape[-1]),
            self.weight.t(),
            scale_a=self.scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )
        return y.view(*x.shape[:-1], -1)


class SemiLinear(nn.Module):  # type: ignore[misc,unused-ignore]
    """PyTorch's operator for compressed 2:4 weights, without its tensor type, by an algorithm of one's choice.

    Args:
        layer: Its weight is compliant and on a GPU.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        compressed = torch._cslt_compress(layer.weight.detach())  # noqa: SLF001 - its only name
        self.register_buffer("weight", compressed.view(layer.out_features, -1))
        self.bias, self.algorithm = layer.bias, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        columns = x.reshape(-1, x.shape[-1]).t()
        y = torch._cslt_sparse_mm(  # noqa: SLF001 - its only name
            self.weight, columns, bias=self.bias, transpose_result=True, alg_id=self.algorithm
        )
        return y.view(*x.shape[:-1], -1)


def linears(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Every Linear: its name, the module that has it, its name there, the layer."""
    for at, owner in list(network.named_modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Linear):
                yield f"{at}.{name}".lstrip("."), owner, name, layer


def replace(network: nn.Module, make: Make) -> int:
    """Put other modules in the place of Linears.

    Args:
        network: It is changed.
        make: Of a name and a Linear another module, or None to leave it.

    Returns:
        How many were replaced.
    """
    count = 0
    for at, owner, name, layer in linears(network):
        made = make(at, layer)
        if made is not None:
            setattr(owner, name, made)
            count += 1
    return count


def largest_inputs(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """The largest magnitude that each Linear reads, by its name; those that read few rows are left out.

    Args:
        network: It is run once.
        inputs: To calibrate with.
    """
    found: dict[str, torch.Tensor] = {}

    def watch(at: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_layer: nn.Module, read: tuple[torch.Tensor, ...]) -> None:
            if read[0].numel() // read[0].shape[-1] > STEP:  # fewer rows torch._int_mm refuses
                found[at] = read[0].abs().amax().float()

        return hook

    hooks = [layer.register_forward_pre_hook(watch(at)) for at, _, _, layer in linears(network)]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {at: float(value) for at, value in found.items()}


def quantize(network: nn.Module, inputs: tuple[torch.Tensor, ...], kind: type[Int8Linear | Fp8Linear]) -> int:
    """Make every Linear whose sizes fit an `Int8Linear` or `Fp8Linear`; returns how many."""
    largest = largest_inputs(network, inputs)

    def make(at: str, layer: nn.Linear) -> nn.Module | None:
        fits = not (layer.in_features % STEP or layer.out_features % STEP)
        return kind(layer, max(largest[at], 1e-6)) if at in largest and fits else None

    return replace(network, make)


def is_compliant(weight: torch.Tensor) -> bool:
    """Whether every four weights of a row have two non-zeros at most, and PyTorch takes the sizes."""
    if weight.shape[0] % STEP or weight.shape[1] % STEP:
        return False
    return bool(((weight.view(len(weight), -1, 4) != 0).sum(dim=-1) <= 2).all())


def make_semi_structured(network: nn.Module) -> int:
    """Compress compliant weights as PyTorch documents it, with cuSPARSELt; returns how many."""
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

    def make(_at: str, layer: nn.Linear) -> nn.Module | None:
        if not is_compliant(layer.weight):
            return None
        compressed = SparseSemiStructuredTensorCUSPARSELT.from_dense(layer.weight.detach())
        layer.weight = nn.Parameter(compressed, requires_grad=False)
        return layer

    return replace(network, make)


def make_semi_linear(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """The same by `SemiLinear`, with the fastest algorithm for each size; returns how many."""
    count = replace(network, lambda _at, layer: SemiLinear(layer) if is_compliant(layer.weight) else None)
    best: dict[tuple[int, ...], int] = {}

    def hook(layer: SemiLinear, read: tuple[torch.Tensor, ...]) -> None:
        size = (*read[0].shape, layer.weight.numel())
        if size not in best:
            best[size] = fastest_algorithm(layer, read[0])
        layer.algorithm = best[size]

    hooks = [m.register_forward_pre_hook(hook) for m in network.modules() if isinstance(m, SemiLinear)]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for one in hooks:
            one.remove()
    return count


def fastest_algorithm(layer: SemiLinear, x: torch.Tensor) -> int:
    """Which algorithm takes the least time for an input; those that fail are passed over."""
    times: dict[int, float] = {}
    for algorithm in range(_ALGORITHMS):
        layer.algorithm = algorithm
        try:
            times[algorithm] = _milliseconds(lambda: layer.forward(x))
        except RuntimeError:
            continue
    if not times:
        raise RuntimeError(f"cuSPARSELt has no algorithm for {tuple(x.shape)}")
    return min(times, key=times.__getitem__)


def _milliseconds(work: Callable[[], object]) -> float:
    """GPU time of the work's kernels alone: captured, since its host code takes longer than they do."""
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(_TRIED):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / _TRIED

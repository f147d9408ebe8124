"""How a PyTorch module becomes something to be timed: compiled within a time limit, captured in a CUDA graph."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as tracing
from torch._inductor import config as inductor

from .networks import Attention, Network

_AGAIN_S = 20.0  # a limit that was swallowed on its way out is raised again
_TRIED = 3
_GRAPHS = 1024  # of one piece of code, here of the call of any module: far more than all variants have


@dataclass(frozen=True)
class Runnable:
    """One inference with inputs that are on the device already.

    Attributes:
        run: Enqueues it on the current stream.
        output: What the last one computed.
        notes: How it is done.
        kept: What has to live as long: a CUDA graph holds addresses alone.
    """

    run: Callable[[], None]
    output: Callable[[], torch.Tensor]
    notes: str = ""
    kept: Any = None


class OutOfTime(BaseException):
    """A time limit was reached; not an Exception, since compilers catch these and go on."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after so many seconds; in the main thread only.

    Raises:
        OutOfTime: The block takes longer.
    """

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start_compiler(device: str) -> None:
    """Have the compiler do what it does once: cut off in the middle of it, by a time limit, it would not recover."""
    with contextlib.suppress(Exception):  # every variant says for itself why it cannot be compiled
        torch.compile(lambda x: (x @ x).relu())(torch.ones(16, 16, device=device))


def compile_parts(network: Network, *, mode: str, group: int) -> None:
    """Have a network's stem, groups of its blocks and its head compiled when they are first called.

    Blocks are alike, so that they are compiled once for all; as part of one CUDA graph it costs nothing to call them
    one by one. CUDA graphs are not left to ``torch.compile``: its own copy inputs and hand out outputs in Python on
    every call. Stem and head are a hundredth of the work, and compiled without autotuning.

    Args:
        network: It is changed.
        mode: "default" or "max-autotune-no-cudagraphs".
        group: How many blocks are compiled together, so that what follows one is fused with what precedes the next.
    """
    tracing.recompile_limit = tracing.accumulated_recompile_limit = _GRAPHS
    inductor.autotune_num_choices_displayed = 0  # no table for each product
    blocks = list(network.blocks)
    groups = [nn.Sequential(*blocks[first : first + group]) for first in range(0, len(blocks), group)]
    for part in groups:
        part.compile(fullgraph=True, dynamic=False, mode=mode)
    network.blocks = nn.Sequential(*groups)
    for part in (network.stem, network.head):
        if not isinstance(part, nn.Identity):
            part.compile(fullgraph=True, dynamic=False)


def plain(work: Callable[[], torch.Tensor], notes: str = "") -> Runnable:
    """Called anew for each inference."""
    kept: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            kept[:] = [work()]

    return Runnable(run, lambda: kept[0], notes, work)


def captured(work: Callable[[], torch.Tensor]) -> Runnable:
    """In a CUDA graph; peak memory is counted from the capture on, which allocates what an inference needs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_TRIED):
            work()
    side.synchronize()
    torch.cuda.reset_peak_memory_stats()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="relaxed"):
        output = work()
    return Runnable(graph.replay, lambda: output, "CUDA graph", work)


def ready(work: Callable[[], torch.Tensor], *, device: str, must_capture: bool = True) -> Runnable:
    """Warmed up; captured on a GPU.

    Args:
        work: One inference; its output's memory may be used again by the next one.
        device: "cuda" or "cpu".
        must_capture: Otherwise it is called as it is where it cannot be captured.
    """
    with torch.no_grad():
        work()
        if device != "cuda":
            return plain(work)
        try:
            return captured(work)
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises if the GPU is lost
            if must_capture:
                raise
            torch.cuda.reset_peak_memory_stats()
            return plain(work, f"no CUDA graph: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What went wrong, in a line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def attention_kernels() -> dict[str, Any]:
    """The implementations of attention that PyTorch has for a GPU; None: as PyTorch chooses."""
    from torch.nn.attention import SDPBackend

    return {
        "PyTorch's choice": None,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    }


@contextlib.contextmanager
def attention_by(backend: Any) -> Iterator[None]:
    """Use one implementation; None: as PyTorch chooses."""
    if backend is None:
        yield
        return
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        yield


def fastest_attention(network: Network, inputs: tuple[torch.Tensor, ...]) -> tuple[str, Any]:
    """The implementation of attention with which a network is fastest on a GPU.

    Returns:
        Its name, "" where there is nothing to choose, and what `attention_by` takes.
    """
    if not inputs[0].is_cuda or not any(isinstance(module, Attention) for module in network.modules()):
        return "", None
    choices = attention_kernels()
    times: dict[str, float] = {}
    for name, backend in choices.items():
        refusals = contextlib.suppress(RuntimeError) if backend is not None else contextlib.nullcontext()
        with refusals, torch.no_grad(), attention_by(backend):  # not each is for this GPU and these shapes
            times[name] = _milliseconds(lambda: network(*inputs))
    best = min(times, key=times.__getitem__)
    return best, choices[best]


def _milliseconds(work: Callable[[], object]) -> float:
    for _ in range(_TRIED):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_TRIED):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))

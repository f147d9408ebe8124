"""Ways to run a network with PyTorch on a GPU: dense in bfloat16, INT8 and FP8, and with its semi-structured weights.

Every way is built when it is asked for, and its output is compared with that of the network in float32.
"""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .execution import (
    OutOfTime,
    Runnable,
    attention_by,
    compile_parts,
    fastest_attention,
    first_line,
    ready,
    time_limit,
)
from .linears import Fp8Linear, Int8Linear, make_semi_linear, make_semi_structured, quantize
from .networks import Network

AUTOTUNE = "max-autotune-no-cudagraphs"


@dataclass
class Setting:
    """What all variants of a case share.

    Attributes:
        separate: The network in float32 on the device, projections as the model has them.
        merged: The same with projections of one value in one Linear.
        inputs: On the device, floating ones in float32.
        reference: The output in float32.
        device: "cuda" or "cpu".
        dtype: Of the dense variants.
        compile_limit_s: What one compilation may take.
        group: How many blocks are compiled together.
    """

    separate: Network
    merged: Network
    inputs: tuple[torch.Tensor, ...]
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    compile_limit_s: float = 120.0
    group: int = 1
    reference: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self.reference = self.separate(*self.inputs).float()

    def typed(self, network: Network, *, channels_last: bool = False) -> tuple[Network, tuple[torch.Tensor, ...]]:
        """A copy of a network and its inputs in the variants' type."""
        made = copy.deepcopy(network).to(self.dtype)
        inputs = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in self.inputs)
        if channels_last:
            made = made.to(memory_format=torch.channels_last)
            inputs = tuple(x.to(memory_format=torch.channels_last) for x in inputs)
        return made, inputs


@dataclass
class Outcome:
    """What became of a variant.

    Attributes:
        build_s: What building it took, until its first output.
        error: Of its output, relative to the norm of the reference.
        peak_nbytes: Device memory that it needs, its weights included.
        notes: How it runs.
        failure: Why it does not; "" where it does.
        runnable: Where it does.
    """

    build_s: float = 0.0
    error: float = math.nan
    peak_nbytes: int = 0
    notes: str = ""
    failure: str = ""
    runnable: Runnable | None = None

    def to_dict(self) -> dict[str, Any]:
        """What there is to report."""
        if self.failure:
            return {"failure": self.failure, "build_s": self.build_s}
        return {
            "build_s": self.build_s, "error": self.error, "peak_nbytes": self.peak_nbytes, "notes": self.notes
        }  # fmt: skip


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """The Frobenius norm of the difference over that of the reference."""
    return float((output.float() - reference).norm() / reference.norm())


def build(make: Callable[[], Runnable], reference: torch.Tensor, *, bound: float) -> Outcome:
    """Build a variant, run it and compare its output; a failure is an outcome too.

    Args:
        make: Gives something that can be run.
        reference: What it should compute.
        bound: The error above which it counts as wrong.
    """
    on_gpu = reference.is_cuda
    gc.collect()
    base = torch.cuda.memory_allocated() if on_gpu else 0
    start = time.perf_counter()
    outcome = Outcome()
    try:
        found = make()
        found.run()
        outcome.error = relative_error(found.output(), reference)
    except OutOfTime as error:
        outcome.failure = str(error)
    except Exception as error:  # noqa: BLE001 - a row of the table, whatever it is
        outcome.failure = first_line(error)
    else:
        outcome.notes, outcome.runnable = found.notes, found
        if not outcome.error <= bound:
            outcome.failure, outcome.runnable = f"wrong result: error {outcome.error:.2g}", None
    outcome.build_s = time.perf_counter() - start
    if on_gpu:
        torch.cuda.synchronize()  # raises if the GPU is lost
        outcome.peak_nbytes = torch.cuda.max_memory_allocated() - base
        if outcome.failure:
            gc.collect()
            torch.cuda.empty_cache()
    return outcome


def eager(setting: Setting, network: Network | None = None, *, channels_last: bool = False) -> Runnable:
    """Called as it is, with the fastest attention."""
    made, inputs = setting.typed(network or setting.separate, channels_last=channels_last)
    return _run(setting, made, inputs)


def compiled(setting: Setting, *, mode: str = AUTOTUNE, channels_last: bool = False) -> Runnable:
    """By ``torch.compile``, projections merged."""
    made, inputs = setting.typed(setting.merged, channels_last=channels_last)
    return _run(setting, made, inputs, mode=mode)


def quantized(setting: Setting, kind: type[Int8Linear | Fp8Linear], *, mode: str = AUTOTUNE) -> Runnable:
    """Dense in eight bits, calibrated on these inputs; compiled, so that scaling is fused with what is around it."""
    made, inputs = setting.typed(setting.merged)
    if not quantize(made, inputs, kind):
        raise ValueError("the network has no Linear of a fitting size")
    return _run(setting, made, inputs, mode=mode)


def semi_structured(setting: Setting) -> Runnable:
    """``torch.sparse.to_sparse_semi_structured`` as documented, by cuSPARSELt and its default algorithm."""
    made, inputs = setting.typed(setting.separate)
    if not make_semi_structured(made):
        raise ValueError("the network has no compliant weight of a fitting size")
    return _run(setting, made, inputs, must_capture=False)


def semi_structured_best(setting: Setting, *, mode: str = "default") -> Runnable:
    """The same operator with the best algorithm for each product, the rest compiled."""
    made, inputs = setting.typed(setting.merged)
    if not make_semi_linear(made, inputs):
        raise ValueError("the network has no compliant weight of a fitting size")
    return _run(setting, made, inputs, mode=mode, must_capture=False)


def _run(
    setting: Setting,
    network: Network,
    inputs: tuple[torch.Tensor, ...],
    *,
    mode: str | None = None,
    must_capture: bool = True,
) -> Runnable:
    name, backend = fastest_attention(network, inputs)
    if mode is not None:
        compile_parts(network, mode=mode, group=setting.group)
    with attention_by(backend):
        if mode is not None:
            with torch.no_grad(), time_limit(setting.compile_limit_s):
                network(*inputs)
        found = ready(lambda: network(*inputs), device=setting.device, must_capture=must_capture)
    notes = ", ".join(note for note in (found.notes, f"attention: {name}" if name else "") if note)
    return Runnable(found.run, found.output, notes, (found.kept, network, inputs))


def variants(setting: Setting, *, kinds: Mapping[str, bool], mode: str) -> dict[str, Callable[[], Runnable]]:
    """The variants of a case by name, the most telling first.

    Args:
        setting: Of the case.
        kinds: "convolutions": the network is one of them, whose memory format matters and whose products are not
            Linear; "eight bits": there are targets for these.
        mode: Of ``torch.compile``.
    """
    tuned = f"torch.compile {'max-autotune' if mode == AUTOTUNE else mode}"
    if kinds.get("convolutions"):
        return {
            f"{tuned}, channels last": lambda: compiled(setting, mode=mode, channels_last=True),
            "eager, channels last": lambda: eager(setting, channels_last=True),
            f"{tuned}, contiguous": lambda: compiled(setting, mode=mode),
            "eager, contiguous": lambda: eager(setting),
        }
    found: dict[str, Callable[[], Runnable]] = {
        tuned: lambda: compiled(setting, mode=mode),
        "eager": lambda: eager(setting),
        "semi-structured": lambda: semi_structured(setting),
    }
    if kinds.get("eight bits"):
        found[f"FP8, {tuned}"] = lambda: quantized(setting, Fp8Linear, mode=mode)
        found[f"INT8, {tuned}"] = lambda: quantized(setting, Int8Linear, mode=mode)
    found["semi-structured, best algorithms, torch.compile"] = lambda: semi_structured_best(setting)
    if setting.merged is not setting.separate:
        found["eager, merged projections"] = lambda: eager(setting, setting.merged)
    return found

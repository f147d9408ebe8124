"""The package's own engine as a variant, and what else there is to know of it: its kernels, its saved form."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from trtsparse.engines.cusparselt.context import CusparseltContext
from trtsparse.engines.cusparselt.engine import CusparseltEngine
from trtsparse.files.model import OnnxModel
from trtsparse.tune.choose import Choose

from .execution import Runnable

__all__ = ["Ours", "saved_form"]

_PROFILES = 5


class Ours:
    """An engine with its inputs and outputs on the GPU.

    Args:
        source: A model, or the path of a saved engine.
        arrays: An array for each input.
        choose: The kernels; None: what a saved engine brings.
        compiled: Whether ``torch.compile`` fuses what is between the products.
        use_sparse, precision: As the engine takes them.
    """

    def __init__(
        self,
        source: Path | OnnxModel,
        arrays: Mapping[str, np.ndarray],
        *,
        choose: Choose | None,
        compiled: bool | None,
        use_sparse: bool | None = None,
        precision: str | None = "bf16",
    ) -> None:
        self.engine = CusparseltEngine(
            source, precision=precision, compiled=compiled, use_sparse=use_sparse, choose=choose
        )
        self.inputs = {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}
        self.outputs: dict[str, torch.Tensor] = {}
        self.context = self._context()

    def _context(self) -> CusparseltContext:
        context = self.engine.create_context(profile=0, stream=0, own_scratch=True)
        shapes = context.set_inputs({name: tuple(value.shape) for name, value in self.inputs.items()}, {})
        if not self.outputs:
            types = {spec.name: getattr(torch, spec.dtype.name) for spec in self.engine.outputs}
            self.outputs = {
                name: torch.empty(shape, dtype=types[name], device="cuda") for name, shape in shapes.items()
            }
        for name, value in {**self.inputs, **self.outputs}.items():
            context.set_address(name, value.data_ptr())
        return context

    def run(self) -> None:
        """Enqueue one inference."""
        self.context.execute(torch.cuda.current_stream().cuda_stream)

    def output(self) -> torch.Tensor:
        """What the last one computed; a model has one."""
        return next(iter(self.outputs.values()))

    def runnable(self) -> Runnable:
        """In a new context, whose second execution is captured; before, kernels were tuned and code compiled."""
        self.run()
        torch.cuda.synchronize()
        self.context.close()
        for value in self.outputs.values():
            value.fill_(math.nan)
        torch.cuda.reset_peak_memory_stats()
        self.context = self._context()
        for _ in range(2):
            self.run()
        torch.cuda.synchronize()
        used = [found.kernel for found in self.engine.used]
        count = sum(kernel is not None and kernel.kind == "sparse" for kernel in used)
        notes = f"{count} of {len(used)} products sparse{', compiled' if self.engine.compiled else ''}"
        return Runnable(self.run, self.output, notes, self)

    def kernels(self) -> list[tuple[str, int, float]]:
        """The kernels of an inference as it is timed: names, how often each runs, its milliseconds in all."""
        kinds = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profiler:
            for _ in range(_PROFILES):
                self.run()
            torch.cuda.synchronize()
        found = [
            (event.key, round(event.count / _PROFILES), event.self_device_time_total / 1e3 / _PROFILES)
            for event in profiler.key_averages()
        ]
        return sorted((kernel for kernel in found if kernel[2]), key=lambda kernel: -kernel[2])

    def close(self) -> None:
        """Free it."""
        self.context.close()
        self.engine.close()


def saved_form(
    ours: Ours, model: Path, arrays: Mapping[str, np.ndarray], folder: Path, *, found: dict[str, Any]
) -> None:
    """Save the engine, load it and run it once, without ``torch.compile`` and, if it is compiled, with it.

    Args:
        ours: It has run.
        model: What it was made of.
        arrays: For each input.
        folder: For the file.
        found: Gets what is known, step by step: "nbytes" of the file, "dense_nbytes" of the weights in bfloat16,
            "load_s" by what was loaded.
    """
    path = folder / "engine.trtsparse"
    ours.engine.save(path)
    found |= {"nbytes": path.stat().st_size, "dense_nbytes": dense_nbytes(model), "load_s": {}}
    for compiled in sorted({False, ours.engine.compiled}):
        start = time.perf_counter()
        loaded = Ours(path, arrays, choose=None, compiled=compiled, precision=None)
        loaded.run()
        torch.cuda.synchronize()
        found["load_s"]["compiled" if compiled else "not compiled"] = time.perf_counter() - start
        loaded.close()


def dense_nbytes(model: Path) -> int:
    """Of a float32 model's weights, in two bytes each."""
    tensors = OnnxModel.open(model).proto.graph.initializer
    return sum(2 * math.prod(tensor.dims) for tensor in tensors if tensor.data_type == TensorProto.FLOAT)

"""The models that are measured end to end, and how their files are made."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import models
from trtsparse.files import atomic
from trtsparse.precision.feeds import random_feeds
from trtsparse.sparsity.prune import prune

__all__ = [
    "CASES", "DENSE", "DENSE_8", "NOT_ASKED", "SPARSE", "SPARSE_8", "Case", "feeds", "float_model", "give_up",
    "int8_model", "is_small", "prepare", "wait_for",
]  # fmt: skip

SPARSE, DENSE = "sparse engine", "dense engine"
SPARSE_8, DENSE_8 = f"INT8 {SPARSE}", f"INT8 {DENSE}"
"""What the package's own variants are called."""
NOT_ASKED = "not asked for"
"""Why a variant that was left out on purpose did not run."""
_LOOK_EVERY_S = 0.2
_CALIBRATED_ON = 2  # sequences: observing all values of a large batch takes gigabytes


@dataclass(frozen=True)
class Case:
    """A model at one size.

    Attributes:
        name: For the command line and the results.
        recipe: As `models.get` takes it.
        shapes: Of its inputs.
        target: What the best dense time over the sparse one should be at least, in bfloat16.
        int8_target: The same in eight bits; None: not measured.
        convolutions: Whether that is what it consists of.
        autotune: ``torch.compile`` gets its most thorough mode.
        group: How many blocks are compiled together.
        share: Of the time for all cases.
        options: Of the recipe.
    """

    name: str
    recipe: str
    shapes: Mapping[str, tuple[int, ...]]
    target: float | None = None
    int8_target: float | None = None
    convolutions: bool = False
    autotune: bool = True
    group: int = 1
    share: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def tiny(self) -> Case:
        """The same of a size for a processor, to try out the program."""
        small: dict[str, Any] = {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 128}
        options, shape = {
            "bert-large": ({**small, "vocabulary": 99}, (2, 16)),
            "vit-h": ({**small, "patch": 8, "image_size": 32, "num_classes": 16}, (2, 3, 32, 32)),
            "llm-block": ({"hidden": 64, "intermediate": 96}, (1, 32, 64)),
            "resnext101": ({"width": 8, "image_size": 32, "num_classes": 16}, (2, 3, 32, 32)),
        }[self.recipe]
        return dataclasses.replace(self, options=options, shapes=dict.fromkeys(self.shapes, shape), autotune=False)


def _resnext(batch: int, *, autotune: bool) -> Case:
    return Case(
        f"resnext101-{batch}",
        "resnext101",
        {"input": (batch, 3, 224, 224)},
        convolutions=True,
        autotune=autotune,
        share=1.2 if autotune else 0.7,
    )


CASES = (
    Case("bert-large", "bert-large", {"input_ids": (32, 384)}, target=1.2, int8_target=1.25, share=1.6),
    Case("llm-block", "llm-block", {"hidden_states": (1, 2048, 4096)}, target=1.35, int8_target=1.25),
    Case("vit-h", "vit-h", {"input": (32, 3, 224, 224)}, group=8, share=1.4),
    _resnext(32, autotune=True),
    _resnext(256, autotune=False),
    _resnext(1, autotune=False),
)
"""The most telling first."""


def is_small(variant: str) -> bool:
    """Whether a variant computes in eight bits; it is compared with such ones only.

    Example:
        >>> is_small("FP8, torch.compile default"), is_small("eager")
        (True, False)
    """
    return variant.startswith(("INT8", "FP8"))


def float_model(case: Case, folder: Path) -> Path:
    """Where `prepare` puts the pruned model; cases of one recipe share it."""
    return folder / (f"{case.recipe}-tiny" if case.options else case.recipe) / "pruned.onnx"


def int8_model(case: Case, folder: Path) -> Path:
    """Where `prepare` puts the pruned model with Q/DQ."""
    return float_model(case, folder).with_name("int8.onnx")


def feeds(case: Case, model: Path) -> dict[str, np.ndarray]:
    """An array for each input."""
    (found,) = random_feeds(model, shapes=case.shapes)
    return found


def prepare(case: Case, folder: Path, *, int8: bool) -> Path:
    """Make a case's model, or its INT8 form, unless it is there.

    Args:
        case: Of which.
        folder: For files.
        int8: Quantize the pruned model, which is there.
    """
    path = int8_model(case, folder) if int8 else float_model(case, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return path
    if int8:
        _write_int8(case, float_model(case, folder), path)
    else:
        prune(models.get(case.recipe, folder=folder, **case.options), output=path)
    return path


def give_up(path: Path, why: str) -> None:
    """Let those who wait for a file know that it will not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(_failure(path), why)


def _write_int8(case: Case, pruned: Path, path: Path) -> None:
    from trtsparse.precision.int8 import to_int8

    calibration = [{name: array[:_CALIBRATED_ON] for name, array in feeds(case, pruned).items()}]
    to_int8(pruned, calibration=calibration, max_error=math.inf).model.save(path)


def wait_for(path: Path, *, limit_s: float) -> Path:
    """Wait until another process has prepared a file.

    Raises:
        TimeoutError: It is not there in time.
        RuntimeError: It will not be.
    """
    until = time.monotonic() + limit_s
    while not path.exists():
        if _failure(path).exists():
            raise RuntimeError(_failure(path).read_text())
        if time.monotonic() > until:
            raise TimeoutError(f"{path.parent.name}/{path.name} was not ready in {limit_s:.0f} s")
        time.sleep(_LOOK_EVERY_S)
    return path


def _failure(path: Path) -> Path:
    return path.with_suffix(".failed")

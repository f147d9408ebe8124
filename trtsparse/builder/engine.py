"""A built engine: the plan's bytes and the report, saved together or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trtsparse.builder.plan import PlanHeader, read_header
from trtsparse.builder.report import BuildReport
from trtsparse.errors import ConfigError
from trtsparse.files import atomic
from trtsparse.files.copies import same_file
from trtsparse.files.model import OnnxModel

__all__ = ["BuiltEngine", "check_apart", "report_path"]


@dataclass(frozen=True)
class BuiltEngine:
    """What `trtsparse.builder.build.build` returns.

    Attributes:
        plan: The serialized engine, as TensorRT's runtime, trtexec and Triton read it.
        report: What was built and how.
    """

    plan: bytes = field(repr=False)
    report: BuildReport = field(repr=False)

    @property
    def header(self) -> PlanHeader:
        """Which library wrote the plan."""
        return read_header(self.plan)

    @property
    def nbytes(self) -> int:
        """The plan's size."""
        return len(self.plan)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan to ``path`` and the report to ``path`` + ".json".

        Args:
            path: The plan's file. Its folder must exist.

        Returns:
            The path.

        Raises:
            OutputError: One of the files cannot be written; nothing is left behind, and what was there stays.
        """
        target = Path(path)
        text = json.dumps(self.report.to_dict(), indent=2) + "\n"
        with atomic.replacing_all([target, report_path(target)]) as (plan, report):
            plan.write_bytes(self.plan)
            report.write_text(text, encoding="utf-8")
        return target


def report_path(plan: str | os.PathLike[str]) -> Path:
    """Where the report of a saved plan is: "model.plan.json" for "model.plan"."""
    return Path(f"{os.fspath(plan)}.json")


def check_apart(model: OnnxModel, outputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse outputs that would replace the model which they are made from.

    Args:
        model: What is read.
        outputs: What will be written.

    Raises:
        ConfigError: One of them is the model's file or one of its external data files, under whatever name.
    """
    main = [] if model.path is None else [model.path]
    for output in map(Path, outputs):
        for part in (*main, *model.external_files()):
            if same_file(part, output):
                whole = "the model" if part == model.path else f"a data file of the model {model.name}"
                raise ConfigError(f"the output would replace {whole}", where=output, fix="name another file")

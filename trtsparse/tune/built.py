"""Reading a build report: what the built engine really does."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtsparse.errors import ConfigError
from trtsparse.sparsity.weights import WeightSite
from trtsparse.tune.gemm import DTYPES
from trtsparse.tune.sites import AUTO

__all__ = ["Built"]


@dataclass(frozen=True)
class Built:
    """What matters of a build report.

    Attributes:
        rows: Of its weight sites, by node and tensor.
        sparsity: "disable", "enable" or "force"; "" without a report.
        dtype: What the engine computes in; "auto" without a report, and where the model was quantized before: then
            only its quantized products are INT8.
        floats: What products of float32 are computed in where that is "auto".
        shapes: What the first profile is made for.
        text: The library and the settings in a few words; "" without a report.
    """

    rows: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    sparsity: str = ""
    dtype: str = AUTO
    floats: str = "fp16"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    text: str = ""

    @classmethod
    def read(cls, report: Any) -> Built:
        """Read a report.

        Args:
            report: Its ``to_dict()``, the report itself, the path of a PLAN.json, or None.

        Raises:
            ConfigError: It is none of these.
        """
        if report is None:
            return cls()
        document = report.to_dict() if hasattr(report, "to_dict") else report
        if not isinstance(document, Mapping):
            document = _read_json(Path(document))
        try:
            reached = str(document["precision"]["reached"])
            quantized = document["precision"]["stored"] == "int8"
            profiles = document["profiles"]
            return cls(
                rows={(str(row["node"]), str(row["tensor"])): row for row in document["sites"]},
                sparsity=str(document["sparsity"]),
                dtype=reached if not quantized and (reached in DTYPES or reached == "fp32") else AUTO,
                floats=_floats(document) if quantized else "fp16",
                shapes=_opt_shapes(profiles[0], document["inputs"]) if profiles else {},
                text=f"{document['flavour']} {document['version']}, {reached}, sparsity {document['sparsity']}",
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ConfigError("not a build report", where="report", got=what, expected="a PLAN.json") from error

    def check(self, sites: Sequence[WeightSite], model: str) -> None:
        """Refuse a report of another model.

        Raises:
            ConfigError: No weight site of the report is one of these.
        """
        known = {(site.node, site.tensor) for site in sites}
        if self.rows and not known & set(self.rows):
            raise ConfigError(
                "the build report is about another model",
                where=model,
                got=_named(self.rows),
                expected=_named(known),
            )


def _floats(document: Mapping[str, Any]) -> str:
    """What a build of a quantized model makes of the float32 beside: what that was converted or allowed to."""
    precision = document["precision"]
    names = [str(step["precision"]) for step in precision["conversion"]]
    names += [str(document["config"]["int8_rest"]), *(str(flag).lower() for flag in precision["flags"])]
    return next((name for name in names if name in ("fp16", "bf16")), "fp32")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError("cannot read the build report", where=path, got=error.strerror) from error
    except ValueError as error:
        raise ConfigError("not a build report", where=path, got=str(error), expected="a PLAN.json") from error
    if not isinstance(document, Mapping):
        raise ConfigError("not a build report", where=path, got=type(document).__name__, expected="a PLAN.json")
    return document


def _opt_shapes(profile: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """What the profile is fastest at, without inputs whose values, not shapes, it gives."""
    ranks = {str(tensor["name"]): len(tensor["shape"]) for tensor in inputs}
    shapes = {str(name): tuple(int(dim) for dim in dims["opt"]) for name, dims in profile.items()}
    return {name: shape for name, shape in shapes.items() if ranks.get(name) == len(shape)}


def _named(sites: Collection[tuple[str, str]]) -> str:
    return f"{len(sites)} weight sites" + (f", such as {min(sites)[0]}" if sites else "")

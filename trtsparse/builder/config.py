"""What to build: `BuildConfig`, `Profile`, and the warnings that a build may raise.

Everything here is checked without TensorRT; what the installed version cannot do is checked by
`trtsparse.builder.capabilities`, what the model cannot do by `trtsparse.builder.profiles`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from trtsparse.builder.advanced import Advanced
from trtsparse.builder.plan import Flavour
from trtsparse.builder.profile import Profile
from trtsparse.errors import ConfigError

__all__ = [
    "COMPILED_FROM",
    "BuildConfig",
    "BuildWarning",
    "Precision",
    "Profile",
    "Sparsity",
    "SparsityWarning",
    "Typing",
]

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "best"]
Typing = Literal["auto", "strong", "weak"]
Sparsity = Literal["disable", "enable", "force"]
Rest = Literal["fp32", "fp16"]
Calibration = Literal["minmax", "entropy", "percentile"]
Refit = Literal["all", "identical", "individual"]
HardwareCompatibility = Literal["ampere_plus", "same_compute_capability"]
Verbosity = Literal["none", "layer_names_only", "detailed"]
MemoryPool = Literal[
    "workspace", "tactic_dram", "tactic_shared_memory", "dla_managed_sram", "dla_local_dram", "dla_global_dram"
]
COMPILED_FROM = 4
"""The least optimization level at which `torch.compile` fuses what surrounds the cusparselt engine's products."""


class BuildWarning(UserWarning):
    """The build goes on, but not as the caller may expect; the same text is in the report's ``warnings``."""


class SparsityWarning(BuildWarning):
    """Sparsity was asked for, and this build or some of its layers cannot use it."""


@dataclass(frozen=True)
class BuildConfig:
    """Everything that a build can be asked for. None means: as TensorRT does by default.

    Attributes:
        precision: "fp32" (TF32 switched off), "tf32", "fp16", "bf16", "int8" or "best" (the fastest that needs no
            calibration: FP16, BF16 and TF32, and INT8 for models that are quantized already). INT8 builds that
            allow sparsity also quantize outputs: only such layers were seen to run sparse.
        typing: How a precision is reached. "weak" sets builder flags and lets TensorRT choose per layer (TensorRT up
            to 10.16); "strong" converts the graph and builds a strongly typed network (TensorRT 10, 11, RTX);
            "auto" is "weak" where the flags exist, else "strong"; with ``keep_fp32`` or ``max_error`` it is "strong"
            where flags could not keep to them.
        calibration: How INT8 ranges follow from the values seen: "minmax", "entropy" or "percentile".
        random_calibration: Calibrate INT8 with random numbers where there are no samples; enough to measure time,
            and nothing else.
        int8_rest: Precision of the layers that stay floating point in an INT8 build; None for "fp16" where it is a
            flag and ``keep_fp32`` names nothing, else "fp32", which keeps the scales exact.
        keep_fp32: Node names that a conversion leaves in FP32; refused where nothing is converted.
        max_error: The largest error, relative to the output range, that a conversion may have; None for the
            converter's default. Refused where nothing is converted.
        sparsity: "disable"; "enable" lets TensorRT use sparse kernels for compliant weights; "force" first prunes
            the eligible weights by magnitude, which costs accuracy unless the model is fine-tuned.
        prune_include: Patterns of the nodes or tensors that "force" prunes; empty for all eligible ones.
        prune_exclude: Patterns of those that it leaves alone.
        profiles: Ranges of input shapes, needed for dynamic inputs.
        flavour: "tensorrt" or "tensorrt_rtx"; None for the one that is installed, TensorRT first.
        compute_capabilities: Of the target GPUs, such as ("8.6", "12.0") or ("current",); TensorRT-RTX only. Empty
            for an engine that runs on all that TensorRT-RTX supports.
        memory_pools: Limits in bytes by pool: "workspace", "tactic_shared_memory", ...
        optimization_level: 0 (fast builds) to 5 (fast engines). The cusparselt engine compiles models from
            `COMPILED_FROM` on.
        timing_cache: A file of kernel timings, read before and updated after the build, safe to share.
        refit: "all", "identical" or "individual": which weights can be replaced in the built engine.
        strip_plan: Leave the weights out of the plan; they are refitted later.
        version_compatible: A plan that newer versions of the same major version can load.
        exclude_lean_runtime: Leave the runtime out of a version-compatible plan.
        hardware_compatible: "ampere_plus" or "same_compute_capability": run on other GPUs than this one.
        strict_nans: Sparse kernels only where NaNs in the input stay NaNs.
        profiling_verbosity: What the engine can tell about its layers: "none", "layer_names_only" or "detailed"; None
            for "detailed" when sparsity is on, so that the report can say which kernels were chosen.
        max_aux_streams: CUDA streams that the engine may use beside its own.
        builder_threads: Threads that the builder may use.
        plugins: Shared libraries with plugins, loaded before parsing.
        serialize_plugins: Put the plugin libraries into a version-compatible plan.
        advanced: Settings by the names of TensorRT's own API.

    Raises:
        ConfigError: A value is wrong, or two options exclude each other.

    Example:
        >>> BuildConfig(precision="fp16", sparsity="enable", memory_pools={"workspace": 1 << 30}).wants_sparsity
        True
    """

    precision: Precision = "fp32"
    typing: Typing = "auto"
    int8_rest: Rest | None = None
    calibration: Calibration = "minmax"
    random_calibration: bool = False
    keep_fp32: tuple[str, ...] = ()
    max_error: float | None = None
    sparsity: Sparsity = "disable"
    prune_include: tuple[str, ...] = ()
    prune_exclude: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    flavour: Flavour | None = None
    compute_capabilities: tuple[str, ...] = ()
    memory_pools: Mapping[str, int] = field(default_factory=dict)
    optimization_level: int | None = None
    timing_cache: str | os.PathLike[str] | None = None
    refit: Refit | None = None
    strip_plan: bool = False
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatible: HardwareCompatibility | None = None
    strict_nans: bool = False
    profiling_verbosity: Verbosity | None = None
    max_aux_streams: int | None = None
    builder_threads: int | None = None
    plugins: tuple[str | os.PathLike[str], ...] = ()
    serialize_plugins: bool = False
    advanced: Advanced = field(default_factory=Advanced)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in ("keep_fp32", "prune_include", "prune_exclude", "profiles", "compute_capabilities", "plugins"):
            _check_sequence(name, getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for profile in self.profiles:
            if not isinstance(profile, Profile):
                raise ConfigError("not a Profile", where="profiles", got=repr(profile), fix="use Profile.parse")
        _check_range("optimization_level", self.optimization_level, 0, 5)
        _check_range("max_aux_streams", self.max_aux_streams, 0, None)
        _check_range("builder_threads", self.builder_threads, 1, None)
        _check_max_error(self.max_error)
        capabilities = tuple(_compute_capability(text) for text in self.compute_capabilities)
        object.__setattr__(self, "compute_capabilities", tuple(dict.fromkeys(capabilities)))
        object.__setattr__(self, "memory_pools", _memory_pools(self.memory_pools))
        self._check_together()

    @property
    def wants_sparsity(self) -> bool:
        """True when sparse kernels are allowed."""
        return self.sparsity != "disable"

    @property
    def verbosity(self) -> Verbosity:
        """`profiling_verbosity`, or what None stands for."""
        return self.profiling_verbosity or ("detailed" if self.wants_sparsity else "layer_names_only")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["profiles"] = [profile.to_dict() for profile in self.profiles]
        values["memory_pools"] = dict(self.memory_pools)
        values["timing_cache"] = None if self.timing_cache is None else str(Path(self.timing_cache))
        values["plugins"] = [str(Path(plugin)) for plugin in self.plugins]
        values["advanced"] = self.advanced.to_dict()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _check_together(self) -> None:
        if (self.prune_include or self.prune_exclude) and self.sparsity != "force":
            raise ConfigError(
                "nothing is pruned in this build",
                where="prune_include, prune_exclude",
                got=f"sparsity={self.sparsity!r}",
                expected="sparsity='force'",
            )
        asked = [
            name for name in ("calibration", "random_calibration") if getattr(self, name) not in ("minmax", False)
        ]
        if asked and self.precision != "int8":
            raise ConfigError(
                f"{asked[0]} is about INT8 builds", got=f"precision={self.precision!r}", expected="precision='int8'"
            )
        if self.int8_rest is not None and self.precision != "int8":
            raise ConfigError(
                "int8_rest is about INT8 builds", got=f"precision={self.precision!r}", expected="precision='int8'"
            )
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ConfigError("only a version-compatible plan has a lean runtime", where="exclude_lean_runtime")
        if self.serialize_plugins and not self.plugins:
            raise ConfigError("there are no plugins to serialize", where="serialize_plugins")
        if "current" in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise ConfigError(
                "'current' cannot be mixed with others",
                where="compute_capabilities",
                got=", ".join(self.compute_capabilities),
            )


_CHOICES: dict[str, tuple[Any, ...]] = {
    "precision": get_args(Precision),
    "typing": get_args(Typing),
    "int8_rest": (None, *get_args(Rest)),
    "calibration": get_args(Calibration),
    "sparsity": get_args(Sparsity),
    "flavour": (None, *get_args(Flavour)),
    "refit": (None, *get_args(Refit)),
    "hardware_compatible": (None, *get_args(HardwareCompatibility)),
    "profiling_verbosity": (None, *get_args(Verbosity)),
}


def _check_choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} has no such value", got=repr(value), expected=", ".join(map(repr, allowed)))


def _check_sequence(name: str, value: object) -> None:
    if isinstance(value, (str, bytes, os.PathLike)) or not hasattr(value, "__iter__"):
        raise ConfigError(f"{name} takes several values", got=repr(value), expected=f"({value!r},)")


def _check_range(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        expected = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        raise ConfigError(f"{name} is out of range", got=repr(value), expected=expected)


def _check_max_error(value: float | None) -> None:
    if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
        raise ConfigError("max_error is out of range", got=repr(value), expected="a number above 0")


def _compute_capability(text: str) -> str:
    """Normalise "8.6", "86", "sm86" and "SM_86" to "8.6"."""
    if str(text).lower() == "current":
        return "current"
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", str(text), re.IGNORECASE)
    if match is None:
        raise ConfigError(
            "not a compute capability",
            where="compute_capabilities",
            got=repr(text),
            expected="major.minor, such as '8.6', or 'current'",
        )
    return f"{match[1]}.{match[2]}"


def _memory_pools(pools: Mapping[str, int]) -> dict[str, int]:
    for name, nbytes in pools.items():
        _check_choice("memory_pools", name, get_args(MemoryPool))
        _check_range(f"memory_pools[{name!r}]", nbytes, 0, None)
    return dict(pools)

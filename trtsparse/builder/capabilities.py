"""What the installed version can do, read off its module; the only place that knows how versions differ.

`Capabilities` asks the module itself (has it this enum member, this method), never its version number. The version
ranges below are for messages: they say where an option that is missing here can be found.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

from trtsparse.builder.config import BuildConfig
from trtsparse.builder.plan import FLAVOUR_NAMES, version_name
from trtsparse.errors import UnsupportedOptionError

__all__ = ["FEATURES", "Capabilities", "Feature"]

_Version = tuple[int, int]


@dataclass(frozen=True)
class Feature:
    """Something that some versions have.

    Attributes:
        owner: The class or enumeration of the module that holds it.
        member: Its member.
        tensorrt: First and last version of TensorRT that has it (last None: still there); None: no version has.
        rtx: Some version of TensorRT-RTX has it.
    """

    owner: str
    member: str
    tensorrt: tuple[_Version, _Version | None] | None = ((8, 6), None)
    rtx: bool = True

    @property
    def versions(self) -> str:
        """The versions that have it, in words."""
        found = []
        if self.tensorrt:
            first, last = (version and ".".join(map(str, version)) for version in self.tensorrt)
            found.append(f"TensorRT {first} to {last}" if last else f"TensorRT {first} or later")
        return ", ".join([*found, *(["TensorRT-RTX"] if self.rtx else [])])


_FLAGS_GONE = (10, 16)
FEATURES: dict[str, Feature] = {
    "flag fp16": Feature("BuilderFlag", "FP16", ((8, 6), _FLAGS_GONE), rtx=False),
    "flag bf16": Feature("BuilderFlag", "BF16", ((10, 0), _FLAGS_GONE), rtx=False),
    "flag int8": Feature("BuilderFlag", "INT8", ((8, 6), _FLAGS_GONE), rtx=False),
    "flag tf32": Feature("BuilderFlag", "TF32"),
    "strong typing": Feature("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", ((10, 0), None)),
    "sparsity": Feature("BuilderFlag", "SPARSE_WEIGHTS"),
    "strict_nans": Feature("BuilderFlag", "STRICT_NANS", ((10, 7), None)),
    "refit all": Feature("BuilderFlag", "REFIT"),
    "refit identical": Feature("BuilderFlag", "REFIT_IDENTICAL", ((10, 0), None)),
    "refit individual": Feature("BuilderFlag", "REFIT_INDIVIDUAL", ((10, 3), None)),
    "strip_plan": Feature("BuilderFlag", "STRIP_PLAN", ((10, 0), None)),
    "version_compatible": Feature("BuilderFlag", "VERSION_COMPATIBLE"),
    "exclude_lean_runtime": Feature("BuilderFlag", "EXCLUDE_LEAN_RUNTIME"),
    "compute_capabilities": Feature("IBuilderConfig", "set_compute_capability", None),
    "hardware_compatible ampere_plus": Feature("HardwareCompatibilityLevel", "AMPERE_PLUS", rtx=False),
    "hardware_compatible same_compute_capability": Feature(
        "HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY", ((10, 9), None), rtx=False
    ),
    "memory_pools workspace": Feature("MemoryPoolType", "WORKSPACE"),
    "memory_pools tactic_dram": Feature("MemoryPoolType", "TACTIC_DRAM"),
    "memory_pools tactic_shared_memory": Feature("MemoryPoolType", "TACTIC_SHARED_MEMORY", ((10, 0), None)),
    "memory_pools dla_managed_sram": Feature("MemoryPoolType", "DLA_MANAGED_SRAM"),
    "memory_pools dla_local_dram": Feature("MemoryPoolType", "DLA_LOCAL_DRAM"),
    "memory_pools dla_global_dram": Feature("MemoryPoolType", "DLA_GLOBAL_DRAM"),
    "optimization_level": Feature("IBuilderConfig", "builder_optimization_level"),
    "max_aux_streams": Feature("IBuilderConfig", "max_aux_streams"),
    "builder_threads": Feature("Builder", "max_threads"),
    "timing_cache": Feature("IBuilderConfig", "set_timing_cache"),
    "profiling_verbosity": Feature("IBuilderConfig", "profiling_verbosity"),
    "serialize_plugins": Feature("IBuilderConfig", "plugins_to_serialize"),
    "plugins": Feature("IPluginRegistry", "load_library"),
    "progress": Feature("IBuilderConfig", "progress_monitor", ((10, 0), None)),
    "explicit batch": Feature("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", ((8, 6), _FLAGS_GONE), rtx=False),
}


@dataclass(frozen=True)
class Capabilities:
    """What one imported TensorRT module has.

    Attributes:
        flavour: "tensorrt" or "tensorrt_rtx".
        version: As the module states it, such as "10.13.3.9".
        features: Names from `FEATURES` that the module has.
        gpu_targets: Compute capabilities that can be named as targets, such as "8.6"; empty where there is no such
            option.
    """

    flavour: str
    version: str
    features: frozenset[str]
    gpu_targets: tuple[str, ...]

    @classmethod
    def of(cls, module: types.ModuleType | Any) -> Capabilities:
        """Read them off an imported module."""
        ahead_of_time = _has(module, FEATURES["compute_capabilities"])
        present = {name for name, feature in FEATURES.items() if _has(module, feature)}
        if ahead_of_time:  # the enumeration is there, but setting it is refused
            present -= {name for name in present if name.startswith("hardware_compatible")}
        return cls(
            flavour=module.__name__.partition(".")[0],
            version=str(module.__version__),
            features=frozenset(present),
            gpu_targets=_gpu_targets(module) if ahead_of_time else (),
        )

    @property
    def name(self) -> str:
        """Such as "TensorRT-RTX 1.7.1.116"."""
        return version_name(self.flavour, self.version)

    @property
    def ahead_of_time(self) -> bool:
        """Builds for named targets without a GPU; kernels are chosen when the engine is loaded, nothing is timed."""
        return "compute_capabilities" in self.features

    @property
    def weak_typing(self) -> bool:
        """Precisions can be flags."""
        return "flag fp16" in self.features

    def require(self, feature: str, option: str) -> None:
        """Refuse an option that this version does not have.

        Args:
            feature: A name from `FEATURES`.
            option: The option as the user gave it.

        Raises:
            UnsupportedOptionError: It is missing; the versions that have it are named.
        """
        if feature not in self.features:
            raise UnsupportedOptionError(
                f"{option} is not available in this version of {FLAVOUR_NAMES[self.flavour]}",
                got=self.name,
                expected=FEATURES[feature].versions,
                fix="leave the option out, or install a version that has it",
            )

    def check(self, config: BuildConfig) -> None:
        """Refuse every option of a configuration that this version does not have; precision is checked elsewhere.

        Raises:
            UnsupportedOptionError: As `require`.
        """
        for feature, option in _asked(config):
            self.require(feature, option)
        unknown = [target for target in config.compute_capabilities if target not in (*self.gpu_targets, "current")]
        if unknown:
            raise UnsupportedOptionError(
                f"{FLAVOUR_NAMES[self.flavour]} cannot build for this compute capability",
                where=f"compute_capabilities, {self.name}",
                got=", ".join(unknown),
                expected=", ".join(self.gpu_targets),
            )


def _asked(config: BuildConfig) -> list[tuple[str, str]]:
    """(feature, option as given) for every option that is not at its default."""
    asked = []
    if config.wants_sparsity:
        asked.append(("sparsity", f"sparsity={config.sparsity!r}"))
    switches = ("strict_nans", "strip_plan", "version_compatible", "exclude_lean_runtime", "serialize_plugins")
    asked += [(name, f"{name}=True") for name in switches if getattr(config, name)]
    levels = {name: getattr(config, name) for name in ("refit", "hardware_compatible")}
    asked += [(f"{name} {value}", f"{name}={value!r}") for name, value in levels.items() if value]
    values = ("optimization_level", "max_aux_streams", "builder_threads", "profiling_verbosity")
    asked += [(name, f"{name}={getattr(config, name)!r}") for name in values if getattr(config, name) is not None]
    asked += [(f"memory_pools {pool}", f"memory_pools[{pool!r}]") for pool in config.memory_pools]
    asked += [(name, name) for name in ("compute_capabilities", "plugins", "timing_cache") if getattr(config, name)]
    return asked


def _has(module: Any, feature: Feature) -> bool:
    owner = getattr(module, feature.owner, None)
    if owner is None and feature.owner == "IPluginRegistry":
        owner = type(module.get_plugin_registry()) if hasattr(module, "get_plugin_registry") else None
    return owner is not None and hasattr(owner, feature.member)


def _gpu_targets(module: Any) -> tuple[str, ...]:
    """Members SM86, SM120, ... as "8.6", "12.0", in order."""
    numbers = [int(name[2:]) for name in module.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{number // 10}.{number % 10}" for number in sorted(numbers))

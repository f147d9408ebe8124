"""Puts the options of a `BuildConfig` into TensorRT's builder and configuration; `Capabilities` has checked them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtsparse.builder.advanced import apply_advanced
from trtsparse.builder.capabilities import Capabilities
from trtsparse.builder.config import BuildConfig
from trtsparse.builder.logs import Log
from trtsparse.errors import ConfigError

__all__ = ["apply_options", "load_plugins"]

_REFIT = {"all": "REFIT", "identical": "REFIT_IDENTICAL", "individual": "REFIT_INDIVIDUAL"}


def apply_options(trt: Any, builder: Any, config: Any, options: BuildConfig, flags: Sequence[str]) -> None:
    """Set everything but profiles, timing cache and progress.

    Args:
        trt: The TensorRT module.
        builder: The Builder.
        config: The IBuilderConfig.
        options: What was asked for.
        flags: Members of BuilderFlag for the precision.
    """
    for name in (*flags, *_flags(options)):
        config.set_flag(getattr(trt.BuilderFlag, name))
    if options.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    for pool, nbytes in options.memory_pools.items():
        config.set_memory_pool_limit(getattr(trt.MemoryPoolType, pool.upper()), nbytes)
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, options.verbosity.upper())
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.builder_threads is not None:
        builder.max_threads = options.builder_threads
    if options.hardware_compatible is not None:
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatible.upper())
        config.hardware_compatibility_level = level
    if options.serialize_plugins:
        config.plugins_to_serialize = [os.fspath(plugin) for plugin in options.plugins]
    _set_targets(trt, config, options.compute_capabilities)
    if options.advanced.given:
        apply_advanced(trt, config, options.advanced, version=Capabilities.of(trt).name)


def load_plugins(trt: Any, plugins: Sequence[str | os.PathLike[str]], log: Log) -> None:
    """Load plugin libraries into TensorRT's registry.

    Raises:
        ConfigError: A library is missing or does not load; TensorRT's reason is in it.
    """
    for plugin in plugins:
        path = Path(plugin)
        if not path.is_file():
            raise ConfigError("there is no such plugin library", where=path)
        before = len(log.messages)
        try:
            handle = trt.get_plugin_registry().load_library(str(path))
            reasons = log.since(before).errors
        except (RuntimeError, OSError, ValueError) as error:
            handle, reasons = None, (str(error), *log.since(before).errors)
        if handle is None:
            raise ConfigError(
                "a plugin library does not load",
                where=path,
                got=reasons[0] if reasons else "no reason given",
                expected="a shared library with getCreators or getPluginCreators",
            )


def _flags(options: BuildConfig) -> list[str]:
    wanted = {
        "SPARSE_WEIGHTS": options.wants_sparsity,
        "STRICT_NANS": options.strict_nans,
        "STRIP_PLAN": options.strip_plan,
        "VERSION_COMPATIBLE": options.version_compatible,
        "EXCLUDE_LEAN_RUNTIME": options.exclude_lean_runtime,
    }
    flags = [name for name, on in wanted.items() if on]
    return flags + ([_REFIT[options.refit]] if options.refit else [])


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        name = "CURRENT" if target == "current" else f"SM{target.replace('.', '')}"
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise ConfigError("TensorRT refuses the compute capability", where="compute_capabilities", got=target)

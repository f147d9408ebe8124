"""Messages about the builder's options in the words of a command line: "precision='fp16'" becomes "--fp16"."""

from __future__ import annotations

import re

__all__ = ["in_flags"]

_SAME = {
    "precision='fp32'": "--noTF32",
    "typing='strong'": "--stronglyTyped",
    "refit='all'": "--refit",
    "strip_plan=True": "--stripWeights",
    "version_compatible=True": "--versionCompatible",
    "exclude_lean_runtime=True": "--excludeLeanRuntime",
    "random_calibration=True": "--int8",
    "int8_rest='fp16'": "--fp16",
    "hardware_compatible='ampere_plus'": "--hardwareCompatibilityLevel=ampere+",
    "hardware_compatible='same_compute_capability'": "--hardwareCompatibilityLevel=sameComputeCapability",
}
_PATTERNS = (
    (r"engine='(\w+)'", r"--engine=\1"),
    (r"precision='(fp16|bf16|int8|best)'", r"--\1"),
    (r"sparsity='(disable|enable|force)'", r"--sparsity=\1"),
    (r"optimization_level=(\d)", r"--builderOptimizationLevel=\1"),
    (r"max_aux_streams=(\d+)", r"--maxAuxStreams=\1"),
    (r"profiling_verbosity='(\w+)'", r"--profilingVerbosity=\1"),
    (r"\bkeep_fp32\b", "--layerPrecisions"),
    (r"memory_pools\['(\w+)'\]", r"--memPoolSize=\1"),
)


def in_flags(text: str) -> str:
    """Name flags instead of the arguments of `trtsparse.BuildConfig`.

    Example:
        >>> in_flags("nothing can run sparse; build with sparsity='force', precision='fp16'")
        'nothing can run sparse; build with --sparsity=force, --fp16'
    """
    for words, flag in _SAME.items():
        text = text.replace(words, flag)
    for pattern, flag in _PATTERNS:
        text = re.sub(pattern, flag, text)
    return text

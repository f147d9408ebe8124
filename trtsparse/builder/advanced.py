"""Settings by the names of TensorRT's own API, for what `BuildConfig` has no field for.

Which names exist differs from version to version; the module itself is asked, so nothing here knows versions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtsparse.errors import ConfigError, UnsupportedOptionError

__all__ = ["Advanced", "apply_advanced", "apply_parser_flags", "apply_types"]

_IO_TYPES = {
    "fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8", "int32": "INT32", "int64": "INT64",
    "bool": "BOOL", "uint8": "UINT8", "fp8": "FP8",
}  # fmt: skip
Value = int | str | tuple[str, ...]


@dataclass(frozen=True)
class Advanced:
    """What is set by name, after everything else.

    Attributes:
        flags: Members of BuilderFlag to set or, with False, to clear.
        attributes: Attributes of IBuilderConfig; for one that is an enumeration the member's name.
        parser_flags: Members of OnnxParserFlag to set or clear.
        tactic_sources: Members of TacticSource to switch on or off.
        preview_features: Members of PreviewFeature to switch on or off.
        input_types: Data types of the engine's inputs, such as "fp16": one for all, or one each; None leaves one as
            it is. Weakly typed networks only: otherwise the model says it.
        output_types: Likewise for outputs.
        shape_value: What inputs that hold shapes hold, where neither a profile nor a sample says it; None refuses the
            build then.

    Example:
        >>> Advanced(flags={"DIRECT_IO": True}, attributes={"tiling_optimization_level": "FAST"}).given
        True
    """

    flags: Mapping[str, bool] = field(default_factory=dict)
    attributes: Mapping[str, Value] = field(default_factory=dict)
    parser_flags: Mapping[str, bool] = field(default_factory=dict)
    tactic_sources: Mapping[str, bool] = field(default_factory=dict)
    preview_features: Mapping[str, bool] = field(default_factory=dict)
    input_types: tuple[str | None, ...] = ()
    output_types: tuple[str | None, ...] = ()
    shape_value: int | None = None

    @property
    def given(self) -> bool:
        """Something is set."""
        return self != Advanced()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v
            for name, v in values.items()
        }


def apply_advanced(trt: Any, config: Any, settings: Advanced, *, version: str) -> None:
    """Put settings into an IBuilderConfig.

    Args:
        trt: The TensorRT module.
        config: The IBuilderConfig.
        settings: What was asked for.
        version: Of the library, for messages.

    Raises:
        UnsupportedOptionError: This version lacks a name; those that it has are listed.
        ConfigError: TensorRT refuses a value.
    """
    for name, on in settings.flags.items():
        (config.set_flag if on else config.clear_flag)(_member(trt, "BuilderFlag", name, version))
    for name, on in settings.preview_features.items():
        config.set_preview_feature(_member(trt, "PreviewFeature", name, version), on)
    if settings.tactic_sources:
        sources = config.get_tactic_sources()
        for name, on in settings.tactic_sources.items():
            bit = 1 << int(_member(trt, "TacticSource", name, version))
            sources = sources | bit if on else sources & ~bit
        if not config.set_tactic_sources(sources):
            raise ConfigError("TensorRT refuses the tactic sources", where=version, got=str(settings.tactic_sources))
    for name, value in settings.attributes.items():
        _set(config, name, value, version)


def apply_parser_flags(trt: Any, parser: Any, settings: Advanced, *, version: str) -> None:
    """Set or clear flags of an OnnxParser.

    Raises:
        UnsupportedOptionError: This version lacks a flag.
    """
    for name, on in settings.parser_flags.items():
        (parser.set_flag if on else parser.clear_flag)(_member(trt, "OnnxParserFlag", name, version))


def apply_types(trt: Any, network: Any, settings: Advanced, *, strong: bool, version: str) -> None:
    """Give inputs and outputs of a network their data types and the linear layout.

    Args:
        trt: The TensorRT module.
        network: The INetworkDefinition.
        settings: What was asked for.
        strong: The network is strongly typed.
        version: Of the library, for messages.

    Raises:
        UnsupportedOptionError: The network is strongly typed, or the version lacks a type.
        ConfigError: Neither one type for all nor one for each.
    """
    kinds = {
        "input": (settings.input_types, [network.get_input(i) for i in range(network.num_inputs)]),
        "output": (settings.output_types, [network.get_output(i) for i in range(network.num_outputs)]),
    }
    for kind, (types, tensors) in kinds.items():
        for name, tensor in _paired(types, tensors, kind):
            tensor.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
            wanted = None if name is None else _member(trt, "DataType", _IO_TYPES.get(name, name), version)
            if wanted in (None, tensor.dtype):
                continue
            if strong:
                raise UnsupportedOptionError(
                    f"the {kind}s of a strongly typed network have the types of the model",
                    where=f"{kind} {tensor.name!r}, {version}",
                    got=name,
                    expected=tensor.dtype.name,
                    fix=f"leave the type out, or change the {kind}'s type in the model",
                )
            tensor.dtype = wanted


def _paired(types: Sequence[str | None], tensors: list[Any], kind: str) -> list[tuple[str | None, Any]]:
    if not types:
        return []
    if len(types) == 1:
        return [(types[0], tensor) for tensor in tensors]
    if len(types) != len(tensors):
        raise ConfigError(
            f"types are given for some of the {kind}s",
            got=f"{len(types)} types",
            expected=f"1 type for all, or {len(tensors)}: {', '.join(repr(tensor.name) for tensor in tensors)}",
        )
    return list(zip(types, tensors, strict=True))


def _member(trt: Any, enumeration: str, name: str, version: str) -> Any:
    members = getattr(getattr(trt, enumeration, None), "__members__", {})
    if name not in members:
        raise UnsupportedOptionError(
            f"{enumeration} has no {name} in this version",
            got=version,
            expected=", ".join(members) or f"a version with {enumeration}",
            fix="leave the option out, or install a version that has it",
        )
    return members[name]


def _set(config: Any, name: str, value: Value, version: str) -> None:
    if not hasattr(config, name):
        raise UnsupportedOptionError(
            f"IBuilderConfig has no {name} in this version",
            got=version,
            fix="leave the option out, or install a version that has it",
        )
    kind = type(getattr(config, name))
    members = getattr(kind, "__members__", None)
    if members is not None and value not in members:
        raise UnsupportedOptionError(
            f"{name} has no {value} in this version", got=version, expected=", ".join(members)
        )
    try:
        setattr(config, name, members[value] if members is not None else _plain(value))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"TensorRT refuses {name}", where=version, got=repr(value), expected=str(error)) from error


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""How Triton is to serve a model: `TritonOptions`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trtsparse.errors import ConfigError

__all__ = ["Backend", "InstanceGroup", "Kind", "TritonOptions", "VersionPolicy", "Warmup", "as_tuple", "check_type"]

Backend = Literal["auto", "tensorrt", "onnxruntime", "python"]
Kind = Literal["gpu", "cpu", "auto"]
Warmup = Literal["none", "zeros", "random"]
_INT32_MAX = 2**31 - 1


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse a value of another type.

    Raises:
        ConfigError: With what makes one of a text, where there is such a thing.
    """
    if not isinstance(value, kind):
        raise ConfigError(
            "a value is of another type",
            where=name,
            got=f"{value!r}, of type {type(value).__name__}",
            expected=kind.__name__,
            fix=f"{kind.__name__}.parse({value!r})" if isinstance(value, str) and hasattr(kind, "parse") else None,
        )


def as_tuple(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    """Several values of one type.

    Raises:
        ConfigError: One is of another type, or there is a single one.
    """
    check_type(name, values, Iterable)
    found = (values,) if isinstance(values, str) else tuple(values)
    for value in found:
        check_type(name, value, kind)
    return found


@dataclass(frozen=True)
class InstanceGroup:
    """Executions of a model that Triton runs side by side.

    Attributes:
        count: How many; on each of ``gpus``, where those are given.
        gpus: Numbers of GPUs; none: every GPU of the server.
        kind: "gpu", "cpu", "auto" (a GPU where there is one); None: what the backend needs.

    Raises:
        ConfigError: A number is out of range, or GPUs are given for the CPU.

    Example:
        >>> InstanceGroup.parse("2:0,1"), InstanceGroup.parse("4:cpu").kind
        (InstanceGroup(count=2, gpus=(0, 1), kind='gpu'), 'cpu')
    """

    count: int = 1
    gpus: tuple[int, ...] = ()
    kind: Kind | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gpus", tuple(self.gpus))
        _check_number("instances", self.count, at_least=1)
        for gpu in self.gpus:
            _check_number("gpus", gpu, at_least=0)
        if len(set(self.gpus)) != len(self.gpus):
            raise ConfigError("a GPU is listed twice", where="gpus", got=", ".join(map(str, self.gpus)))
        _check_choice("kind", self.kind, (None, *get_args(Kind)))
        if self.gpus and self.kind not in (None, "gpu"):
            raise ConfigError(
                f"instances of kind {self.kind!r} have no GPUs",
                where="gpus",
                got=", ".join(map(str, self.gpus)),
                fix="leave the GPUs out, or use kind 'gpu'",
            )

    @classmethod
    def parse(cls, text: str) -> InstanceGroup:
        """Read "2", "2:0,1" (GPUs), "2:gpu", "2:cpu" or "2:auto".

        Raises:
            ConfigError: Not of this form, or as for the class.
        """
        match = re.fullmatch(r"(\d+)(?::(?:(gpu|cpu|auto)|(\d+(?:,\d+)*)))?", text.strip())
        if match is None:
            raise ConfigError(
                "cannot read instances", where="instances", got=repr(text), expected="2, 2:0,1 or 2:cpu"
            )
        gpus = tuple(int(gpu) for gpu in match[3].split(",")) if match[3] else ()
        return cls(count=int(match[1]), gpus=gpus, kind="gpu" if gpus else match[2])  # type: ignore[arg-type]


@dataclass(frozen=True)
class VersionPolicy:
    """Which of a model's versions Triton serves.

    Attributes:
        latest: The newest so many; None where the others say it.
        specific: These; empty where the others say it. Neither: all.

    Raises:
        ConfigError: A number is out of range, or both are given.

    Example:
        >>> [str(VersionPolicy.parse(text)) for text in ("latest", "latest:2", "all", "specific:1,3")]
        ['latest:1', 'latest:2', 'all', 'specific:1,3']
    """

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.latest is not None:
            _check_number("version_policy", self.latest, at_least=1)
        for version in self.specific:
            _check_number("version_policy", version, at_least=1)
        if self.latest is not None and self.specific:
            raise ConfigError("either the latest versions or specific ones", where="version_policy", got=repr(self))

    def __str__(self) -> str:
        if self.specific:
            return f"specific:{','.join(map(str, self.specific))}"
        return "all" if self.latest is None else f"latest:{self.latest}"

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Read "latest", "latest:2", "all" or "specific:1,3".

        Raises:
            ConfigError: Not of this form.
        """
        match = re.fullmatch(r"(all)|latest(?::(\d+))?|specific:(\d+(?:,\d+)*)", text.strip())
        if match is None:
            raise ConfigError(
                "cannot read a version policy",
                where="version_policy",
                got=repr(text),
                expected="latest, latest:2, all or specific:1,3",
            )
        if match[3]:
            return cls(latest=None, specific=tuple(int(version) for version in match[3].split(",")))
        return cls(latest=None if match[1] else int(match[2] or 1))


@dataclass(frozen=True)
class TritonOptions:
    """How Triton is to serve a model. What is not given follows from the model and its optimization profiles.

    Attributes:
        backend: "tensorrt" for plans of TensorRT, "onnxruntime" for ONNX models, "python" for anything that a
            `trtsparse.Session` runs: plans of TensorRT-RTX, which has no backend of its own, too. "auto" chooses by
            the model; an ONNX model goes to "onnxruntime".
        max_batch_size: Largest batch; 0: requests have the model's own shapes, none are batched. None: the profiles'
            largest batch where the model has a batch dim, else 0.
        dynamic_batching: Put requests together; where batches are possible.
        preferred_batch_sizes: Batches to wait for. None: the profiles' usual and largest ones.
        queue_delay_us: Microseconds that a request may wait for others, for a preferred batch; by default 100.
        instances: Executions side by side; none given: one, on each GPU where it needs GPUs.
        cuda_graphs: Capture CUDA graphs of the profiles' usual and largest shapes. For backend "tensorrt".
        warmup: Execute the profiles' shapes with "zeros" or "random" values before the model is ready.
        version_policy: "latest", "latest:2", "all" or "specific:1,3", or a `VersionPolicy`.
        response_cache: Answer requests seen before from the server's cache, which has to be switched on there
            (``--cache-config local,size=...``).
        parameters: Of the backend. "python" knows "engine" and "threads", as in `trtsparse.Session`, and
            "EXECUTION_ENV_PATH".
        server: The server's release ("24.10"), its version ("2.51"), or its TensorRT ("tensorrt-10.5.0"): the plan is
            checked against it.

    Raises:
        ConfigError: A value is out of range, unknown or of another type, or two contradict each other.

    Example:
        >>> TritonOptions(version_policy="all", instances=[InstanceGroup(2)]).instances
        (InstanceGroup(count=2, gpus=(), kind=None),)
    """

    backend: Backend = "auto"
    max_batch_size: int | None = None
    dynamic_batching: bool = True
    preferred_batch_sizes: tuple[int, ...] | None = None
    queue_delay_us: int | None = None
    instances: tuple[InstanceGroup, ...] = ()
    cuda_graphs: bool = False
    warmup: Warmup = "none"
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    response_cache: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    server: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.version_policy, str):
            object.__setattr__(self, "version_policy", VersionPolicy.parse(self.version_policy))
        object.__setattr__(self, "instances", as_tuple("instances", self.instances, InstanceGroup))
        check_type("version_policy", self.version_policy, VersionPolicy)
        check_type("parameters", self.parameters, Mapping)
        if self.preferred_batch_sizes is not None:
            sizes = tuple(sorted(set(self.preferred_batch_sizes)))
            object.__setattr__(self, "preferred_batch_sizes", sizes)
            for size in sizes:
                _check_number("preferred_batch_sizes", size, at_least=1)
        if self.max_batch_size is not None:
            _check_number("max_batch_size", self.max_batch_size, at_least=0)
        self._check_waiting()
        _check_choice("backend", self.backend, get_args(Backend))
        _check_choice("warmup", self.warmup, get_args(Warmup))
        for name, value in self.parameters.items():
            if not isinstance(value, str):
                raise ConfigError("a parameter is not text", where=f"parameters, {name!r}", got=repr(value))

    def _check_waiting(self) -> None:
        """How requests wait for each other."""
        if self.queue_delay_us is not None:
            _check_number("queue_delay_us", self.queue_delay_us, at_least=0)
        for name in ("preferred_batch_sizes", "queue_delay_us"):
            if getattr(self, name) and not self.dynamic_batching:
                raise ConfigError(
                    "requests that are executed alone do not wait for others",
                    where=name,
                    got=f"{getattr(self, name)}, and dynamic_batching False",
                    fix="leave one of them out",
                )


def _check_number(name: str, value: object, *, at_least: int) -> None:
    """Triton's own fields are of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError("not a whole number", where=name, got=repr(value))
    if not at_least <= value <= _INT32_MAX:
        raise ConfigError("a number is out of range", where=name, got=value, expected=f"{at_least} to {_INT32_MAX}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ConfigError(f"{name} has no such value", where=name, got=repr(value), expected=expected)

"""The ModelConfig that serves a source as its options say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trtsparse.engines import TensorSpec, check_engine
from trtsparse.errors import ConfigError
from trtsparse.precision.specs import did_you_mean
from trtsparse.triton.batching import Batching, Sample, find_batching, samples
from trtsparse.triton.options import InstanceGroup, TritonOptions
from trtsparse.triton.protobuf import messages, triton_type
from trtsparse.triton.source import Facts, Source

__all__ = ["PYTHON_PARAMETERS", "check_session", "choose_backend", "make_config"]

PYTHON_PARAMETERS = ("engine", "threads", "EXECUTION_ENV_PATH")
"""What the Python backend's model, and the backend itself, read."""
_QUEUE_DELAY_US = 100
_PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx"}


def choose_backend(source: Source, options: TritonOptions) -> str:
    """Which of Triton's backends is to execute a source.

    Raises:
        ConfigError: The one that is asked for cannot.
    """
    if source.saved:
        if options.backend not in ("auto", "python"):
            raise ConfigError(
                "a saved engine is executed by a trtsparse session only",
                where="backend",
                got=repr(options.backend),
                expected="'python'",
            )
        return "python"
    if source.header is None:
        if options.backend == "tensorrt":
            raise ConfigError(
                "Triton's TensorRT backend executes plans",
                where="backend",
                got="an ONNX model",
                fix="build a plan of it first, or use backend 'onnxruntime'",
            )
        return "onnxruntime" if options.backend == "auto" else options.backend
    if options.backend == "onnxruntime":
        raise ConfigError(
            "ONNX Runtime cannot execute a plan",
            where="backend",
            got=f"a plan of {source.header}",
            fix="give the ONNX model that the plan was built from",
        )
    if options.backend == "auto":
        return "tensorrt" if source.header.flavour == "tensorrt" else "python"
    return options.backend


def make_config(source: Source, options: TritonOptions, *, name: str, backend: str) -> tuple[Any, Batching]:
    """The configuration.

    Args:
        source: What is served.
        options: How.
        name: The model's.
        backend: From `choose_backend`.

    Returns:
        A ModelConfig, and what was decided about batches.

    Raises:
        ConfigError: An option does not go with the source or the backend.
        MissingDependencyError: Triton's client library is not installed.
    """
    facts = source.facts
    _check_options(source, options, backend)
    batching = find_batching(facts, asked=options.max_batch_size, plan=source.header is not None)
    config = messages().ModelConfig(name=name, backend=backend, max_batch_size=batching.max_size)
    config.platform = _PLATFORMS.get(backend, "")
    for spec in facts.inputs:
        _add_tensor(config.input.add(), spec, "input", facts, batching, backend)
    for spec in facts.outputs:
        _add_tensor(config.output.add(), spec, "output", facts, batching, backend)
    _set_version_policy(config, options)
    _add_instances(config, options, source, backend)
    if batching.max_size > 1 and options.dynamic_batching:
        delay = options.queue_delay_us
        config.dynamic_batching.max_queue_delay_microseconds = _QUEUE_DELAY_US if delay is None else delay
        config.dynamic_batching.preferred_batch_size.extend(_preferred(facts, options, batching))
    elif options.preferred_batch_sizes:
        raise ConfigError(
            "there are no batches to prefer",
            where="preferred_batch_sizes",
            got=batching.note or f"max_batch_size {batching.max_size}",
            fix="leave them out",
        )
    if options.cuda_graphs:
        _add_graphs(config, samples(facts, batching))
    if options.warmup != "none":
        _add_warmup(config, samples(facts, batching), random=options.warmup == "random")
    if options.response_cache:
        config.response_cache.enable = True
    for key, value in sorted(options.parameters.items()):
        config.parameters[key].string_value = value
    return config, batching


def _check_options(source: Source, options: TritonOptions, backend: str) -> None:
    if options.cuda_graphs and backend != "tensorrt":
        raise ConfigError(
            "Triton captures CUDA graphs in its TensorRT backend only",
            where="cuda_graphs",
            got=f"backend {backend!r}",
            fix="leave it out; a session on a GPU uses graphs by itself" if backend == "python" else "leave it out",
        )
    kinds = {group.kind for group in options.instances}
    if backend == "python":
        unknown = next((key for key in options.parameters if key not in PYTHON_PARAMETERS), None)
        if unknown is not None:
            raise ConfigError(
                "no such parameter",
                where="parameters",
                got=repr(unknown),
                expected=", ".join(PYTHON_PARAMETERS),
                fix=did_you_mean(unknown, PYTHON_PARAMETERS),
            )
        for problem in check_session(source, options.parameters, on_cpu="cpu" in kinds):
            raise problem
        return
    foreign = next((key for key in options.parameters if key in PYTHON_PARAMETERS), None)
    if foreign is not None:
        raise ConfigError(
            "a parameter of the Python backend",
            where="parameters",
            got=f"{foreign!r} for backend {backend!r}",
            fix="use backend 'python'",
        )
    if backend == "tensorrt" and kinds & {"cpu", "auto"}:
        raise ConfigError(
            "a plan is executed by a GPU", where="instances", got="kind 'cpu' or 'auto'", fix="use 'gpu'"
        )


def check_session(
    source: Source, parameters: Mapping[str, str], *, on_cpu: bool, where: str = ""
) -> Iterator[ConfigError]:
    """What keeps the Python backend's model from opening its session.

    Args:
        source: What it runs.
        parameters: Of the configuration.
        on_cpu: Some instance is for the CPU.
        where: The configuration's file, for messages.
    """
    place = f"{where}, " if where else ""
    engine, threads = parameters.get("engine", "auto"), parameters.get("threads")
    if source.saved and engine not in ("auto", "cusparselt"):
        yield ConfigError(
            "a saved engine is executed by cusparselt",
            where=f"{place}parameters, 'engine'",
            got=repr(engine),
            fix="leave it out",
        )
        return
    try:
        check_engine(engine, source.header, where=f"{place}parameters, 'engine'")
    except ConfigError as error:
        yield error
        return
    what = "a plan" if source.header is not None else "the cusparselt engine"
    on_gpu = _on_gpu(source, parameters)
    if on_gpu and on_cpu:
        yield ConfigError(
            f"{what} is executed by a GPU", where=f"{place}instances", got="kind 'cpu'", fix="use 'gpu'"
        )
    if threads is None:
        return
    if on_gpu:
        yield ConfigError(
            f"{what} is executed by a GPU, without threads of the CPU",
            where=f"{place}parameters, 'threads'",
            got=repr(threads),
            fix="leave it out",
        )
    elif not (threads.isdecimal() and int(threads)):
        yield ConfigError(
            "not a number of threads",
            where=f"{place}parameters, 'threads'",
            got=repr(threads),
            expected="at least 1",
        )


def _on_gpu(source: Source, parameters: Mapping[str, str]) -> bool:
    """Whether a session needs a GPU for a source."""
    return source.header is not None or source.saved or parameters.get("engine") == "cusparselt"


def _add_tensor(entry: Any, spec: TensorSpec, role: str, facts: Facts, batching: Batching, backend: str) -> None:
    where = f"{role} {spec.name!r}"
    if spec.shape is None:
        raise ConfigError(
            "Triton needs the number of dims", where=where, fix="export the model with the shapes of its outputs"
        )
    if spec.dtype.kind == "O" and backend != "onnxruntime":
        raise ConfigError(
            "strings are served by ONNX Runtime only", where=where, fix="use backend 'onnxruntime' with the model"
        )
    if 0 in spec.shape:
        raise ConfigError("a dim is zero: there is nothing to serve", where=where, got=spec.shape)
    entry.name = spec.name
    entry.data_type = messages().DataType.Value(triton_type(spec.dtype, where))
    if role == "input" and spec.name in facts.shape_inputs and backend == "tensorrt":
        entry.is_shape_tensor = True
    dims = [_dim(spec, axis, facts, pinned=role == "input") for axis in range(len(spec.shape))]
    rest = dims[1:] if batching.max_size else dims
    entry.dims.extend(rest or [1])
    if rest:
        return
    if batching.max_size:
        entry.reshape.SetInParent()  # to no dims: what the model itself has, besides the batch
    elif backend == "tensorrt":
        raise ConfigError(
            "Triton's TensorRT backend has no scalars",
            where=where,
            fix="use backend 'python', or export the model with a dim of one",
        )


def _dim(spec: TensorSpec, axis: int, facts: Facts, *, pinned: bool) -> int:
    """A dim's size, also where the profiles admit only one; -1 where it varies."""
    dim = (spec.shape or ())[axis]
    if isinstance(dim, int):
        return dim
    ranges = [profile[spec.name] for profile in facts.profiles if spec.name in profile]
    sizes = {shape[axis] for triple in ranges for shape in (triple[0], triple[2])}
    return sizes.pop() if pinned and len(sizes) == 1 else -1


def _set_version_policy(config: Any, options: TritonOptions) -> None:
    policy = options.version_policy
    if policy.specific:
        config.version_policy.specific.versions.extend(policy.specific)
    elif policy.latest is None:
        config.version_policy.all.SetInParent()
    else:
        config.version_policy.latest.num_versions = policy.latest


def _add_instances(config: Any, options: TritonOptions, source: Source, backend: str) -> None:
    needed = "gpu" if _on_gpu(source, options.parameters) else "cpu" if backend == "python" else "auto"
    count = len(source.facts.profiles)
    for group in options.instances or (InstanceGroup(),):
        entry = config.instance_group.add(count=group.count, gpus=group.gpus)
        kind = group.kind or ("gpu" if group.gpus else needed)
        entry.kind = messages().ModelInstanceGroup.Kind.Value(f"KIND_{kind.upper()}")
        if backend == "tensorrt" and count > 1:
            entry.profile.extend(str(index) for index in range(count))


def _preferred(facts: Facts, options: TritonOptions, batching: Batching) -> Sequence[int]:
    if options.preferred_batch_sizes is not None:
        if options.preferred_batch_sizes and options.preferred_batch_sizes[-1] > batching.max_size:
            raise ConfigError(
                "a preferred batch is larger than the largest",
                where="preferred_batch_sizes",
                got=options.preferred_batch_sizes[-1],
                expected=f"at most {batching.max_size}",
            )
        return options.preferred_batch_sizes
    sizes = {triple[word][0] for profile in facts.profiles for triple in profile.values() for word in (1, 2)}
    return sorted(size for size in sizes if 1 < size <= batching.max_size)


def _add_graphs(config: Any, requests: Sequence[Sample]) -> None:
    config.optimization.cuda.graphs = True
    for sample in requests:
        spec = config.optimization.cuda.graph_spec.add(batch_size=sample.batch)
        for name, shape in sample.shapes.items():
            spec.input[name].dim.extend(shape)


def _add_warmup(config: Any, requests: Sequence[Sample], *, random: bool) -> None:
    inputs = {entry.name: entry for entry in config.input}
    for sample in requests:
        size = f"batch {sample.batch}" if sample.batch else "one request"
        shown = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sample.shapes.items())
        entry = config.model_warmup.add(name=f"{size} of {shown}", batch_size=max(sample.batch, 1))
        for name, shape in sample.shapes.items():
            entry.inputs[name].data_type = inputs[name].data_type
            entry.inputs[name].dims.extend(shape or (1,))
            setattr(entry.inputs[name], "random_data" if random else "zero_data", True)

"""``trtsparse export-triton``: a plan or an ONNX model into a Triton model repository, and checks of one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    from trtsparse.triton.options import TritonOptions

__all__ = ["configure", "run"]

_OF_CHECK = {"--check", "--name", "--server", "--json"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="PLAN_OR_ONNX", nargs="?", help="what to serve; recognised by its content")
    parser.add_argument("-r", "--repository", metavar="FOLDER", required=True, help="made if it is missing")
    parser.add_argument(
        "--check", action="store_true", help="write nothing: say what is wrong with the models in the repository"
    )
    parser.add_argument("--name", help="the model's; default: that of the file; with --check: check this one only")
    parser.add_argument("--version", type=int, metavar="N", help="default: the next one")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace config.pbtxt, and the version if it is there"
    )
    parser.add_argument(
        "--model", metavar="ONNX", help="the model of a plan: what is not in the build report, or where there is none"
    )
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:MIN:OPT:MAX,...",
        help="a profile, where no build report has it; repeat for several",
    )
    parser.add_argument(
        "--server", metavar="RELEASE", help="check the plan against this server: 24.10, 2.51 or tensorrt-10.5.0"
    )
    _configure_serving(parser)
    shared.add_json(parser)


def _configure_serving(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving")
    group.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "tensorrt", "onnxruntime", "python"),
        help="python: through a trtsparse session, for plans of TensorRT-RTX too; default: by the model",
    )
    group.add_argument(
        "--max-batch-size", type=int, metavar="N", help="0: no batches; default: the profiles' largest"
    )
    group.add_argument("--no-dynamic-batching", action="store_true", help="execute every request alone")
    group.add_argument(
        "--preferred-batch-sizes", metavar="N,...", help="default: the profiles' usual and largest batches"
    )
    group.add_argument("--queue-delay-us", type=int, metavar="US", help="how long to wait for a batch; default: 100")
    group.add_argument(
        "--instances",
        action="append",
        default=[],
        metavar="COUNT[:GPUS]",
        help="executions side by side: 2, 2:0,1 (GPUs), 2:cpu; repeatable",
    )
    group.add_argument("--cuda-graphs", action="store_true", help="capture graphs of the profiles' shapes")
    group.add_argument("--warmup", default="none", choices=("none", "zeros", "random"), help="default: none")
    group.add_argument("--version-policy", default="latest", metavar="POLICY", help="latest:2, all or specific:1,3")
    group.add_argument("--response-cache", action="store_true", help="answer known requests from the server's cache")
    group.add_argument(
        "--parameter", action="append", default=[], metavar="KEY=VALUE", help="of the backend; repeatable"
    )


def run(options: argparse.Namespace) -> int:
    """Export or check, and print what came of it."""
    if options.check:
        return _check(options)
    if options.source is None:
        raise ConfigError("nothing to export was given", fix="give a plan or an ONNX model, or --check")
    from trtsparse.builder.profile import Profile
    from trtsparse.report.progress import progress_bar
    from trtsparse.triton.export import export_triton

    with progress_bar("exporting"):
        made = export_triton(
            options.source,
            options.repository,
            name=options.name,
            model=options.model,
            profiles=[Profile.parse(text) for text in options.shapes],
            version=options.version,
            overwrite=options.overwrite,
            options=_serving(options),
        )
    if options.json:
        shared.print_json(made.to_dict())
        return 0
    batches = f"batches up to {made.max_batch_size}" if made.max_batch_size else "no batches"
    print(f"{made.name} version {made.version} in {made.folder}: backend {made.backend}, {batches}")
    for note in made.notes:
        print(f"note: {note}")
    return 0


def _check(options: argparse.Namespace) -> int:
    """Exit code 1 if anything is wrong."""
    from trtsparse.triton.checks import check_repository

    if options.source is not None:
        raise ConfigError("--check looks at what is in the repository", got=options.source, fix="leave it out")
    unread = _given(options) - _OF_CHECK
    if unread:
        raise ConfigError("--check exports nothing", got=", ".join(sorted(unread)), fix="leave it out")
    found = check_repository(options.repository, name=options.name, server=options.server)
    if options.json:
        texts = {name: [str(problem) for problem in problems] for name, problems in found.items()}
        shared.print_json({"schema": "trtsparse.triton-check/1", "repository": options.repository, "models": texts})
        return int(any(texts.values()))
    for name, problems in found.items():
        print(f"{name}: {'nothing wrong' if not problems else f'{len(problems)} wrong'}")
        for problem in problems:
            print("  " + str(problem).replace("\n", "\n  "))
    return int(any(found.values()))


def _given(options: argparse.Namespace) -> set[str]:
    """The options that are not as by default."""
    parser = argparse.ArgumentParser()
    configure(parser)
    defaults = vars(parser.parse_args([f"--repository={options.repository}"]))
    return {f"--{name.replace('_', '-')}" for name, value in defaults.items() if getattr(options, name) != value}


def _serving(options: argparse.Namespace) -> TritonOptions:
    from trtsparse.triton.options import InstanceGroup, TritonOptions, VersionPolicy

    return TritonOptions(
        backend=options.backend,
        max_batch_size=options.max_batch_size,
        dynamic_batching=not options.no_dynamic_batching,
        preferred_batch_sizes=_sizes(options.preferred_batch_sizes),
        queue_delay_us=options.queue_delay_us,
        instances=tuple(InstanceGroup.parse(text) for text in options.instances),
        cuda_graphs=options.cuda_graphs,
        warmup=options.warmup,
        version_policy=VersionPolicy.parse(options.version_policy),
        response_cache=options.response_cache,
        parameters=dict(_parameter(text) for text in options.parameter),
        server=options.server,
    )


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(
            "cannot read batch sizes", where="--preferred-batch-sizes", got=text, expected="such as 4,16"
        )
    return tuple(int(part) for part in parts)


def _parameter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError("cannot read a parameter", where="--parameter", got=text, expected="key=value")
    return key, value

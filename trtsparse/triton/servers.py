"""Which TensorRT a Triton server loads plans with.

The table is that of https://docs.nvidia.com/deeplearning/frameworks/support-matrix, compared with the versions in
Triton's own build files where those name one; for 24.04, 24.06, 24.10, 25.01, 25.04, 25.05, 25.07, 25.09 and 25.11
there was no second source. A version of three numbers fits every build of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtsparse.builder.plan import FLAVOUR_NAMES, PlanHeader, version_name
from trtsparse.errors import ConfigError, PlanError

__all__ = ["RELEASES", "Release", "check_plan", "find_server"]


@dataclass(frozen=True)
class Release:
    """A server, as far as plans are concerned.

    Attributes:
        name: Of the container, such as "24.10"; empty where only TensorRT is known.
        triton: The server's own version, such as "2.51".
        tensorrt: Three or four numbers.
    """

    name: str
    triton: str
    tensorrt: tuple[int, ...]

    def __str__(self) -> str:
        library = version_name("tensorrt", self.tensorrt)
        return f"{library}, which is in Triton {self.name} ({self.triton})" if self.name else library


_TABLE = """
23.05 2.34 8.6.1.2
23.06 2.35 8.6.1.6
23.07 2.36 8.6.1.6
23.08 2.37 8.6.1.6
23.09 2.38 8.6.1.6
23.10 2.39 8.6.1.6
23.11 2.40 8.6.1.6
23.12 2.41 8.6.1.6
24.01 2.42 8.6.1.6
24.02 2.43 8.6.3
24.03 2.44 8.6.3
24.04 2.45 8.6.3
24.05 2.46 10.0.1.6
24.06 2.47 10.1.0
24.07 2.48 10.2.0.19
24.08 2.49 10.3.0.26
24.09 2.50 10.4.0.26
24.10 2.51 10.5.0
24.11 2.52 10.6.0.26
24.12 2.53 10.7.0.23
25.01 2.54 10.8.0
25.02 2.55 10.8.0.43
25.03 2.56 10.9.0.34
25.04 2.57 10.9.0
25.05 2.58 10.10.0
25.06 2.59 10.11.0.33
25.07 2.59.1 10.11.0
25.08 2.60 10.13.2.6
25.09 2.61 10.13.3
25.10 2.62 10.13.3.9
25.11 2.63 10.14.1
25.12 2.64 10.14.1.48
26.02 2.66 10.15.1
"""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


RELEASES = tuple(
    Release(name, triton, _numbers(tensorrt))
    for name, triton, tensorrt in map(str.split, _TABLE.strip().splitlines())
)
"""From the oldest to the newest."""


def find_server(text: str) -> Release:
    """Read what a user calls the server.

    Args:
        text: "24.10", "2.51", "2.51.0", "tensorrt-10.5.0", or an image such as
            "nvcr.io/nvidia/tritonserver:24.10-py3".

    Raises:
        ConfigError: Not of this form, or a release that is not in `RELEASES`.

    Example:
        >>> print(find_server("nvcr.io/nvidia/tritonserver:24.12-py3"))
        TensorRT 10.7.0.23, which is in Triton 24.12 (2.53)
    """
    given = re.fullmatch(r"tensorrt[-_ ](\d+\.\d+\.\d+(?:\.\d+)?)", text.strip().lower())
    if given:
        return Release("", "", _numbers(given[1]))
    match = re.fullmatch(r"(?:.*tritonserver:)?[rv]?(\d+\.\d+)(?:\.0)?(\.\d+)?(?:-.*)?", text.strip())
    wanted = f"{match[1]}{match[2] or ''}" if match else ""
    for release in RELEASES:
        if wanted in (release.name, release.triton):
            return release
    raise ConfigError(
        "not a server whose TensorRT is known",
        where="server",
        got=repr(text),
        expected=f"a release from {RELEASES[0].name} to {RELEASES[-1].name} or its version, such as 24.10 or 2.51",
        fix="name its TensorRT, as tensorrt-10.5.0; the server prints it when it loads its TensorRT backend",
    )


def check_plan(header: PlanHeader, server: Release | None, *, where: object, compatible: bool = False) -> None:
    """Refuse a plan that Triton's TensorRT backend would not load.

    Args:
        header: The plan's.
        server: Where it is to run; None: any.
        where: The plan.
        compatible: It was built version-compatible.

    Raises:
        PlanError: Of another flavour, or another version than the server's TensorRT.
    """
    if header.flavour != "tensorrt":
        raise PlanError(
            f"Triton's TensorRT backend loads no plans of {FLAVOUR_NAMES[header.flavour]}",
            where=where,
            got=f"a plan of {header}",
            expected="a plan of TensorRT",
            fix="export with backend 'python', which serves it through a trtsparse session",
        )
    if server is None or header.version[: len(server.tensorrt)] == server.tensorrt:
        return
    forward = header.version[0] == server.tensorrt[0] and header.version[: len(server.tensorrt)] <= server.tensorrt
    if compatible and forward:
        return
    fitting = [r.name for r in RELEASES if r.tensorrt == header.version[: len(r.tensorrt)]]
    serve = f", or serve with Triton {' or '.join(fitting)}" if fitting else ""
    raise PlanError(
        "the plan was built by another TensorRT than the server has",
        where=where,
        got=f"a plan of {header}",
        expected=f"{server}",
        fix=f"build it with TensorRT {'.'.join(map(str, server.tensorrt))}{serve}",
    )

"""Whose measuring rules apply: trtexec 8 and 10 measure other things by default than trtexec 11 does.

Up to 10.16 trtexec launches kernels one by one, copies inputs and outputs for every query and sleeps while it waits.
From 11.0 it replays a CUDA graph, copies nothing and spins (https://github.com/NVIDIA/TensorRT,
samples/common/sampleOptions.h). Figures of the two cannot be compared, so a run says which rules it followed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["LIKES", "Like", "Policy", "like_of"]

Like = Literal[8, 10, 11]
LIKES: tuple[Like, ...] = get_args(Like)

_WORDS = {
    "graphs": "CUDA graph",
    "transfers": "data transfers",
    "spin_wait": "spin wait",
    "separate_profile_run": "separate profile run",
}


@dataclass(frozen=True)
class Policy:
    """What a measurement includes, and why.

    Attributes:
        like: The trtexec whose defaults apply.
        graphs: Launch by replaying a CUDA graph.
        transfers: Copy inputs to and outputs from the GPU for every query.
        spin_wait: Wait for the GPU actively, not asleep.
        separate_profile_run: Profile layers in a second run, so that the first one's times stay comparable.
        reason: Why these defaults: "the installed TensorRT 10.13.3", "--like=8".
        changed: (field, flag) for each value that a flag set, such as ("graphs", "--useCudaGraph").

    Example:
        >>> print(Policy.of(11, reason="--like=11").change("graphs", to=False, flag="--noCudaGraph"))
        Measured like trtexec 11 (--like=11): CUDA graph off (--noCudaGraph), data transfers off, spin wait on, \
separate profile run on
    """

    like: Like
    graphs: bool
    transfers: bool
    spin_wait: bool
    separate_profile_run: bool
    reason: str
    changed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, like: Like, *, reason: str) -> Policy:
        """The defaults of one trtexec."""
        modern = like == 11
        return cls(
            like=like,
            graphs=modern,
            transfers=not modern,
            spin_wait=modern,
            separate_profile_run=modern,
            reason=reason,
        )

    def change(self, name: str, *, to: bool, flag: str) -> Policy:
        """One value as a flag sets it.

        Args:
            name: The field.
            to: Its value.
            flag: The flag, to be named beside it.
        """
        changes: dict[str, bool] = {name: to}
        return dataclasses.replace(self, **changes, changed=(*self.changed, (name, flag)))  # type: ignore[arg-type]

    def __str__(self) -> str:
        flags = dict(self.changed)
        parts = [
            f"{words} {'on' if getattr(self, name) else 'off'}" + (f" ({flags[name]})" if name in flags else "")
            for name, words in _WORDS.items()
        ]
        return f"Measured like trtexec {self.like} ({self.reason}): {', '.join(parts)}"


def like_of(flavour: str | None, version: str | None) -> tuple[Like, str]:
    """The trtexec that a library stands for, and the reason in words.

    TensorRT 9 was the preview of 10. TensorRT-RTX is of TensorRT 11's family, whatever its own number: strongly typed
    networks only, no precision flags. Without any library the newest is assumed.

    Args:
        flavour: "tensorrt", "tensorrt_rtx" or None.
        version: As the module states it.

    Example:
        >>> like_of("tensorrt", "10.13.3.9"), like_of("tensorrt_rtx", "1.7.1.116")
        ((10, 'TensorRT 10.13.3.9 is installed'), (11, 'TensorRT-RTX 1.7.1.116 is installed'))
    """
    if flavour is None or version is None:
        return 11, "no TensorRT is installed"
    if flavour == "tensorrt_rtx":
        return 11, f"TensorRT-RTX {version} is installed"
    major = int(version.partition(".")[0])
    like: Like = 8 if major <= 8 else 10 if major <= 10 else 11
    return like, f"TensorRT {version} is installed"

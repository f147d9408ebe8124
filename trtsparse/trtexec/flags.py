"""Every flag that any trtexec ever had, as one table: what it takes, which versions know it, what becomes of it here.

The rows are in `trtsparse.trtexec.flags_build` and `trtsparse.trtexec.flags_run`. Names, versions and the warnings
are those of trtexec's own parser (https://github.com/NVIDIA/TensorRT, samples/common/sampleOptions.cpp, release 5.1
to 11.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trtsparse.trtexec.policy import LIKES, Like

__all__ = ["DONE", "GROUPS", "Flag", "Group", "Kind", "Status", "Treatment", "Version", "done", "noop", "refused"]

Version = tuple[int, int]
Status = Literal["done", "no-op", "refused"]
Group = Literal["Model", "Build", "Inference", "Tuning", "Reporting", "System", "Help", "trtsparse"]
GROUPS: tuple[Group, ...] = ("Model", "Build", "Inference", "Tuning", "Reporting", "System", "Help", "trtsparse")
Kind = Literal[
    "switch", "text", "file", "integer", "number", "choice", "shapes", "files", "pools", "signed", "formats", "types",
    "controls", "percentiles", "budget",
]  # fmt: skip
_NEWEST: dict[Like, Version] = {8: (8, 6), 10: (10, 16), 11: (11, 1)}
_OLDEST: dict[Like, Version] = {8: (8, 6), 10: (10, 0), 11: (11, 0)}


@dataclass(frozen=True)
class Treatment:
    """What becomes of a flag.

    Attributes:
        status: "done"; "no-op", accepted without effect; or "refused".
        text: For "done" a warning that trtexec prints beside it, for "no-op" trtexec's warning or the reason, for
            "refused" the reason. Empty where there is nothing to say.
        fix: For "refused": what to write instead.
    """

    status: Status
    text: str = ""
    fix: str | None = None


DONE = Treatment("done")


def done(warning: str) -> Treatment:
    """Done, with the warning that trtexec prints."""
    return Treatment("done", warning)


def noop(text: str) -> Treatment:
    """Accepted without effect."""
    return Treatment("no-op", text)


def refused(reason: str, fix: str | None = None) -> Treatment:
    """Refused."""
    return Treatment("refused", reason, fix)


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: As written, with its dashes.
        group: Heading in the help.
        help: One line.
        value: What the help shows behind "="; empty for a switch.
        kind: How the value is read.
        choices: For "choice" and "signed": what there is.
        low: For numbers: the smallest.
        high: For numbers: the largest.
        aliases: Other spellings.
        repeatable: May come several times.
        since: First release of trtexec that has it.
        until: Last release that has it; None: still there.
        here: What becomes of it.
        on: The same where a version of trtexec treats it otherwise.
        instead: What is said to users of a trtexec that does not have it.
        hint: What is said to users who gave a wrong value.

    Example:
        >>> Flag("--fp16", "Build", "FP16 kernels.", since=(5, 1), until=(10, 16)).known_to(11)
        False
    """

    name: str
    group: Group
    help: str
    value: str = ""
    kind: Kind = "switch"
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    aliases: tuple[str, ...] = ()
    repeatable: bool = False
    since: Version = (8, 6)
    until: Version | None = None
    here: Treatment = DONE
    on: Mapping[Like, Treatment] = field(default_factory=dict)
    instead: str = "done all the same"
    hint: str | None = None

    @property
    def is_ours(self) -> bool:
        """No trtexec has it."""
        return self.group == "trtsparse"

    @property
    def names(self) -> tuple[str, ...]:
        """All spellings."""
        return (self.name, *self.aliases)

    @property
    def usage(self) -> str:
        """Such as "--shapes=spec"."""
        return f"{self.name}={self.value}" if self.value else self.name

    @property
    def span(self) -> str:
        """The releases that have it, in words: "from 9.1 to 10.16"."""
        first, last = (version and ".".join(map(str, version)) for version in (self.since, self.until))
        if last is None:
            return f"from {first} on"
        return f"in {first}" if first == last else f"from {first} to {last}"

    def known_to(self, like: Like) -> bool:
        """Some release of that trtexec has it; ours are known to all."""
        if self.is_ours:
            return True
        return self.since <= _NEWEST[like] and (self.until is None or self.until >= _OLDEST[like])

    def treatment(self, like: Like) -> Treatment:
        """What becomes of it on a command line for that trtexec."""
        if like in self.on:
            return self.on[like]
        if self.known_to(like) or self.here.status == "refused":
            return self.here
        absent = f"trtexec {like} has no {self.name}, which exists {self.span}"
        return Treatment(self.here.status, f"{absent}: {self.instead}")

    def likes(self) -> Iterable[Like]:
        """The versions of trtexec that know it."""
        return (like for like in LIKES if self.known_to(like))

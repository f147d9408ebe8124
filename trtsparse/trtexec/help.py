"""The text of ``trtsparse trtexec --help``: every flag, and what becomes of it here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from trtsparse.trtexec.arguments import FLAGS
from trtsparse.trtexec.flags import GROUPS, Flag
from trtsparse.trtexec.flags_cusparselt import DEFAULTS, for_cusparselt
from trtsparse.trtexec.options import EngineName
from trtsparse.trtexec.policy import Policy

__all__ = ["help_text"]

_WIDTH = 110
_COLUMN = 36


def help_text(policy: Policy, *, engine: EngineName = "auto") -> str:
    """All flags by section, those that are refused last with their reasons.

    Args:
        policy: Says which trtexec is followed; flags that it does not have are marked.
        engine: What is to execute; it decides which flags are no-ops and which are refused.

    Example:
        >>> print(help_text(Policy.of(11, reason="--like=11")).splitlines()[1])
        Measured like trtexec 11 (--like=11): CUDA graph on, data transfers off, spin wait on, separate profile run on
    """
    own = engine == "cusparselt"
    flags = [for_cusparselt(flag) for flag in FLAGS] if own else FLAGS
    lines = [
        "trtsparse trtexec takes the command line of NVIDIA's trtexec of any version; values are joined by '='.",
        str(policy),
        *(textwrap.wrap(DEFAULTS, _WIDTH) if own else ()),
    ]
    for group in GROUPS:
        rows = [flag for flag in flags if flag.group == group and flag.here.status != "refused"]
        if not rows:
            continue
        lines += ["", f"=== {group} Options ===" if group not in ("Help", "trtsparse") else f"=== {group} ==="]
        for flag in rows:
            lines += _row(flag, policy)
    return "\n".join([*lines, "", "=== Refused ===", *_refused(flags), ""])


def _row(flag: Flag, policy: Policy) -> Iterator[str]:
    marks = [] if flag.known_to(policy.like) else [f"not in trtexec {policy.like}"]
    marks += ["no-op"] if flag.treatment(policy.like).status == "no-op" else []
    choices = f" One of {', '.join(flag.choices)}." if flag.kind == "choice" and "|" not in flag.value else ""
    mark = f" ({', '.join(marks)})" if marks else ""
    yield from _columns(", ".join((flag.usage, *flag.aliases)), flag.help + choices + mark)


def _refused(flags: Sequence[Flag]) -> Iterator[str]:
    """Flags that are refused for the same reason, together."""
    reasons: dict[str, list[str]] = {}
    for flag in flags:
        if flag.here.status == "refused":
            fix = f" To fix: {flag.here.fix}." if flag.here.fix else ""
            reasons.setdefault(f"{flag.here.text}.{fix}", []).append(flag.name)
    for reason, names in reasons.items():
        yield from textwrap.wrap(" ".join(names), _WIDTH, initial_indent="  ", subsequent_indent="  ")
        yield from textwrap.wrap(reason, _WIDTH, initial_indent="      ", subsequent_indent="      ")


def _columns(usage: str, text: str) -> Iterator[str]:
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH - _COLUMN)
    if len(usage) + 4 > _COLUMN:
        yield f"  {usage}"
    else:
        yield f"{f'  {usage}':{_COLUMN}}{lines.pop(0)}"
    yield from (indent + line for line in lines)

"""Takes a command line apart: which flags it has, which of them are unknown or refused, what their values are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trtsparse.errors import ConfigError
from trtsparse.trtexec.flags import Flag
from trtsparse.trtexec.flags_build import BUILD_FLAGS
from trtsparse.trtexec.flags_cusparselt import for_cusparselt
from trtsparse.trtexec.flags_run import RUN_FLAGS
from trtsparse.trtexec.options import EngineName, Note, Severity
from trtsparse.trtexec.policy import Like
from trtsparse.trtexec.values import read

__all__ = ["BY_NAME", "FLAGS", "Argument", "Arguments", "split"]

FLAGS: tuple[Flag, ...] = (*BUILD_FLAGS, *RUN_FLAGS)
BY_NAME: dict[str, Flag] = {name: flag for flag in FLAGS for name in flag.names}


@dataclass(frozen=True)
class Argument:
    """One word of the command line.

    Attributes:
        flag: Its row in the table, as it is for the engine.
        text: What stands behind "="; None without "=".
        position: Among the words.
    """

    flag: Flag
    text: str | None
    position: int


def split(argv: Sequence[str], *, engine: EngineName = "auto") -> tuple[Argument, ...]:
    """Find each word's flag.

    Args:
        argv: The command line.
        engine: What is to execute; it decides which flags are refused.

    Raises:
        ConfigError: A word is no flag, a flag is refused, or comes twice with different values.
    """
    arguments, unknown = [], []
    for position, word in enumerate(argv):
        name, equals, text = word.partition("=")
        if name in BY_NAME:
            flag = for_cusparselt(BY_NAME[name]) if engine == "cusparselt" else BY_NAME[name]
            arguments.append(Argument(flag, text if equals else None, position))
        else:
            unknown.append(word)
            _check_joined(arguments, word, position)
    if unknown:
        raise _unknown(unknown)
    _check_refused([argument.flag for argument in arguments])
    _check_once(arguments)
    return tuple(arguments)


class Arguments:
    """The flags of one command line, with their values, and the notes that come up while they are read.

    Args:
        arguments: From `split`.
        like: The trtexec that is followed.
        installed: The trtexec of the library that will build, whatever is followed.
        engine: What is to execute.

    Raises:
        ConfigError: A value cannot be read.
    """

    def __init__(
        self, arguments: Sequence[Argument], like: Like, *, installed: Like, engine: EngineName = "auto"
    ) -> None:
        self.like = like
        self.installed = installed
        self.engine = engine
        self.notes: list[Note] = []
        self._items = [(argument, read(argument.flag, argument.text)) for argument in arguments]
        for flag in {argument.flag.name: argument.flag for argument in arguments}.values():
            self._say(flag)

    def has(self, *names: str) -> bool:
        """One of these flags is there."""
        return any(argument.flag.name in names for argument, _ in self._items)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag that comes once, of the type that its kind in the table says."""
        return next((value for argument, value in self._items if argument.flag.name == name), default)

    def all(self, *names: str) -> list[Any]:
        """The values of flags that may come several times: all of the first name, then all of the next."""
        return [value for name in names for argument, value in self._items if argument.flag.name == name]

    def only(self, *names: str) -> Iterator[tuple[str, Any, int]]:
        """(name, value, position) of these flags, as they stand."""
        for argument, value in self._items:
            if argument.flag.name in names:
                yield argument.flag.name, value, argument.position

    def warn(self, text: str) -> None:
        """Note a warning."""
        self._note("W", text)

    def inform(self, text: str) -> None:
        """Note something worth knowing."""
        self._note("I", text)

    def _say(self, flag: Flag) -> None:
        treatment = flag.treatment(self.like)
        if treatment.text:
            self._note("W" if flag.known_to(self.like) else "I", treatment.text)

    def _note(self, severity: Severity, text: str) -> None:
        self.notes.extend(Note(severity, line) for line in text.splitlines())


def _check_joined(arguments: Sequence[Argument], word: str, position: int) -> None:
    """A value behind a space, as most programs take it, is worth a better message than "unknown"."""
    last = arguments[-1] if arguments else None
    wants_value = last is not None and last.position == position - 1 and last.flag.value and not last.text
    if last is not None and wants_value and not word.startswith("-"):
        raise ConfigError(
            f"{last.flag.name} needs a value",
            got=f"{last.flag.name} {word}",
            expected=last.flag.usage,
            fix=f"join them: {last.flag.name}={word}",
        )


def _unknown(words: Sequence[str]) -> ConfigError:
    lines, guesses = [], []
    spellings = {name.lower().lstrip("-"): name for name in BY_NAME}
    for word in words:
        name, _, text = word.partition("=")
        lines.append(f"Unknown option: {name} {text}".rstrip())
        close = difflib.get_close_matches(name.lower().lstrip("-"), spellings, n=1, cutoff=0.7)
        guesses += [f"did you mean {spellings[close[0]]}?"] if close else []
    return ConfigError("\n".join(lines), fix=" ".join(guesses) or "trtsparse trtexec --help lists all flags")


def _check_refused(flags: Sequence[Flag]) -> None:
    found = {flag.name: flag.here for flag in flags if flag.here.status == "refused"}
    if found:
        lines = [f"{name} is refused: {here.text}" for name, here in found.items()]
        fixes = dict.fromkeys(here.fix for here in found.values() if here.fix)
        raise ConfigError("\n".join(lines), fix="; ".join(fixes) or None)


def _check_once(arguments: Sequence[Argument]) -> None:
    seen: dict[str, Argument] = {}
    for argument in arguments:
        first = seen.setdefault(argument.flag.name, argument)
        if not argument.flag.repeatable and argument.text != first.text:
            raise ConfigError(
                f"{argument.flag.name} comes twice", got=f"{first.text!r} and {argument.text!r}", expected="one value"
            )

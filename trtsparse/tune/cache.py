"""Results of tuning in the user's cache folder, one JSON file for all devices, shared by processes.

A result belongs to everything that times and kernels depend on: GPU, compute capability, driver and library versions.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtsparse.errors import OutputError, TrtSparseError
from trtsparse.files import atomic
from trtsparse.files.locks import locked
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.lessons import Lessons
from trtsparse.tune.result import GemmResult

__all__ = ["SCHEMA", "Cache", "CacheWarning", "Known", "default_path"]

SCHEMA = "trtsparse.tune-cache/2"


class CacheWarning(UserWarning):
    """The cache cannot be used as it is; tuning goes on without it."""


@dataclass
class Known:
    """What is known of one device.

    Attributes:
        results: By product.
        lessons: By types of values.
    """

    results: dict[Gemm, GemmResult] = field(default_factory=dict)
    lessons: dict[str, Lessons] = field(default_factory=dict)


def default_path() -> Path:
    """``trtsparse/tune.json`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "trtsparse" / "tune.json"


class Cache:
    """The file; safe to share between threads and processes.

    Args:
        path: Default: `default_path`. It and its folder need not exist.

    Example:
        >>> import tempfile
        >>> cache = Cache(Path(tempfile.mkdtemp()) / "tune.json")
        >>> cache.add({"gpu": "H100"}, [GemmResult(Gemm(8, 8, 8), tried=3)])
        >>> cache.load({"gpu": "H100"}).results[Gemm(8, 8, 8)].tried, cache.load({"gpu": "A100"}).results
        (3, {})
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = default_path() if path is None else Path(path)

    def load(self, facts: Mapping[str, str]) -> Known:
        """What is known of a device; a damaged file counts as empty, with a `CacheWarning`.

        Args:
            facts: Names and versions, as `trtsparse.tune.measure.Tuner.facts` tells them.
        """
        return _read(self.path).get(_key(facts), Known())

    def add(
        self,
        facts: Mapping[str, str],
        results: Iterable[GemmResult],
        lessons: Mapping[str, Lessons] | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """Write results into the file, beside what other processes have written meanwhile.

        Args:
            facts: As for `load`.
            results: Each takes the place of an older one of the same product.
            lessons: Added to those that are there.
            fresh: They take the place of those that are there.

        Raises:
            OutputError: The file cannot be written.
        """
        self._make_folder()
        with locked(self.path, "the cache"):
            devices = _read(self.path)
            known = devices.setdefault(_key(facts), Known())
            known.results |= {result.gemm: result for result in results}
            for types, learned in (lessons or {}).items():
                before = Lessons() if fresh else known.lessons.get(types, Lessons())
                before.merge(learned)
                known.lessons[types] = before
            atomic.write(self.path, _document(devices))

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError("cannot make the cache folder", where=self.path.parent, got=error.strerror) from error


_Devices = dict[tuple[tuple[str, str], ...], Known]


def _key(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(name), str(value)) for name, value in facts.items()))


def _read(path: Path) -> _Devices:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        warnings.warn(f"the cache {path} cannot be read: {error.strerror}", CacheWarning, stacklevel=3)
        return {}
    try:
        document = json.loads(text)
        if document["schema"] == SCHEMA:
            return {_key(device["facts"]): _known(device) for device in document["devices"]}
        what = f"its schema is {document['schema']!r}"
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, TrtSparseError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
    told = f"the cache {path} is damaged or of another version ({what}): it is ignored and written anew"
    warnings.warn(told, CacheWarning, stacklevel=3)
    return {}


def _known(device: Mapping[str, Any]) -> Known:
    results = [GemmResult.from_dict(fields) for fields in device["results"]]
    lessons = {str(types): Lessons.from_dict(fields) for types, fields in device["lessons"].items()}
    return Known({result.gemm: result for result in results}, lessons)


def _document(devices: _Devices) -> str:
    """The file's text, one product a line."""
    parts = []
    for key, known in devices.items():
        lessons = {types: learned.to_dict() for types, learned in sorted(known.lessons.items())}
        head = json.dumps({"facts": dict(key), "lessons": lessons})[:-1]
        lines = ",\n".join(json.dumps(known.results[gemm].to_dict()) for gemm in sorted(known.results))
        parts.append(f'{head}, "results": [\n{lines}]}}')
    return f'{{"schema": "{SCHEMA}", "devices": [\n' + ",\n".join(parts) + "]}\n"

"""Trained networks that come inside installed packages, and real input for them.

Nothing of those packages is imported: their files are found and read.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from trtsparse.errors import ConfigError, MissingDependencyError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "magika_features",
    "magika_labels",
    "magika_model",
    "ppocr_det_model",
    "ppocr_input",
    "ppocr_read",
    "ppocr_rec_model",
    "ppocr_text",
]

_CLEAR_LETTERS = "ABCDEFGHKMNPRTUVXY346789"  # none that looks like another
_SIZES = {"det": (192, 320), "rec": (48, 320)}


def magika_model() -> Path:
    """Return the path of Magika's newest standard model: file type from a file's first and last bytes.

    Raises:
        MissingDependencyError: The package magika is not installed, or holds no such model.
    """
    found = list(_package_folder("magika").glob("models/standard_v*/model.onnx"))
    return _one("magika", max(found, key=lambda path: _numbers(path.parent.name), default=None))


def ppocr_det_model() -> Path:
    """Return the path of PP-OCRv6's detector: where an image (N, 3, H, W) shows text.

    Raises:
        MissingDependencyError: The package rapidocr is not installed, or holds no such model.
    """
    return _one("rapidocr", next(_package_folder("rapidocr").glob("models/PP-OCRv6_det_*.onnx"), None))


def ppocr_rec_model() -> Path:
    """Return the path of PP-OCRv6's recogniser: what an image (N, 3, 48, W) of a line of text says.

    Raises:
        MissingDependencyError: The package rapidocr is not installed, or holds no such model.
    """
    return _one("rapidocr", next(_package_folder("rapidocr").glob("models/PP-OCRv6_rec_*.onnx"), None))


def magika_labels() -> tuple[str, ...]:
    """Return Magika's labels in the order of its model's outputs.

    Raises:
        MissingDependencyError: The package magika is not installed.
    """
    return tuple(_magika_config()["target_labels_space"])


def magika_features(paths: Iterable[str | os.PathLike[str]]) -> NDArray[np.int32]:
    """Compute Magika's input from files, exactly as Magika does.

    From the first and last ``block_size`` bytes white space is stripped; the first and last 1024 of what is left
    are the features, padded towards the middle with token 256.

    Args:
        paths: N files; Magika itself asks its model only about files with at least 8 bytes after stripping.

    Returns:
        Byte values and padding, (N, 2048) int32.

    Raises:
        MissingDependencyError: The package magika is not installed.
        OSError: A file cannot be read.
    """
    config = _magika_config()
    first, last, block = config["beg_size"], config["end_size"], config["block_size"]
    files = [Path(path) for path in paths]
    features = np.full((len(files), first + last), config["padding_token"], np.int32)
    for row, path in zip(features, files, strict=True):
        with path.open("rb") as file:
            head = file.read(block).lstrip()[:first]
            file.seek(max(0, path.stat().st_size - block))
            tail = file.read(block).rstrip()[-last:]
        row[: len(head)] = np.frombuffer(head, np.uint8)
        row[len(row) - len(tail) :] = np.frombuffer(tail, np.uint8)
    return features


def ppocr_text(seed: int) -> str:
    """Return two words of random letters and digits: the line that ``ppocr_input`` renders for this seed.

    Example:
        >>> ppocr_text(0) == ppocr_text(0) != ppocr_text(1)
        True
    """
    letters = np.random.default_rng(seed).choice(list(_CLEAR_LETTERS), 10)
    return f"{''.join(letters[:6])} {''.join(letters[6:])}"


def ppocr_input(
    kind: Literal["det", "rec"], *, seed: int = 0, text: str | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Render a line of dark text on a bright, noisy ground, as the PP-OCR models take it.

    Args:
        kind: "det" puts the line, 32 pixels high, into the middle of the image; "rec" starts it at the left.
        seed: Chooses the text, both grey values and the noise.
        text: The text, by default ``ppocr_text(seed)``.
        size: Height and width in pixels, by default (192, 320) or (48, 320); for "det" multiples of 32.

    Returns:
        The image (1, 3, H, W), from -1 to 1.

    Raises:
        ConfigError: The kind is unknown.
        MissingDependencyError: Pillow is not installed.
    """
    if kind not in _SIZES:
        raise ConfigError("no such kind of PP-OCR model", got=repr(kind), expected="det, rec")
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingDependencyError("rendering text needs Pillow", extra="models") from error
    height, width = size or _SIZES[kind]
    random = np.random.default_rng([seed, 1])
    image = Image.new("L", (width, height), int(random.integers(190, 256)))
    font = ImageFont.load_default(32)
    place, anchor = ((8, height // 2), "lm") if kind == "rec" else ((width // 2, height // 2), "mm")
    ink = int(random.integers(0, 70))
    ImageDraw.Draw(image).text(place, text or ppocr_text(seed), fill=ink, font=font, anchor=anchor)
    pixels = np.asarray(image, np.float32) + random.normal(0, 4, (height, width)).astype(np.float32)
    grey = np.clip(pixels, 0, 255) / 127.5 - 1
    return np.ascontiguousarray(np.broadcast_to(grey, (1, 3, height, width)))


def ppocr_read(scores: NDArray[np.floating[Any]]) -> tuple[str, ...]:
    """Turn the recogniser's output into text: the best class per step, repeats merged, blanks dropped (CTC).

    Args:
        scores: The output (N, steps, classes).

    Returns:
        N texts.

    Raises:
        MissingDependencyError: The package rapidocr is not installed.
        ModelError: The classes are not those of the recogniser.
    """
    alphabet = _ppocr_alphabet()
    if scores.shape[-1] != len(alphabet):
        raise ModelError("not the recogniser's output", got=scores.shape, expected=f"(N, steps, {len(alphabet)})")
    best = scores.argmax(-1)
    starts = np.diff(best, axis=1, prepend=0) != 0  # class 0 is the blank
    return tuple("".join(alphabet[i] for i in row[new]) for row, new in zip(best, starts, strict=True))


@functools.cache
def _ppocr_alphabet() -> tuple[str, ...]:
    """Return what each of the recogniser's classes stands for: blank, the characters in its metadata, space."""
    model = onnx.load(ppocr_rec_model())
    (characters,) = (entry.value for entry in model.metadata_props if entry.key == "character")
    return ("", *characters.split("\n"), " ")


def _magika_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(magika_model().with_name("config.min.json").read_text(encoding="utf-8"))
    return config


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"the package {package} is not installed", extra="models")
    return Path(spec.origin).parent


def _one(package: str, path: Path | None) -> Path:
    if path is None:
        raise MissingDependencyError(f"the installed {package} does not hold the model", extra="models")
    return path


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))

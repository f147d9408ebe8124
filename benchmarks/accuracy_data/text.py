"""Lines and pages of text that are rendered here, so that the truth is known; calibration and test share nothing.

The two sets differ in fonts, texts and random numbers. Text comes from the help topics that every CPython brings, and
from made-up codes, dates and prices; fonts from small packages (extra ``bench``).
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["FONTS", "Line", "batches", "font", "lines", "made_up", "words"]

HEIGHT = 48  # of the recogniser's input
FONTS = {
    "calibration": (
        "font_source_sans_pro/SourceSansPro-Regular.ttf",
        "font_source_sans_pro/SourceSansPro-Semibold.ttf",
        "font_source_sans_pro/SourceSansPro-It.ttf",
        "font_hanken_grotesk/HankenGrotesk-Regular.otf",
        "font_hanken_grotesk/HankenGrotesk-Bold.otf",
        "font_caladea/Caladea-Regular.ttf",
        "font_caladea/Caladea-BoldItalic.ttf",
    ),
    "test": (
        "font_roboto/Roboto-Regular.ttf",
        "font_roboto/Roboto-Bold.ttf",
        "font_roboto/Roboto-LightItalic.ttf",
        "font_source_serif_pro/SourceSerifPro-Regular.ttf",
        "font_source_serif_pro/SourceSerifPro-BoldIt.ttf",
        "font_lato/Lato-Regular.ttf",
        "font_lato/Lato-Black.ttf",
    ),
}
_SIZES = (14, 48)  # pixels of a letter's em before the line is scaled to the model's height
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True)
class Line:
    """One line of text as the recogniser gets it.

    Attributes:
        text: The truth.
        pixels: Grey values (48, W), uint8.
    """

    text: str
    pixels: NDArray[np.uint8]


def lines(kind: str, count: int, *, seed: int = 0) -> list[Line]:
    """Render lines, each with its own text, font, size, grey values, tilt, blur and noise.

    Args:
        kind: "calibration" or "test".
        count: How many.
        seed: Equal seeds give equal lines.
    """
    random = np.random.default_rng([seed, sorted(FONTS).index(kind)])
    known = words(kind)
    return [_line(random, made_up(random, known), FONTS[kind][i % len(FONTS[kind])]) for i in range(count)]


def batches(source: Sequence[Line], *, batch: int = 8) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Batches of lines of similar width, padded on the right as PP-OCR does, from -1 to 1.

    Yields:
        The lines' positions in ``source`` and the images (batch, 3, 48, W).
    """
    order = sorted(range(len(source)), key=lambda i: source[i].pixels.shape[1])
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = -(-max(source[i].pixels.shape[1] for i in chosen) // 16) * 16
        images = np.zeros((len(chosen), 1, HEIGHT, width), np.float32)
        for image, i in zip(images, chosen, strict=True):
            image[0, :, : source[i].pixels.shape[1]] = source[i].pixels / np.float32(127.5) - 1
        yield chosen, np.ascontiguousarray(np.broadcast_to(images, (len(chosen), 3, HEIGHT, width)))


@functools.cache
def words(kind: str) -> tuple[str, ...]:
    """The words of one half of CPython's help topics."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    half = names[0::2] if kind == "calibration" else names[1::2]
    return tuple(re.findall(r"[A-Za-z][A-Za-z'-]*[A-Za-z][.,;:!?]?", " ".join(topics[name] for name in half)))


def made_up(random: np.random.Generator, known: Sequence[str]) -> str:
    """Some words in a row, or a made-up code, date or price."""
    kind = random.integers(0, 4)
    if kind < 3:
        start, length = int(random.integers(0, len(known) - 6)), int(random.integers(1, 5))
        text = " ".join(known[start : start + length])
        return text.upper() if random.random() < 0.1 else text
    number = int(random.integers(0, 10**6))
    letters = "".join(random.choice(list(_LETTERS), 3))
    return str(
        random.choice(
            [
                f"{letters}-{number:06d}",
                f"{number / 100:,.2f} EUR",
                f"{1970 + number % 60}-{1 + number % 12:02d}-{1 + number % 28:02d}",
                f"No. {number} / {letters}",
                f"+49 {number % 900 + 100} {number * 7 % 10**6:06d}",
            ]
        )
    )


def _line(random: np.random.Generator, text: str, name: str) -> Line:
    size = int(random.integers(*_SIZES))
    face = font(name, size)
    left, top, right, bottom = face.getbbox(text)
    margin = max(2, round(size * random.uniform(0.1, 0.3)))
    paper = int(random.integers(150, 256))
    ink = int(random.integers(0, max(1, paper - 110)))
    if random.random() < 0.15:
        paper, ink = ink, paper
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=face)
    tilt = float(random.normal(0, 0.5))
    image = image.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=paper)
    if random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 0.04 * size))))
    width = max(HEIGHT // 2, round(image.width * HEIGHT / image.height))
    image = image.resize((width, HEIGHT), Image.Resampling.BILINEAR)
    noise = random.normal(0, random.uniform(0, 14), (HEIGHT, width))
    return Line(text, np.clip(np.asarray(image, np.float64) + noise, 0, 255).astype(np.uint8))


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of one of the packages, as "package/file"."""
    package, _, file = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the font package {package} is not installed: pip install 'trtsparse[bench]'")
    return ImageFont.truetype(Path(spec.origin).parent / "files" / file, size)

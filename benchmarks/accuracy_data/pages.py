"""Pages of text at places that are known, and the boxes that a detector's map of probabilities stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .text import FONTS, font, made_up, words

__all__ = ["Box", "Page", "boxes", "mean_iou", "pages"]

SIZE = (480, 640)
_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)  # as PP-OCR's detector was trained
_SPREAD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
_PROBABLE, _SURE, _GROW = 0.3, 0.6, 1.6  # PP-OCR's own settings

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        image: What the detector gets (1, 3, H, W).
        truth: Where the lines are.
    """

    image: NDArray[np.float32]
    truth: tuple[Box, ...]


def pages(kind: str, count: int, *, seed: int = 0) -> list[Page]:
    """Render pages with some lines each, fonts and texts as in `text.lines`.

    Args:
        kind: "calibration" or "test".
        count: How many.
        seed: Equal seeds give equal pages.
    """
    random = np.random.default_rng([seed, 10 + sorted(FONTS).index(kind)])
    return [_page(random, kind) for _ in range(count)]


def _page(random: np.random.Generator, kind: str) -> Page:
    height, width = SIZE
    paper = int(random.integers(150, 256))
    image = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(image)
    truth: list[Box] = []
    top = float(random.integers(10, 40))
    while True:
        size = int(random.integers(14, 44))
        face = font(str(random.choice(FONTS[kind])), size)
        text = made_up(random, words(kind))
        left, above, right, below = face.getbbox(text)
        if top + below - above > height - 10:
            break
        if right - left < width - 20:
            start = float(random.uniform(10, width - 10 - (right - left)))
            draw.text((start - left, top - above), text, fill=int(random.integers(0, paper - 110)), font=face)
            rise, fall = face.getmetrics()  # a box is as high as the font's lines, whatever letters are in it
            truth.append((start, top - above, start + right - left, top - above + rise + fall))
        top += below - above + float(random.uniform(0.6, 2.5)) * size
    if random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(0.7))
    pixels = np.asarray(image, np.float32) + random.normal(0, random.uniform(0, 10), SIZE).astype(np.float32)
    grey = np.broadcast_to(np.clip(pixels, 0, 255) / np.float32(255), (1, 3, *SIZE))
    return Page(np.ascontiguousarray((grey - _MEAN) / _SPREAD), tuple(truth))


def boxes(probabilities: NDArray[np.float32]) -> list[Box]:
    """The upright boxes around what is probably text, grown as PP-OCR grows them.

    Args:
        probabilities: The detector's output for one page (H, W).
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats((probabilities > _PROBABLE).astype(np.uint8))
    found = []
    for label in range(1, count):
        x, y, w, h, _area = (int(value) for value in stats[label])
        inside = labels[y : y + h, x : x + w] == label
        if min(w, h) >= 3 and probabilities[y : y + h, x : x + w][inside].mean() > _SURE:
            grow = w * h * _GROW / (2 * (w + h))
            found.append((x - grow, y - grow, x + w + grow, y + h + grow))
    return found


def mean_iou(truth: Sequence[Box], found: Sequence[Box]) -> float:
    """The mean over all boxes of both sides of the best overlap on the other side: missing and invented ones cost."""
    if not truth or not found:
        return float(not truth and not found)
    overlaps = np.array([[_iou(a, b) for b in found] for a in truth])
    return float(np.concatenate([overlaps.max(0), overlaps.max(1)]).mean())


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

"""What is asked of each network: its model, data to calibrate with, and scores on other data."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models import digits
from models.packaged import (
    magika_features,
    magika_labels,
    magika_model,
    ppocr_det_model,
    ppocr_read,
    ppocr_rec_model,
)
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner

from .files import samples
from .pages import Page, boxes, mean_iou, pages
from .text import Line, batches, lines

__all__ = ["TASKS", "Detection", "Digits", "FileTypes", "Recognition", "Task"]

Feeds = list[dict[str, np.ndarray]]
_CALIBRATED_FILES = 128
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class Task(ABC):
    """A network and its data; calibration and test share none."""

    name: str
    metrics: tuple[str, ...]  # the first one decides

    @abstractmethod
    def model(self) -> Path:
        """The dense model."""

    @abstractmethod
    def calibration(self) -> Feeds:
        """Inputs without labels."""

    @abstractmethod
    def score(self, model: OnnxModel, *, exact: bool = False) -> dict[str, float]:
        """Every metric in percent.

        Args:
            model: What to run.
            exact: Without ONNX Runtime's fusions, which round Q/DQ in another way.
        """


class Digits(Task):
    """A small network on handwritten digits, half of them held out."""

    metrics = ("digits right",)

    def __init__(self) -> None:
        self._data = digits.digits()
        self.name = f"digits CNN, {len(self._data.test_labels)} held out"

    def model(self) -> Path:
        """See `Task`."""
        return digits.dense_model()

    def calibration(self) -> Feeds:
        """See `Task`."""
        (name,) = (value.name for value in OnnxModel.open(self.model()).proto.graph.input)
        return [{name: images} for images in np.split(self._data.train_images[:512], 64)]

    def score(self, model: OnnxModel, *, exact: bool = False) -> dict[str, float]:
        """See `Task`."""
        (name,) = (value.name for value in model.proto.graph.input)
        (scores,) = runner(model, optimize=not exact)({name: self._data.test_images}).values()
        return {"digits right": digits.accuracy(scores, self._data.test_labels)}


class Recognition(Task):
    """PP-OCRv6 reads rendered lines.

    Args:
        calibrated: How many lines to calibrate with.
        tested: How many to score.
    """

    metrics = ("characters right", "lines right")

    def __init__(self, *, calibrated: int = 128, tested: int = 2100) -> None:
        self.name = f"PP-OCRv6 recognition, {tested:,} lines"
        self._calibrated = calibrated
        self._tested = tested

    def model(self) -> Path:
        """See `Task`."""
        return ppocr_rec_model()

    def calibration(self) -> Feeds:
        """See `Task`."""
        return [{"x": images} for _, images in batches(lines("calibration", self._calibrated))]

    def score(self, model: OnnxModel, *, exact: bool = False) -> dict[str, float]:
        """See `Task`."""
        run = runner(model, optimize=not exact)
        truth = self._test
        wrong = letters = right = 0
        for chosen, images in batches(truth):
            for i, text in zip(chosen, ppocr_read(run({"x": images})["fetch_name_0"]), strict=True):
                expected = truth[i].text
                wrong += min(_distance(text, expected), len(expected))
                letters += len(expected)
                right += text == expected
        return {"characters right": 100 * (1 - wrong / letters), "lines right": 100 * right / len(truth)}

    @functools.cached_property
    def _test(self) -> list[Line]:
        return lines("test", self._tested)


class Detection(Task):
    """PP-OCRv6 finds lines on rendered pages.

    Args:
        calibrated: How many pages to calibrate with.
        tested: How many to score.
    """

    metrics = ("IoU with the truth", "IoU with the dense model")

    def __init__(self, *, calibrated: int = 24, tested: int = 60) -> None:
        self.name = f"PP-OCRv6 detection, {tested} pages"
        self._calibrated = calibrated
        self._tested = tested

    def model(self) -> Path:
        """See `Task`."""
        return ppocr_det_model()

    def calibration(self) -> Feeds:
        """See `Task`."""
        return [{"x": page.image} for page in pages("calibration", self._calibrated)]

    def score(self, model: OnnxModel, *, exact: bool = False) -> dict[str, float]:
        """See `Task`."""
        found = self._boxes(runner(model, optimize=not exact))
        truth = [page.truth for page in self._test]
        pairs = (("IoU with the truth", truth), ("IoU with the dense model", self._dense))
        return {
            name: 100 * float(np.mean([mean_iou(a, b) for a, b in zip(reference, found, strict=True)]))
            for name, reference in pairs
        }

    @functools.cached_property
    def _dense(self) -> list[Any]:
        return self._boxes(runner(OnnxModel.open(self.model())))

    def _boxes(self, run: Run) -> list[Any]:
        return [boxes(run({"x": page.image})["fetch_name_0"][0, 0]) for page in self._test]

    @functools.cached_property
    def _test(self) -> list[Page]:
        return pages("test", self._tested)


class FileTypes(Task):
    """Magika tells the types of files on this system."""

    metrics = ("type right", "agrees with the dense model")

    def __init__(self) -> None:
        self._test = samples("test")
        types = len({sample.path.suffix.lower() for sample in self._test})
        self.name = f"Magika, {len(self._test):,} files of {types} types"

    def model(self) -> Path:
        """See `Task`."""
        return magika_model()

    def calibration(self) -> Feeds:
        """See `Task`."""
        known = samples("calibration")
        chosen = np.random.default_rng(0).choice(len(known), _CALIBRATED_FILES, replace=False)
        return [{"bytes": magika_features([known[i].path])} for i in chosen]

    def score(self, model: OnnxModel, *, exact: bool = False) -> dict[str, float]:
        """See `Task`."""
        found = self._labels(runner(model, optimize=not exact))
        right = [label in sample.labels for label, sample in zip(found, self._test, strict=True)]
        agreed = [a == b for a, b in zip(found, self._dense, strict=True)]
        return {
            "type right": 100 * float(np.mean(right)),
            "agrees with the dense model": 100 * float(np.mean(agreed)),
        }

    @functools.cached_property
    def _dense(self) -> list[str]:
        return self._labels(runner(OnnxModel.open(self.model())))

    def _labels(self, run: Run) -> list[str]:
        names = magika_labels()
        paths = [sample.path for sample in self._test]
        found: list[str] = []
        for start in range(0, len(paths), 64):
            (scores,) = run({"bytes": magika_features(paths[start : start + 64])}).values()
            found += [names[i] for i in scores.argmax(1)]
        return found


TASKS: dict[str, Callable[[], Task]] = {
    "rec": Recognition,
    "det": Detection,
    "magika": FileTypes,
    "digits": Digits,
}


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    """How many letters have to be changed, added or dropped to turn one text into the other."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]

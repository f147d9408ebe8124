"""What calibrated pruning is given: real inputs, and a few numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from trtsparse.errors import ConfigError, FeedError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import Feeds, FileFeeds, check_feeds, read_feeds
from trtsparse.precision.specs import input_specs

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Data to prune with, and how.

    Attributes:
        feeds: Real inputs, as `trtsparse.precision.feeds.read_feeds` takes them. No labels are needed.
        samples: At most so many feeds are used, chosen at random where there are more.
        seed: Of that choice.
        damping: For "sparsegpt", see `trtsparse.accuracy.sparsegpt.sparsegpt`.
        biases: Change biases so that the mean of every output stays.
        refit: For "sparsegpt": fit the remaining weights together at the end.
        device: Where the linear algebra runs: "cpu", or "cuda" with PyTorch. The model runs on the CPU.

    Raises:
        ConfigError: A number is out of range.
    """

    feeds: str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]] = field(repr=False)
    samples: int = 128
    seed: int = 0
    damping: float = 0.01
    biases: bool = True
    refit: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError("calibration needs samples", where="samples", got=self.samples, expected="at least 1")
        if self.seed < 0:
            raise ConfigError("a seed must not be negative", where="seed", got=self.seed)
        if not 0 <= self.damping < math.inf:
            raise ConfigError("damping must not be negative", where="damping", got=self.damping)

    def read(self, model: OnnxModel) -> Feeds:
        """The samples, checked against a model's inputs.

        Raises:
            FeedError: There are none, they do not fit the model, or hold NaN.
        """
        names = [spec.name for spec in input_specs(model)]
        feeds = read_feeds(self.feeds, input_name=names[0] if len(names) == 1 else "")
        if len(feeds) > self.samples:
            chosen = np.random.default_rng(self.seed).choice(len(feeds), self.samples, replace=False)
            kept = sorted(int(i) for i in chosen)
            feeds = (
                FileFeeds([feeds.files[i] for i in kept])
                if isinstance(feeds, FileFeeds)
                else [feeds[i] for i in kept]
            )
        check_feeds(model, feeds)
        for number, feed in enumerate(feeds):
            for name, values in feed.items():
                if values.dtype.kind == "f" and np.isnan(values).any():
                    raise FeedError("the calibration data hold NaN", where=f"feed {number}, input {name!r}")
        return feeds

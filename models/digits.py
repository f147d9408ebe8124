"""A small network on scikit-learn's handwritten digits: trained, pruned 2:4, trained again by the same recipe.

``dense_model`` and ``sparse_model`` are the files that are kept in this folder: no PyTorch is needed to use them. To
make them again, or to see the accuracies of several seeds::

    python -m models.digits --seeds 5
    python -m models.digits --seeds 1 --output models
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.errors import MissingDependencyError, ModelNotFoundError, TrtSparseError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["Digits", "Trained", "accuracy", "dense_model", "digits", "evaluate", "main", "sparse_model", "train"]

LIMIT = 0.3  # points of held-out accuracy that pruning may cost after retraining

_EPOCHS = 30
_BATCH = 64
_LEARNING_RATE = 5e-3
_WIDTH = 16


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) float32 from 0 to 1 and labels (N,) int64: one half for training, the other held out."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """The networks of one seed, in eval mode.

    Attributes:
        dense: Trained.
        sparse: Pruned 2:4 and trained again; its masks are on it.
        dense_accuracy: Held-out accuracy of ``dense`` in percent.
        pruned_accuracy: Of the pruned network before it was trained again.
        sparse_accuracy: Of ``sparse``.
    """

    dense: nn.Sequential
    sparse: nn.Sequential
    dense_accuracy: float
    pruned_accuracy: float
    sparse_accuracy: float


def dense_model() -> Path:
    """Return the path of the dense network: digits (N, 1, 8, 8) from 0 to 1 to scores (N, 10).

    It was trained with ``digits(seed=0)``, so what that holds out is held out for it.

    Raises:
        ModelNotFoundError: The file is not in this folder.
    """
    return _kept("digits_dense.onnx")


def sparse_model() -> Path:
    """Return the path of the same network after pruning and retraining.

    Raises:
        ModelNotFoundError: The file is not in this folder.
    """
    return _kept("digits_sparse.onnx")


def digits(seed: int = 0, *, fold: int = 0) -> Digits:
    """Split the 1,797 digits into halves at random.

    Args:
        seed: Of the split.
        fold: Which half is held out: with 0 and 1 every digit is held out once.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingDependencyError("the handwritten digits need scikit-learn", extra="models") from error
    found = load_digits()
    images = np.asarray(found.images, np.float32)[:, None] / np.float32(16)
    labels = np.asarray(found.target, np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    halves = np.array_split(order, 2)
    training, held_out = halves[fold], halves[1 - fold]
    return Digits(images[training], labels[training], images[held_out], labels[held_out])


def accuracy(scores: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """Return the share of rows of ``scores`` (N, 10) whose largest is at the label, in percent.

    Example:
        >>> accuracy(np.eye(4), np.array([0, 1, 2, 2]))
        75.0
    """
    return float(100 * np.mean(scores.argmax(axis=1) == labels))


def train(seed: int = 0, *, fold: int = 0) -> Trained:
    """Train, prune and train again; about 10 seconds.

    Args:
        seed: Of the split, the first weights and the order of training.
        fold: As in `digits`.

    Raises:
        MissingDependencyError: PyTorch or scikit-learn is not installed.
    """
    data = digits(seed, fold=fold)
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("training needs PyTorch", extra="torch") from error
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network()
        _fit(model, data, sparse=False)
        dense = copy.deepcopy(model)
        _fit(model, data, sparse=True)
        return Trained(
            dense=dense,
            sparse=model,
            dense_accuracy=_tested(dense, data),
            pruned_accuracy=_tested(_pruned(dense), data),
            sparse_accuracy=_tested(model, data),
        )


def evaluate(seed: int = 0) -> dict[str, float]:
    """Train with each half of the digits, and test with the other; about 20 seconds.

    Returns:
        Held-out accuracies in percent, of all 1,797 digits: "dense", "pruned" (once, by magnitude) and "retrained".

    Raises:
        MissingDependencyError: PyTorch or scikit-learn is not installed.
    """
    return _mean([train(seed, fold=fold) for fold in (0, 1)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the accuracies of several seeds, and write both models of the first if asked.

    Returns:
        0; 1 when a seed's accuracy after retraining is more than `LIMIT` below that of its dense networks.
    """
    parser = argparse.ArgumentParser(prog="python -m models.digits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds, from 0 on (default: 5)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write the ONNX files of seed 0 there")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        return _run(options.seeds, options.output)
    except TrtSparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(seeds: int, folder: Path | None) -> int:
    print("accuracy in % of all 1,797 digits, each held out once")
    print(" seed    dense   pruned  retrained  difference  seconds")
    rows = []
    for seed in range(seeds):
        started = time.perf_counter()
        folds = [train(seed, fold=fold) for fold in (0, 1)]
        rows.append(_mean(folds))
        print(f"{seed:5} {_shown(rows[-1])} {time.perf_counter() - started:8.1f}", flush=True)
        if seed == 0 and folder is not None:
            _export(folds[0], folder)
    mean = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    print(f" mean {_shown(mean)}")
    return 0 if all(row["dense"] - row["retrained"] <= LIMIT for row in rows) else 1


def _mean(folds: Sequence[Trained]) -> dict[str, float]:
    return {
        "dense": statistics.fmean(fold.dense_accuracy for fold in folds),
        "pruned": statistics.fmean(fold.pruned_accuracy for fold in folds),
        "retrained": statistics.fmean(fold.sparse_accuracy for fold in folds),
    }


def _shown(row: dict[str, float]) -> str:
    change = row["retrained"] - row["dense"]
    return f"{row['dense']:8.2f} {row['pruned']:8.2f} {row['retrained']:10.2f} {change:+11.2f}"


def _kept(name: str) -> Path:
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise ModelNotFoundError(
            "a model that belongs into this folder is missing",
            where=path,
            fix="python -m models.digits --seeds 1 --output models",
        )
    return path


def _network() -> nn.Sequential:
    """Three convolutions and two fully connected layers, 40,618 parameters."""
    from torch import nn

    width = _WIDTH
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.BatchNorm2d(4 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * width, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def _fit(model: nn.Sequential, data: Digits, *, sparse: bool) -> None:
    """The recipe, the same for both trainings; pruning is one line of it."""
    import torch
    from torch.nn import functional

    from trtsparse.torch import prune_trained_model

    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    if sparse:
        prune_trained_model(model, optimizer)
    steps = _EPOCHS * (len(labels) // _BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(labels))[: len(labels) // _BATCH * _BATCH].view(-1, _BATCH):
            scores = model(_moved(images[batch]))
            loss: Any = functional.cross_entropy(scores, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    model.eval()


def _moved(images: Tensor) -> Tensor:
    """The images turned by up to 9 degrees, scaled by up to a tenth and shifted by up to a pixel, each on its own."""
    import torch
    from torch.nn import functional

    count = len(images)
    angle, scale, shift = (torch.rand(count, n) * 2 - 1 for n in (1, 1, 2))
    across, down = (1 + 0.1 * scale) * torch.cos(0.15 * angle), (1 + 0.1 * scale) * torch.sin(0.15 * angle)
    matrices = torch.stack([torch.cat(row, dim=1) for row in ((across, -down), (down, across))], dim=1)
    matrices = torch.cat([matrices, 0.25 * shift[:, :, None]], dim=2)  # 0.25 of half the width is a pixel
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _pruned(model: nn.Sequential) -> nn.Sequential:
    from trtsparse.torch import SparsePruner

    pruned = copy.deepcopy(model)
    SparsePruner(pruned)
    return pruned


def _tested(model: nn.Sequential, data: Digits) -> float:
    import torch

    with torch.no_grad():
        scores: NDArray[np.float32] = model(torch.from_numpy(data.test_images)).numpy()
    return accuracy(scores, data.test_labels)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A network of this size is fastest on one, and its results are the same on every machine of a kind."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _export(trained: Trained, folder: Path) -> None:
    """Write both networks with any batch size; PyTorch's older exporter leaves no paths of this machine in them."""
    import torch

    from trtsparse.torch import SparsePruner

    folder.mkdir(parents=True, exist_ok=True)
    names = {"input_names": ["image"], "output_names": ["scores"]}
    options: dict[str, Any] = {**names, "dynamic_axes": {"image": {0: "batch"}, "scores": {0: "batch"}}}
    example = (torch.zeros(1, 1, 8, 8),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(trained.dense, example, str(folder / "digits_dense.onnx"), dynamo=False, **options)
    SparsePruner(trained.sparse).export_onnx(folder / "digits_sparse.onnx", example, dynamo=False, **options)


if __name__ == "__main__":
    sys.exit(main())

"""Every recipe by name, and the cache of the files that generators write."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import digits, packaged
from models._recipe import Recipe, suggestion
from trtsparse.errors import ConfigError, ModelError
from trtsparse.files.model import OnnxModel

__all__ = ["RECIPES", "Generated", "Packaged", "get", "names"]


@dataclass(frozen=True)
class Packaged:
    """A model that an installed package or this one brings, and the function that finds its file."""

    description: str
    find: Callable[[], Path]


@dataclass(frozen=True)
class Generated:
    """A generator, as ``module.class`` of this package, with some of its options set."""

    description: str
    recipe: str
    preset: Mapping[str, Any] = field(default_factory=dict)

    def make(self, **options: Any) -> Recipe:
        """Return the recipe; given options win over preset ones.

        Raises:
            ConfigError: An option is unknown or wrong.
        """
        module, _, name = self.recipe.partition(".")
        recipe: type[Recipe] = getattr(importlib.import_module(f"models.{module}"), name)
        return recipe.of(**{**self.preset, **options})


_BERT_LARGE = {"layers": 24, "hidden": 1024, "heads": 16, "intermediate": 4096}
_VIT_HUGE = {"layers": 32, "hidden": 1280, "heads": 16, "intermediate": 5120, "patch": 14}

RECIPES: Mapping[str, Packaged | Generated] = {
    "magika": Packaged("file type from a file's bytes (package magika)", packaged.magika_model),
    "ppocr-det": Packaged("PP-OCRv6, finds text in an image (package rapidocr)", packaged.ppocr_det_model),
    "ppocr-rec": Packaged("PP-OCRv6, reads a line of text (package rapidocr)", packaged.ppocr_rec_model),
    "digits-dense": Packaged("small network on handwritten digits (kept here)", digits.dense_model),
    "digits-sparse": Packaged("the same, pruned 2:4 and trained again (kept here)", digits.sparse_model),
    "resnext50": Generated("ResNeXt-50 32x8d, image classification", "resnext.ResNeXt", {"depth": 50}),
    "resnext101": Generated("ResNeXt-101 32x8d, image classification", "resnext.ResNeXt", {"depth": 101}),
    "bert-base": Generated("BERT base encoder, 12 layers of 768", "bert.Bert"),
    "bert-large": Generated("BERT large encoder, 24 layers of 1024", "bert.Bert", _BERT_LARGE),
    "vit-base": Generated("ViT-B/16, image classification", "vit.ViT"),
    "vit-h": Generated("ViT-H/14, image classification", "vit.ViT", _VIT_HUGE),
    "llm-block": Generated("LLM feed-forward block, 4096 to 14336 and back", "llm.LLMBlock"),
    "mlp": Generated("multilayer perceptron, 1024-4096-4096-1000", "mlp.MLP"),
}


def names() -> tuple[str, ...]:
    """Return the names that ``get`` knows."""
    return tuple(RECIPES)


def get(name: str, *, folder: str | os.PathLike[str] | None = None, **options: Any) -> Path:
    """Return the path of a model's ONNX file, which is written first if it is a generated one.

    Args:
        name: One of ``names()``.
        folder: Where generated files go, by default a folder in the user's cache. A file that is there from an
            earlier call with the same options is used again. A packaged model stays where its package has it.
        options: Options of the generator (``python -m models.resnext --help`` lists them). Weights of a
            packaged model are what they are: it has no options.

    Returns:
        The path of the file. Above 1.5 GB the weights are in a second file beside it.

    Raises:
        ConfigError: The name or an option is unknown or wrong.
        MissingDependencyError: The package that brings the model is not installed.
        ModelError: The file of trained weights is not one of this network.
        OutputError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = get("mlp", folder=folder, widths=(8, 4))
        ...     path.suffix, path == get("mlp", folder=folder, widths=(8, 4))
        ('.onnx', True)
    """
    entry = RECIPES.get(name)
    if entry is None:
        raise ConfigError(
            "no recipe has this name",
            got=repr(name),
            expected=", ".join(RECIPES),
            fix=suggestion(name, RECIPES),
        )
    if isinstance(entry, Packaged):
        if options:
            raise ConfigError(f"the recipe {name!r} has no options", got=", ".join(map(repr, options)))
        return entry.find()
    recipe = entry.make(**options)
    path = Path(folder or _cache_folder()) / f"{name}-{_key(recipe)}.onnx"
    if not _is_whole(path):
        recipe.save(path)
    return path


def _is_whole(path: Path) -> bool:
    """The file is there, and so is the one with its weights where they are apart."""
    try:
        OnnxModel.open(path).external_files()
    except ModelError:
        return False
    return True


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "trtsparse" / "models"


def _key(recipe: Recipe) -> str:
    """Hash all that a generated file depends on: the options, the weights file and this package's code."""
    facts: list[Any] = [recipe.name, dataclasses.asdict(recipe)]
    if recipe.weights is not None and recipe.weights.is_file():
        state = recipe.weights.stat()
        facts.append([str(recipe.weights.resolve()), state.st_size, state.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

"""Recipes for real ONNX models, by name: networks found in installed packages, and generators.

Generated weights depend on the options and the seed only, so a model is the same everywhere that has the same
NumPy. Generated files are kept in a cache folder and made again when a recipe's options or code change.

Example:
    >>> names()[:4]
    ('magika', 'ppocr-det', 'ppocr-rec', 'digits-dense')
"""

from __future__ import annotations

from models._registry import get, names

__all__ = ["get", "names"]

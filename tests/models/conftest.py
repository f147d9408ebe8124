"""Every generator at a size that runs in milliseconds."""

import pytest

from models._registry import RECIPES

TINY = {
    "resnext50": {"width": 8, "groups": 4, "width_per_group": 16, "num_classes": 10, "image_size": 32},
    "resnext101": {"width": 8, "groups": 4, "width_per_group": 16, "num_classes": 10, "image_size": 32},
    "bert-base": {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64, "vocabulary": 50},
    "bert-large": {"layers": 3, "hidden": 32, "heads": 4, "intermediate": 64, "vocabulary": 50, "mask": True},
    "vit-base": {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64, "image_size": 48, "num_classes": 10},
    "vit-h": {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64, "image_size": 28, "num_classes": 10},
    "llm-block": {"blocks": 2, "hidden": 32, "intermediate": 112},
    "mlp": {"widths": (16, 64, 64, 10)},
}


@pytest.fixture(params=TINY)
def tiny(request):
    """A tiny recipe of each generator."""
    return RECIPES[request.param].make(**TINY[request.param])


@pytest.fixture
def tiny_options():
    """Options of the tiny recipes, by the generators' names."""
    return TINY

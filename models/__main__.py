"""``python -m models``: list the recipes."""

from __future__ import annotations

from models._registry import RECIPES, Generated

if __name__ == "__main__":
    for name, entry in RECIPES.items():
        command = f"python -m models.{entry.recipe.partition('.')[0]}" if isinstance(entry, Generated) else ""
        print(f"{name:14}{entry.description:58}{command}".rstrip())

"""Recipes: all settings of a training, by name `model/data set`. No heavy library is imported here."""

from flowless.train.recipes.by_name import DATA_NAMES, find_recipe
from flowless.train.recipes.recipe import Recipe

__all__ = ["DATA_NAMES", "Recipe", "find_recipe"]

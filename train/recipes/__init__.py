"""Recipes: everything that decides how a model is trained, by name `model/data set`. No heavy library is imported here."""

from flowless.train.recipes.recipe import DATA_NAMES, FAMILY_NAMES, MODEL_NAMES, RECIPES, Recipe, find_recipe

__all__ = ["DATA_NAMES", "FAMILY_NAMES", "MODEL_NAMES", "RECIPES", "Recipe", "find_recipe"]

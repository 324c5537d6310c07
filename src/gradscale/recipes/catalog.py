"""The built-in recipes by name."""

from __future__ import annotations

from gradscale.recipes.chars import Chars
from gradscale.recipes.cifar10 import Cifar10
from gradscale.recipes.denoise import Denoise
from gradscale.recipes.digits import Digits
from gradscale.recipes.fashion_mnist import FashionMnist
from gradscale.recipes.recipe import Recipe
from gradscale.recipes.towers import Towers
from gradscale.recipes.words import Words

# Those that need no download first.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (Digits(), Chars(), Words(), Denoise(), Towers(), Cifar10(), FashionMnist())
}


def find(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: if there is none; the message lists those that exist.

    Example:
        >>> find("digits").metric_name
        'accuracy'
    """
    if name not in RECIPES:
        raise ValueError(f"`{name}` is not a recipe. Pass one of {', '.join(RECIPES)}.")
    return RECIPES[name]

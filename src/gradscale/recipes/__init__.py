"""The built-in training tasks, one a file: data, model, loss, metric, defaults."""

from gradscale.recipes.catalog import RECIPES as RECIPES
from gradscale.recipes.catalog import find as find
from gradscale.recipes.needs import Need as Need
from gradscale.recipes.recipe import Batch as Batch
from gradscale.recipes.recipe import Data as Data
from gradscale.recipes.recipe import Defaults as Defaults
from gradscale.recipes.recipe import Recipe as Recipe

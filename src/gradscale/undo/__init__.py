"""Where the scale is undone, other than in the gradient; a step as pure functions."""

from gradscale.undo import functional as functional
from gradscale.undo.degrees import Degrees as Degrees

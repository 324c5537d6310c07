"""Where the scale is undone, other than in the gradient."""

from gradscale.undo.degrees import Degrees as Degrees

"""Where the scale is undone, other than in the gradient: in the optimizer's own numbers."""

from gradscale.undo.degrees import Degrees as Degrees

"""Models in half precision, with float32 master weights that any torch optimizer updates."""

from gradscale.half.half_model import HalfPrecision as HalfPrecision

"""Loss scaling for PyTorch that loses no gradient."""

from gradscale.formats import FloatFormat as FloatFormat

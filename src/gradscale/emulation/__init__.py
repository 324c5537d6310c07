"""Products in half and 8-bit formats with float32 accumulation, on any machine."""

from gradscale.emulation.direction_formats import DirectionFormats as DirectionFormats
from gradscale.emulation.emulate import emulate as emulate
from gradscale.emulation.emulate import emulating as emulating
from gradscale.emulation.emulate import suspended as suspended

"""Watching a training loop: what its gradients hold, and what a format loses of them."""

from gradscale.layerwise.function_verdict import FunctionVerdict as FunctionVerdict
from gradscale.watching.report import WatchReport as WatchReport
from gradscale.watching.rows import Row as Row
from gradscale.watching.start import watch as watch
from gradscale.watching.watch import Watch as Watch

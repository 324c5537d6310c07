"""Loss scaling for PyTorch that loses no gradient.

Here is what a training script types. What it is given back, and what else there is, is in the
packages: `outcomes.StepOutcome`, `policies.Policy`, `plans.ScalePlan`, `watching.WatchReport` …
"""

from __future__ import annotations

import importlib
import typing
from types import ModuleType

from gradscale import checkpoints as checkpoints
from gradscale import doctor as doctor
from gradscale import emulation as emulation
from gradscale import functional as functional
from gradscale import metrics as metrics
from gradscale import recording as recording
from gradscale import truth as truth
from gradscale.advice import advise as advise
from gradscale.captured import CapturedStep as CapturedStep
from gradscale.emulation import emulate as emulate
from gradscale.formats import FloatFormat as FloatFormat
from gradscale.half.conversion import half_precision as half_precision
from gradscale.integrations.attach import attach as attach
from gradscale.layerwise import Layerwise as Layerwise
from gradscale.plans import Adaptive as Adaptive
from gradscale.plans import Excluding as Excluding
from gradscale.plans import Windows as Windows
from gradscale.policies import Band as Band
from gradscale.policies import Dynamic as Dynamic
from gradscale.policies import Guarded as Guarded
from gradscale.policies import LastMaximum as LastMaximum
from gradscale.policies import LogNormal as LogNormal
from gradscale.policies import Quantile as Quantile
from gradscale.policies import Recovering as Recovering
from gradscale.policies import Static as Static
from gradscale.policies import TwoSided as TwoSided
from gradscale.policies import preset as preset
from gradscale.policies import presets as presets
from gradscale.recording import Recorder as Recorder
from gradscale.scaler import GradScaler as GradScaler
from gradscale.undo import Degrees as Degrees
from gradscale.version import __version__ as __version__
from gradscale.watching import watch as watch

if typing.TYPE_CHECKING:
    from gradscale import replay as replay
    from gradscale import report as report

_WHEN_ASKED = ("replay", "report")


def __getattr__(name: str) -> ModuleType:
    # The report needs an extra, and neither is needed to train: they are loaded when asked for.
    if name in _WHEN_ASKED:
        return importlib.import_module(f"gradscale.{name}")
    raise AttributeError(f"module 'gradscale' has no attribute {name!r}")

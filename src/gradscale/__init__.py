"""Loss scaling for PyTorch that loses no gradient.

Here is what a training script types. What it is given back, and what else there is, is in the
packages: `outcomes.StepOutcome`, `policies.Policy`, `plans.ScalePlan`, `watching.WatchReport` …
"""

from __future__ import annotations

import importlib
import typing
from types import ModuleType

from gradscale import checkpoints, doctor, emulation, functional, metrics, recording, truth
from gradscale.advice import advise
from gradscale.captured import CapturedStep
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from gradscale.half.conversion import half_precision
from gradscale.integrations.attach import attach
from gradscale.layerwise import Layerwise
from gradscale.plans import Adaptive, Excluding, Windows
from gradscale.policies import (
    Band,
    Dynamic,
    Guarded,
    LastMaximum,
    LogNormal,
    Quantile,
    Recovering,
    Static,
    TwoSided,
    preset,
    presets,
)
from gradscale.recording import Recorder
from gradscale.scaler import GradScaler
from gradscale.undo import Degrees
from gradscale.version import __version__ as __version__
from gradscale.watching import watch

if typing.TYPE_CHECKING:
    from gradscale import replay as replay
    from gradscale import report as report

__all__ = [
    "Adaptive",
    "Band",
    "CapturedStep",
    "Degrees",
    "Dynamic",
    "Excluding",
    "FloatFormat",
    "GradScaler",
    "Guarded",
    "LastMaximum",
    "Layerwise",
    "LogNormal",
    "Quantile",
    "Recorder",
    "Recovering",
    "Static",
    "TwoSided",
    "Windows",
    "advise",
    "attach",
    "checkpoints",
    "doctor",
    "emulate",
    "emulation",
    "functional",
    "half_precision",
    "metrics",
    "preset",
    "presets",
    "recording",
    "truth",
    "watch",
]

_WHEN_ASKED = ("replay", "report")
_BESIDE = (
    "advice",
    "backward",
    "formats",
    "histogram",
    "integrations",
    "outcomes",
    "plans",
    "policies",
    "watching",
)


def __getattr__(name: str) -> ModuleType:
    # The report needs an extra, and neither is needed to train: they are loaded when asked for.
    if name in _WHEN_ASKED:
        return importlib.import_module(f"gradscale.{name}")
    raise AttributeError(f"module 'gradscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    # Without the modules that are here because others import them.
    return sorted((*__all__, *_WHEN_ASKED, *_BESIDE, "__version__"))

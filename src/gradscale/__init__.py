"""Loss scaling for PyTorch that loses no gradient."""

from gradscale import checkpoints as checkpoints
from gradscale import emulation as emulation
from gradscale import metrics as metrics
from gradscale.formats import FloatFormat as FloatFormat
from gradscale.layerwise import Layerwise as Layerwise
from gradscale.metrics.metrics import Metrics as Metrics
from gradscale.outcomes.outcome import StepOutcome as StepOutcome
from gradscale.plans.adaptive import Adaptive as Adaptive
from gradscale.plans.plan import ScalePlan as ScalePlan
from gradscale.plans.planner import Excluding as Excluding
from gradscale.plans.windows import Windows as Windows
from gradscale.policies import Band as Band
from gradscale.policies import Dynamic as Dynamic
from gradscale.policies import Guarded as Guarded
from gradscale.policies import LastMaximum as LastMaximum
from gradscale.policies import LogNormal as LogNormal
from gradscale.policies import Observation as Observation
from gradscale.policies import Policy as Policy
from gradscale.policies import Quantile as Quantile
from gradscale.policies import Static as Static
from gradscale.policies import TwoSided as TwoSided
from gradscale.policies import preset as preset
from gradscale.policies import presets as presets
from gradscale.scaler import GradScaler as GradScaler
from gradscale.undo import Degrees as Degrees
from gradscale.version import __version__ as __version__

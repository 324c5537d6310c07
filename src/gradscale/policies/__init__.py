"""How the loss scale is chosen: one policy a file, one contract."""

from gradscale.policies import presets as presets
from gradscale.policies.band import Band as Band
from gradscale.policies.dynamic import Dynamic as Dynamic
from gradscale.policies.guarded import Guarded as Guarded
from gradscale.policies.last_maximum import LastMaximum as LastMaximum
from gradscale.policies.lognormal import LogNormal as LogNormal
from gradscale.policies.policy import Observation as Observation
from gradscale.policies.policy import Policy as Policy
from gradscale.policies.policy import advance as advance
from gradscale.policies.presets import preset as preset
from gradscale.policies.quantile import Quantile as Quantile
from gradscale.policies.recovering import Recovering as Recovering
from gradscale.policies.static import Static as Static
from gradscale.policies.two_sided import TwoSided as TwoSided

"""Every policy by the name that a user types, with its defaults."""

from __future__ import annotations

from gradscale.policies.band import Band
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.guarded import Guarded
from gradscale.policies.last_maximum import LastMaximum
from gradscale.policies.lognormal import LogNormal
from gradscale.policies.policy import Policy
from gradscale.policies.presets import PRESETS
from gradscale.policies.quantile import Quantile
from gradscale.policies.recovering import Recovering
from gradscale.policies.static import Static
from gradscale.policies.two_sided import TwoSided

POLICIES: dict[str, Policy] = {
    "static": Static(2.0**10),
    "dynamic": Dynamic(),
    "last-maximum": LastMaximum(),
    "lognormal": LogNormal(),
    "quantile": Quantile(),
    "band": Band(),
    "two-sided": TwoSided(),
    "guarded": Guarded(LastMaximum()),
}
BY_NAME: dict[str, Policy] = {
    **POLICIES,
    "recovering": Recovering(),
    **{name.replace("_", "-"): make() for name, make in PRESETS.items()},
}
"""Those, one that differs from `Dynamic` only far below 1, and other systems' defaults."""

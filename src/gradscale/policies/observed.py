"""What a policy asks of an observation, or the error that says what is missing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.policies.policy import Observation, Policy


class Maximum(NamedTuple):
    """The largest gradient of a step, as policies that place the scale by it read it.

    Attributes:
        amax: shape `losses`, float32.
        overflowed: shape `losses`, bool; an `amax` that is not finite is taken for an overflow too.
    """

    amax: Tensor
    overflowed: Tensor

    @classmethod
    def of(cls, policy: Policy, observation: Observation) -> Maximum:
        """What `observation` says of it.

        Raises:
            ValueError: if it was not measured.
        """
        if observation.amax is None:
            raise ValueError(
                _missing(policy, "amax", "the largest finite magnitude of the unscaled gradients")
            )
        amax = observation.amax.to(torch.float32)
        return cls(amax, (observation.found_inf > 0) | ~torch.isfinite(amax))


def octave_counts_of(policy: Policy, observation: Observation) -> Tensor:
    """The observation's `exponents`, counts per octave.

    Raises:
        ValueError: if they were not measured.
    """
    if observation.exponents is None:
        raise ValueError(
            _missing(policy, "exponents", "`gradscale.histogram.count_exponents` of the gradients")
        )
    return observation.exponents


def _missing(policy: Policy, name: str, meaning: str) -> str:
    return (
        f"`{type(policy).__name__}` needs `{name}`, which this observation lacks. "
        f"Measure what `policy.needs` names and pass `Observation({name}=...)`: {meaning}."
    )

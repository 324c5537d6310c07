"""What a policy asks of an observation, or the error that says what is missing."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.policies.policy import Observation, Policy


def amax_of(policy: Policy, observation: Observation) -> Tensor:
    """The observation's `amax`, float32.

    Raises:
        ValueError: if it was not measured.
    """
    if observation.amax is None:
        raise ValueError(
            _missing(policy, "amax", "the largest finite magnitude of the unscaled gradients")
        )
    return observation.amax.to(torch.float32)


def exponents_of(policy: Policy, observation: Observation) -> Tensor:
    """The observation's `exponents`, counts per octave.

    Raises:
        ValueError: if they were not measured.
    """
    if observation.exponents is None:
        raise ValueError(
            _missing(policy, "exponents", "`gradscale.histogram.count_exponents` of the gradients")
        )
    return observation.exponents


def overflowed(observation: Observation, amax: Tensor) -> Tensor:
    """Where the step overflowed; an `amax` that is not finite is taken for an overflow too.

    Returns:
        Shape `losses`, bool.
    """
    return (observation.found_inf > 0) | ~torch.isfinite(amax)


def _missing(policy: Policy, name: str, meaning: str) -> str:
    return (
        f"`{type(policy).__name__}` needs `{name}`, which this observation lacks. "
        f"Measure what `policy.needs` names and pass `Observation({name}=...)`: {meaning}."
    )
